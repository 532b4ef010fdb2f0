"""Train one generator that shows an image as each camera of a dataset would; an interrupted run goes on where it was.

It reads the training images with their cameras, and the source beside them, where there is one, as one style more. It
writes `translator-HASH.pt`, for `--set settings.styles.backend=stargan --set settings.styles.translator=FILE`, and a
sheet of images in every style, to be looked at before the generator is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import trange

from core import distributed
from core.checkpoint import Checkpoint, source_hash
from core.data import Needs
from core.distributed import ProcessGroup
from core.files import replacing
from core.images import ImageStore, load_images
from core.lock import locked
from core.manifest import Manifest
from core.rng import Streams
from core.styles import as_pixels, numbered
from core.translator import SMALL, Given, TranslatorSettings, TranslatorTraining, as_input, save_generator, translated
from pipeline import cli, needed
from pipeline.assemble import known_cameras
from pipeline.jobs import CACHE, ROOT
from pipeline.settings import resolve_run

SIZES = {"published": TranslatorSettings(), "small": SMALL}
CODE = ("core/translator.py", "pipeline/translate.py")
ZOOM = 9 / 8  # images are enlarged by this and cut to their size, as 288 x 144 to 256 x 128
KEEP_EVERY = 500  # steps
SHOWN = 2  # images of each style on the sheet


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the generator is written."""
    arguments = cli.parser("translate", __doc__ or "")
    arguments.add_argument("--dataset", required=True, help="name of a prepared dataset")
    arguments.add_argument("--seed", type=int, default=0, help="seed of every random stream")
    arguments.add_argument("--size", choices=SIZES, default="small", help="published: HHL's; small: for a CPU")
    arguments.add_argument("--iterations", type=cli.positive, help="steps; default: the size's")
    arguments.add_argument("--data", type=Path, help="folder of `prepare`; default: data/DATASET")
    arguments.add_argument("--out", type=Path, help="default: styles/DATASET")
    arguments.add_argument("--cache", type=Path, default=CACHE, help="images and checkpoints")
    cli.add_params_arguments(arguments)
    cli.add_machine_arguments(arguments)
    options = arguments.parse_args(argv)

    params = cli.read_params(options)
    torch.set_num_threads(cli.threads(options, params))
    settings = SIZES[options.size]
    settings = replace(settings, iterations=options.iterations or settings.iterations)
    manifest = needed.prepared(options.dataset, options.data)
    layers = (params.profile, params.overrides, "train", options.assignments)
    size = resolve_run("warm_start", options.dataset, *layers).config.input
    group = distributed.start(options.device)
    images = Images(manifest, (size.height, size.width), group.device, options.cache)
    out = options.out or Path("styles") / options.dataset
    with locked(out):
        file = train(images, settings, options.seed, out, manifest.fingerprint, group, options.cache)
    print(f"translator of {images.targets} cameras -> {file}; look at {out / 'sheet.png'} before you use it")
    return 0


class Images:
    """The images of a dataset with their styles: its cameras, and the source, all of it, as one more."""

    def __init__(self, manifest: Manifest, size: tuple[int, int], device: torch.device, cache: Path) -> None:
        splits = ["train", "source"] if manifest.has("source") else ["train"]
        loaded = [load_images(manifest, split, *size, cache / "images") for split in splits]
        self.stores = [ImageStore(images, device) for images in loaded]
        cameras = known_cameras(manifest, "train", Needs(cameras=frozenset({"style"})))
        numbers, self.targets = numbered(cameras)
        self.styles = self.targets + len(splits) - 1
        others = [np.full(len(store), self.targets) for store in self.stores[1:]]
        self.own = torch.from_numpy(np.concatenate([numbers, *others]))
        self.size = size

    def batch(self, rows: Tensor) -> Tensor:
        """uint8 (b, 3, h, w) of rows of the target and, after it, the source."""
        first = len(self.stores[0])
        found = self.stores[0].batch(rows.clamp(max=first - 1))
        beyond = torch.nonzero(rows >= first).flatten()
        if len(beyond):
            found[beyond.to(found.device)] = self.stores[1].batch(rows[beyond] - first)
        return found

    def given(self, number: int, count: int, streams: Streams) -> Given:
        """What step ``number`` trains on, a function of seed and number alone."""
        generator = streams.torch("translate", number)
        rows = torch.randint(len(self.own), (count,), generator=generator)
        corner = torch.rand(2, count, generator=generator)
        flip = torch.rand(count, generator=generator) < 0.5
        order = torch.randperm(count, generator=generator)
        share = torch.rand(count, generator=generator)
        images = zoomed(as_input(self.batch(rows)), corner)
        device = images.device
        images = torch.where(flip.to(device)[:, None, None, None], images.flip(-1), images)
        own = self.own[rows]
        return Given(images, own.to(device), own[order].to(device), share.to(device))


def zoomed(images: Tensor, corner: Tensor) -> Tensor:
    """Windows of the old size of images (b, 3, h, w) enlarged by ZOOM, at ``corner`` (2, b), a share in [0, 1)."""
    height, width = images.shape[-2:]
    large = F.interpolate(images, scale_factor=ZOOM, mode="bilinear", align_corners=False)
    spare = torch.tensor([[large.shape[-2] - height + 1], [large.shape[-1] - width + 1]])
    top, left = (corner * spare).long().to(images.device)
    windows = large.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def train(
    images: Images,
    settings: TranslatorSettings,
    seed: int,
    out: Path,
    fingerprint: str,
    group: ProcessGroup,
    cache: Path,
) -> Path:
    """Train and write the generator and the sheet; returns the generator's file."""
    streams, device = Streams(seed), group.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.derive("init"))
        training = TranslatorTraining(settings, images.styles, images.size)
    for network in training.networks:
        network.to(device)
    key = {"settings": asdict(settings), "seed": seed, "data": fingerprint, "size": images.size, "device": device.type}
    checkpoint = Checkpoint(cache / "checkpoints", {**key, "code": source_hash([ROOT / name for name in CODE])})
    with locked(checkpoint.folder):
        kept = checkpoint.load(group)
        if kept:
            training.load(kept["training"])
        for number in trange(kept["step"] if kept else 0, settings.iterations, desc="translate", leave=False):
            training.step(number, images.given(number, settings.batch, streams))
            if (number + 1) % KEEP_EVERY == 0:
                checkpoint.save({"training": training.state(), "step": number + 1})
        file = save_generator(training.generator, settings, images.targets, out)
        with replacing(out / "sheet.png") as sheet:
            Image.fromarray(contact_sheet(training, images)).save(sheet, "PNG")
        checkpoint.delete()
    return file


def contact_sheet(training: TranslatorTraining, images: Images) -> np.ndarray:
    """(h, w, 3) pixels: a row for each of some images of every style, itself first, then in the target's styles."""
    rows = torch.cat([torch.nonzero(images.own == style).flatten()[:SHOWN] for style in range(images.styles)])
    pixels = images.batch(rows)
    columns = [pixels]
    for style in range(images.targets):
        wanted = torch.full((len(rows),), style)
        columns.append(as_pixels(translated(training.generator, pixels, wanted)))
    across = torch.cat(columns, dim=3)  # (rows, 3, h, columns x w)
    return across.permute(0, 2, 3, 1).flatten(0, 1).cpu().numpy()


if __name__ == "__main__":
    cli.run_main(main)
