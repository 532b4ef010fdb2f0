"""Initial weights: where they come from, how to normalise for them, how to rename their keys."""

from __future__ import annotations

import argparse
import hashlib
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.backbones.net import Embedder, lookup
from core.backbones.vit import Size, VisionTransformer, resize_positions
from core.errors import UserError
from core.files import hash_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Triple = tuple[float, float, float]
KeyMap = tuple[tuple[str, str], ...]

# A ResNet's own keys, with or without what training wrappers put before them, to an Embedder's.
WRAPPERS: KeyMap = (
    (r"^module\.", ""),  # DataParallel
    (r"^encoder_q\.", ""),  # MoCo's query encoder; the key encoder's keys stay unexpected
    (r"^(base|backbone)\.(?=conv1|bn1|layer|features)", ""),
)
RESNET: KeyMap = ((r"^(conv1|bn1|layer[1-4])\.", r"backbone.\1."),)
MOBILENET: KeyMap = ((r"^features\.", "backbone.features."),)
# The Cluster-Contrast family keeps its ResNet as nn.Sequential(conv1, bn1, relu, maxpool, stages).
FAMILY: KeyMap = (
    (r"^base\.0\.", "backbone.conv1."),
    (r"^base\.1\.", "backbone.bn1."),
    (r"^base\.4\.", "backbone.layer1."),
    (r"^base\.5\.", "backbone.layer2."),
    (r"^base\.6\.", "backbone.layer3."),
    (r"^base\.7\.", "backbone.layer4."),
    (r"^feat_bn\.", "bnneck."),
    (r"^gap\.p$", "pooling.p"),
)
# A vision transformer of the TransReID family keeps our names, under DINO's prefix or none.
VIT: KeyMap = (
    (r"^(base|backbone)\.(?=cls_token|pos_embed|patch_embed|blocks|norm\.|sie_embed)", ""),
    (r"^(?=cls_token|pos_embed|patch_embed|blocks|norm\.|sie_embed)", "backbone."),
    (r"^bottleneck\.", "bnneck."),
)
TORCHVISION_VIT: KeyMap = (
    (r"^class_token$", "backbone.cls_token"),
    (r"^conv_proj\.", "backbone.patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "backbone.pos_embed"),
    (r"^encoder\.ln\.", "backbone.norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"backbone.blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),  # the released file has the names of before torchvision 0.13
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
)
POSITIONS = "backbone.pos_embed"
# Under which training scripts store the tensors; DINO keeps its student as well and releases the teacher.
CONTAINERS = ("state_dict", "model", "teacher")
# What training scripts save beside the tensors: their options, and scores as NumPy scalars, of two names by version.
SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int64")),
    *((SCALAR, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
]
OPTIONAL = ("num_batches_tracked", "sie_embed")  # of a backbone: its tensors a file may lack


class WeightsError(UserError):
    """Weights that are missing, damaged, or of another network."""


@dataclass(frozen=True)
class Weights:
    """Initial weights and what has to be known to use and to cite them.

    source: what they were trained on and by whom, for the table's column.
    sha256: of the file, or as many leading digits as are known; None when unknown.
    mean, std: the normalisation of the images that they were trained with.
    key_map: (regular expression, replacement) applied in order to every key of the file.
    """

    name: str
    source: str
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    key_map: KeyMap = ()
    url: str | None = None
    sha256: str | None = None
    licence: str | None = None


WEIGHTS = {
    entry.name: entry
    for entry in (
        Weights(
            name="imagenet_resnet50",
            source="ImageNet-1k, labelled (torchvision IMAGENET1K_V1)",
            key_map=RESNET,
            url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
            sha256="0676ba61",  # torchvision's file name carries the first eight digits
            licence="BSD-3-Clause code; trained on ImageNet, whose terms are non-commercial",
        ),
        Weights(
            name="imagenet_resnet50_ibn",
            source="ImageNet-1k, labelled (IBN-Net release v1.0)",
            key_map=WRAPPERS + RESNET,
            url="https://github.com/XingangPan/IBN-Net/releases/download/v1.0/resnet50_ibn_a-d9d0bb7b.pth",
            sha256="d9d0bb7b",
            licence="MIT code; trained on ImageNet, whose terms are non-commercial",
        ),
        Weights(
            name="luperson",
            source="LUPerson, unlabelled (a user's file)",
            # The statistics of LUPerson that its ResNet-50 was trained with.
            mean=(0.3525, 0.3106, 0.3140),
            std=(0.2660, 0.2522, 0.2505),
            key_map=WRAPPERS + RESNET,
            licence="not redistributable; ask the authors of LUPerson",
        ),
        Weights(
            name="checkpoint",
            source="a user's checkpoint",
            key_map=WRAPPERS + FAMILY + RESNET + MOBILENET + VIT,
        ),
        Weights(
            name="imagenet_mobilenet_v2",
            source="ImageNet-1k, labelled (torchvision IMAGENET1K_V1)",
            key_map=MOBILENET,
            url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
            sha256="b0353104",
            licence="BSD-3-Clause code; trained on ImageNet, whose terms are non-commercial",
        ),
        Weights(
            name="imagenet_copy",  # for weights of the public names that came another way, or from another trainer
            source="ImageNet-1k, labelled (a user's file)",
            key_map=WRAPPERS + RESNET + MOBILENET + VIT,
            licence="the file's own; trained on ImageNet, whose terms are non-commercial",
        ),
        Weights(
            name="imagenet_vit_base",
            source="ImageNet-1k, labelled (torchvision IMAGENET1K_V1)",
            key_map=TORCHVISION_VIT,
            url="https://download.pytorch.org/models/vit_b_16-c867db91.pth",
            sha256="c867db91",
            licence="BSD-3-Clause code; trained on ImageNet, whose terms are non-commercial",
        ),
        Weights(
            name="imagenet_vit_small",
            source="ImageNet-1k, labelled (DeiT-S)",  # arXiv 2012.12877; torchvision has no ViT-S
            key_map=VIT,
            url="https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth",
            sha256="cd65a155",
            licence="Apache-2.0 code; trained on ImageNet, whose terms are non-commercial",
        ),
        *(
            Weights(
                name=f"luperson_{backbone}",
                source="LUPerson, unlabelled (a user's file of TransReID-SSL)",
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                key_map=WRAPPERS + VIT,
                licence="not redistributable; ask the authors of LUPerson",
            )
            for backbone in ("vit_small", "vit_small_ics", "vit_base", "vit_base_ics")
        ),
        Weights(name="suite", source="this suite's warm start"),
    )
}


@dataclass(frozen=True)
class LoadReport:
    """What a file gave: matched and missing are the model's keys, unexpected the file's."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    sha256: str


def find_weights(name: str, backbone: str) -> Weights:
    """The entry ``name_backbone`` or ``name`` of WEIGHTS; a ValueError names the nearest one."""
    specific = f"{name}_{backbone}"
    return lookup(WEIGHTS, specific if specific in WEIGHTS else name, "initial weights")


def load_weights(model: Embedder, weights: Weights, path: Path | None = None, download: bool = False) -> LoadReport:
    """Load ``weights`` into an Embedder, from ``path`` or from torch's download folder.

    All parameters and statistics of the backbone must be there in their shapes; a position
    embedding of another patch grid is resized. Neck, pooling and camera embedding may be missing
    (they keep their initial values) and further keys, such as a classifier's, are left out; the
    report lists both. Raises WeightsError, and then the model is unchanged.
    """
    file = locate(weights, path, download)
    digest = hash_file(file)
    if weights.sha256 is not None and not digest.startswith(weights.sha256):
        raise WeightsError(
            f"{file} has sha256 {digest}, but '{weights.name}' begins with {weights.sha256}: the "
            "file is damaged or another one; delete it and fetch it again"
        )
    found = read_tensors(file)
    renamed = {rename(key, weights.key_map): key for key in found}
    if len(renamed) < len(found):
        twice = sorted(set(found) - set(renamed.values()))
        raise WeightsError(
            f"{file} holds more than one network under different prefixes ({_shorten(twice)}); "
            "save the wanted one alone"
        )
    own = model.state_dict()
    matched = [key for key in own if key in renamed]
    missing = [key for key in own if key not in renamed]
    given = {key: found[renamed[key]] for key in matched}
    if POSITIONS in given and isinstance(model.backbone, VisionTransformer):
        given[POSITIONS] = fit_positions(file, given[POSITIONS], model.backbone.grid)
    check_backbone(file, own, missing, given)
    model.load_state_dict(given, strict=False)
    unexpected = [original for key, original in renamed.items() if key not in own]
    return LoadReport(tuple(matched), tuple(missing), tuple(unexpected), digest)


def locate(weights: Weights, path: Path | None, download: bool) -> Path:
    """The file to read: ``path``, or the entry's in torch's folder, downloaded only on demand."""
    if path is not None:
        if not path.is_file():
            raise WeightsError(f"{path} does not exist; initial weights '{weights.name}' need it")
        return path
    if weights.url is None:
        raise WeightsError(
            f"initial weights '{weights.name}' ({weights.source}) have no public address; pass the path of your file"
        )
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    if not file.is_file() and download:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(weights.url, str(file), progress=True)
        except OSError as error:
            raise WeightsError(
                f"downloading {weights.url} failed ({error}); without a connection, fetch it on "
                f"another machine and place it at {file}"
            ) from error
    if not file.is_file():
        raise WeightsError(
            f"initial weights '{weights.name}' are not on this machine; fetch {weights.url} and "
            f"place it at {file}, or pass the path of your copy, or allow the download"
        )
    return file


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key; only tensors, plain containers and HARMLESS objects are unpickled."""
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(
            f"{file} is not a checkpoint of tensors ({str(error).splitlines()[0]}); if it comes "
            "from a training script, save its state_dict alone and pass that"
        ) from error
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds a {type(content).__name__}, not a dictionary of tensors")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def rename(key: str, key_map: KeyMap) -> str:
    """``key`` after every replacement of ``key_map``, in order."""
    for pattern, replacement in key_map:
        key = re.sub(pattern, replacement, key)
    return key


def fit_positions(file: Path, embedding: Tensor, grid: Size) -> Tensor:
    """A file's position embedding (1, 1 + n, d) for the patch grid ``grid`` (h, w).

    Published grids are square (ImageNet) or two or three times as high as wide (LUPerson, 384 x 128); n tells them
    apart, because no number is a square and twice or three times a square.
    """
    patches = embedding.shape[1] - 1
    if patches == grid[0] * grid[1]:
        return embedding
    for ratio in (1, 2, 3):
        width = math.isqrt(patches // ratio)
        if ratio * width**2 == patches:
            return resize_positions(embedding, (ratio * width, width), grid)
    raise WeightsError(
        f"{file} holds positions of {patches} patches, which is no grid of height 1, 2 or 3 times its width; "
        f"resize them to {grid[0]} x {grid[1]} patches and save them again"
    )


def check_backbone(file: Path, own: Mapping[str, Tensor], missing: list[str], found: Mapping[str, Tensor]) -> None:
    """Raise WeightsError when the backbone is incomplete or any shape differs."""
    # Files from before torch 0.4.1 have no batch counter, and nothing depends on it.
    holes = [key for key in missing if key.startswith("backbone.") and not key.endswith(OPTIONAL)]
    if holes:
        raise WeightsError(
            f"{file} lacks {len(holes)} of the backbone's tensors: {_shorten(holes)}; is it of "
            "another network, or under a prefix that the key map does not remove?"
        )
    differing = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in found.items()
        if value.shape != own[key].shape
    ]
    if differing:
        raise WeightsError(f"{file} is of another network: {len(differing)} shapes differ: {_shorten(differing)}")


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values; device and memory format do not enter."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _shorten(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
