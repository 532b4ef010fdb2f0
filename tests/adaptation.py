"""A small domain-adaptive method that uses what the engine offers such methods, trained on drawn people.

`python -m tests.adaptation OUT` trains it in one process or in several, on the manifest in the folder of OUT.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from core import distributed
from core.backbones.net import BACKBONES, Embedder
from core.config import Backbone, Config, Input, Optimiser, Sampler, Schedule
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.distributed import ProcessGroup
from core.engine import Trainer
from core.manifest import Manifest, read_manifest
from core.memory import cluster_means
from core.method import Method
from core.sampling import shuffled_batches
from pipeline.initial import Initial
from pipeline.records import TrainRecord
from pipeline.settings import Run
from pipeline.train import train
from tests.replay.networks import NETWORKS


def interrupt(patch: pytest.MonkeyPatch, at: int) -> None:
    """Have training stop, as by Ctrl-C, when it comes to the epoch ``at``, counted from 0."""
    whole = Trainer._epoch

    def stops(trainer: Trainer, epoch: int) -> None:
        if epoch == at:
            raise KeyboardInterrupt
        whole(trainer, epoch)

    patch.setattr(Trainer, "_epoch", stops)


@dataclass(frozen=True)
class Settings:
    """``target_weight`` 0 is training on the source alone."""

    target_weight: float = 1.0


class Adaptation(Method):
    """Source people are classified; a target image and its recoloured copy are to be classified alike."""

    Settings = Settings

    def __init__(self, config: Config, embedder: Embedder, capacity: int, source_identities: int) -> None:
        super().__init__(config, embedder, capacity, source_identities)
        self.classifier = nn.Linear(embedder.dim, source_identities, bias=False)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        return Needs(cameras=frozenset({"style"}), views=2, source=True)

    def make_views(self, pixels: Pixels) -> list[Tensor]:
        """Of a target image also a copy in another colour, drawn from its camera's; both cropped alike."""
        if pixels.domain == "source":
            return super().make_views(pixels)
        tint = torch.rand(len(pixels.rows), 3, generator=pixels.stream("tint"))[pixels.part]
        tinted = pixels.images * (tint / (1 + pixels.cameras[:, None]))[:, :, None, None]
        return [pixels.augmented(0), pixels.augmented(0, images=tinted.to(torch.uint8))]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        assert batch.source is not None, "declared in needs"
        output = {"source_logits": self._logits(batch.source.images[0])}
        return output | {f"logits_{view}": self._logits(images) for view, images in enumerate(batch.images)}

    def _logits(self, images: Tensor) -> Tensor:
        return 10 * self.classifier(self.embedder(images)["feature"])

    def extract(self, data: TrainingData) -> dict[str, Tensor]:
        """Features of darkened images beside those of the images."""
        darkened = data.extract(lambda pixels, rows: self.embed(data.prepare(pixels // 2)))
        return super().extract(data) | {"darkened": darkened["feature"]}

    def label(self, epoch: int, data: TrainingData) -> Labels:
        """Every image by itself."""
        apart = (data.embedded("darkened") - data.features()).norm(dim=1).mean()
        return Labels(np.arange(len(data)), notes={"apart": float(apart)})

    def start_epoch(self, labels: Labels, data: TrainingData, generator: torch.Generator) -> None:
        """The classifier starts every epoch at the mean feature of each person of the source."""
        source = data.source
        assert source is not None, "declared in needs"
        features = source.extract(lambda pixels, rows: self.embed(source.prepare(pixels)))["feature"]
        self.classifier.weight.copy_(cluster_means(features, source.identities))

    def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
        return shuffled_batches(len(data), 12, rng)

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        assert batch.source is not None, "declared in needs"
        first, second = (output[f"logits_{view}"].log_softmax(1) for view in range(2))
        alike = F.kl_div(second, first, reduction="batchmean", log_target=True)
        return {
            "source": F.cross_entropy(output["source_logits"], batch.source.targets),
            "target": self.config.settings.target_weight * alike,
        }


def small_run(name: str = "adaptation", **changes: object) -> Run:
    """Two epochs of two steps; 12 images of the target and 16 of the source a step."""
    config = Config(
        Settings(),
        Input(32, 16),
        Backbone("replay_cnn", bn_groups=2),
        sampler=Sampler(4, 4, uses_camera=False),
        optimiser=Optimiser(lr=1e-3),
        schedule=Schedule(epochs=2, iterations=2, eval_every=1),
        precision="fp64",
        extraction_batch=16,
    )
    return Run(name, name, "default", "replay_cnn", "tiny", "rendered", replace(config, **changes))


@contextmanager
def known(method: type[Method] = Adaptation) -> Iterator[None]:
    """The suite finds the method by whatever name, and its network."""
    with mock.patch.object(methods, "load", return_value=method), mock.patch.dict(BACKBONES, NETWORKS):
        yield


def train_small(
    manifest: Manifest, out: Path, group: ProcessGroup, method: type[Method] = Adaptation, **changes: object
) -> TrainRecord:
    """Train the method from random weights as the pipeline does; weights lie in ``out``."""
    with known(method):
        cache = out.with_name(f"{out.name}-cache")
        return train(small_run(**changes), manifest, Initial(None, "random", None), 0, out, group, cache)


def main(out: Path) -> None:
    """Train in as many processes as torchrun started."""
    torch.set_num_threads(1)
    group = distributed.start("cpu")
    try:
        train_small(read_manifest(out.parent), out, group)
    finally:
        distributed.finish(group)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
