"""A trained model in the hands of another program.

from pipeline.model import load_model
model = load_model("results/training/hhcl-rendered-0-resnet18_half-0")
found = model.embed(["a.jpg", "b.jpg"])         # {"feature": (2, D)}
model.distance(found, found)                    # (2, 2)

It reads a run's folder, the folder of its results, one of the weights that it kept, or what `publish` wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import methods
from core import distributed
from core.checkpoint import weights_name
from core.errors import UserError
from core.files import changed
from core.images import ImageStore, read_image
from core.method import Method, embed_all
from core.precision import weights_dtype
from evaluation.distances import checked_block, true_distance
from evaluation.verification import Verification
from pipeline.jobs import RUNS, TRAINING
from pipeline.records import (
    PUBLISHED,
    SCORED,
    TRAINED,
    PublishedRecord,
    ResultRecord,
    TrainRecord,
    read_record,
    read_result,
)
from pipeline.scoring import distance_blocks, load_method, read_whole
from pipeline.settings import code_hash

WEIGHTS = "model.safetensors"
CHUNK = 256  # queries whose distances are computed at once

Embedded = dict[str, Tensor]
Picture = str | Path | Image.Image


class Model:
    """A trained method in eval mode: embeds images and measures the distances that its results were scored by.

    name: run, dataset and seed. size: (height, width) that images are resized to. mean, std: pixel statistics per
    channel that they are normalised with. verification: the figures of its test, whose thresholds are in the unit of
    ``distance``; None where it was not scored. notes: what a user should know, for people.
    """

    def __init__(
        self, record: TrainRecord, weights: dict[str, Tensor], verification: Verification | None, device: str = "auto"
    ) -> None:
        self.record, self.verification = record, verification
        self.group = distributed.start(device)
        self.run, self.method = load_method(record)
        self.method.load_state_dict(weights)
        self.method.to(self.group.device, weights_dtype(self.run.config.precision)).eval()
        self.method.to(memory_format=torch.channels_last)
        self.notes = notes(record)

    @property
    def name(self) -> str:
        """The run, what it was trained on and its seed."""
        return f"{self.run.title} on {self.record.data.title}, seed {self.record.seed}"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.run.config.input.height, self.run.config.input.width

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, of values from 0 to 1."""
        return self.record.input.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Deviation of each channel."""
        return self.record.input.std

    @property
    def thresholds(self) -> dict[float, float]:
        """False-match rate of its test -> the largest distance at which it is not exceeded; of the rates known."""
        points = self.verification.at if self.verification else ()
        return {point.fpr: point.threshold for point in points if point.threshold is not None}

    @property
    def needs_cameras(self) -> bool:
        """Whether the test uses the camera of each image."""
        return "test" in methods.load(self.run.trains).needs(self.run.config).cameras

    def embed(self, images: Tensor | Sequence[Picture], cameras: np.ndarray | None = None) -> Embedded:
        """Outputs by name, on the CPU: ``feature`` (N, D), and what a method's own distance reads beside it.

        images: uint8 (N, 3, height, width) of this model's size, or files and Pillow images of any size. cameras (N,)
        are for a model that ``needs_cameras``, numbered from 0 as its dataset's; others ignore them. Raises UserError
        where they are missing, and what ``read_image`` raises.
        """
        if self.needs_cameras and cameras is None:
            raise UserError(
                f"{self.name} compares images with knowledge of their cameras, which a folder of images does not tell; "
                "choose a variant that needs none at the test"
            )
        pixels = images if isinstance(images, Tensor) else torch.stack([self.pixels(image) for image in images])
        if pixels.shape[2:] != self.size:
            raise UserError(f"{self.name} takes images of height x width {self.size}, not {tuple(pixels.shape[2:])}")
        known = np.asarray(cameras) if self.needs_cameras else None
        store = ImageStore(pixels, self.group.device)
        outputs = embed_all(self.method, store, self.run.config, (self.mean, self.std), self.group, known)
        read_by_distance = outputs if has_own_distance(self.method) else {"feature": outputs["feature"]}
        found = {name: value.cpu() for name, value in read_by_distance.items()}
        return found if known is None else {**found, "camera": torch.as_tensor(known)}

    def pixels(self, image: Picture) -> Tensor:
        """uint8 (3, height, width) of a file or a Pillow image, resized as in training."""
        if isinstance(image, Image.Image):
            height, width = self.size
            array = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
        else:
            array = read_image(Path(image), self.size)
        return torch.from_numpy(array.transpose(2, 0, 1).copy())

    def distance(self, query: Embedded, gallery: Embedded) -> np.ndarray:
        """(q, g) distances of ``embed``'s outputs, float32: Euclidean, or the method's own. Smaller is more alike."""
        return np.concatenate([block for _, block in self.distances(query, gallery)])

    def distances(self, query: Embedded, gallery: Embedded) -> Iterator[tuple[slice, np.ndarray]]:
        """``distance`` in blocks of queries, where all of it would need too much memory."""
        count, width = len(query["feature"]), len(gallery["feature"])
        blocks = distance_blocks(self.method, query, gallery)
        for start in range(0, count, CHUNK):
            rows = slice(start, min(start + CHUNK, count))
            block = checked_block(blocks(rows), range(rows.start, rows.stop), width)
            yield rows, true_distance(blocks, rows, block).astype(np.float32)


class Place(NamedTuple):
    """Where a model lies: the folder of its record, and its weights; None for those of the last epoch."""

    folder: Path
    weights: Path | None


def load_model(source: str | Path, device: str = "auto") -> Model:
    """The model of a run's folder, of the folder of its results, of weights that it kept, or of a published folder.

    ``device`` is ``auto`` (CUDA when there is one), ``cpu`` or ``cuda``. Raises UserError when there is no model there,
    when its files are not those recorded, or when the run failed.
    """
    place = find(Path(source))
    if (place.folder / PUBLISHED).is_file():
        published = read_published(place.folder)
        return Model(published, load_file(place.folder / WEIGHTS), published.verification, device)
    record, last = read_run(place.folder)
    weights = place.weights or last
    result = result_of(place.folder, record) if weights == last else None
    verification = result.verification if result else None
    return Model(record, torch.load(weights, map_location="cpu", weights_only=True), verification, device)


def find(source: Path) -> Place:
    """Where the model of a folder or file lies; raises UserError that says what would be one."""
    if source.is_file():
        if source.suffix == ".pt" and (source.parent.parent / TRAINED).is_file():
            return Place(source.parent.parent, source)
        if (source.parent / PUBLISHED).is_file():
            return Place(source.parent, None)
    elif (source / PUBLISHED).is_file() or (source / TRAINED).is_file():
        return Place(source, None)
    elif (source / SCORED).is_file():
        return Place(beside(source, TRAINING), None)
    raise UserError(
        f"{source} holds no model; name a folder of `train` (results/training/...), of its results (results/runs/...) "
        "or of `publish`"
    )


def beside(folder: Path, home: Path) -> Path:
    """The same job's folder in another home: results/runs/NAME -> results/training/NAME."""
    return folder.resolve().parent.parent / home.name / folder.resolve().name


def read_run(trained: Path) -> tuple[TrainRecord, Path]:
    """The record of a finished run and the weights of its last epoch, unharmed; raises UserError otherwise."""
    record = read_whole(trained)
    if record.status != "ok":
        raise UserError(f"{trained} has no model: its training failed ({record.reason})")
    return record, trained / "weights" / weights_name(record.cost.epochs)


def read_published(folder: Path) -> PublishedRecord:
    """What ``publish`` wrote, unharmed; raises UserError otherwise."""
    missing = f"{folder / PUBLISHED} does not exist; publish the run again"
    record = read_record(PublishedRecord, folder / PUBLISHED, missing)
    if fault := changed(folder, record.files):
        raise UserError(f"{folder} does not hold the model that its {PUBLISHED} describes: {fault}; get it again")
    return record


def result_of(trained: Path, record: TrainRecord) -> ResultRecord | None:
    """The run's test on its own dataset, where it lies beside as `evaluate` writes it."""
    evaluated = beside(trained, RUNS)
    if not (evaluated / SCORED).is_file():
        return None
    result = read_result(evaluated)
    return result if result.key == record.key and result.status == "ok" else None


def has_own_distance(method: Method) -> bool:
    """Whether the method measures distances in a way of its own."""
    return type(method).distance is not Method.distance


def notes(record: TrainRecord) -> tuple[str, ...]:
    """What has changed since the model was trained."""
    if record.code == code_hash(record.run.trains):
        return ()
    return (f"the code of {record.run.trains} or of the core has changed since this model was trained",)
