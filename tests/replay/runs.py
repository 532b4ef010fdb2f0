"""Which runs are replayed, and one of them from drawn people to metrics."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

import methods
from core.augment import normalise
from core.backbones.net import BACKBONES
from core.data import TrainingData
from core.distributed import ProcessGroup
from core.method import Method
from core.rng import Streams
from core.validation import read_mapping
from pipeline import assemble, layers, scoring, settings
from pipeline.initial import Initial
from pipeline.settings import Run
from tests.no_checkpoint import NoCheckpoint
from tests.progress import no_bars
from tests.replay.networks import NETWORKS
from tests.replay.people import write_dataset
from tests.replay.record import Record
from tests.replay.watch import WatchedTrainer, watching, watching_test
from tests.replay.weights import fill

HERE = Path(__file__).parent
SETTINGS = read_mapping(HERE / "settings.yaml")
CPU = ProcessGroup(0, 1, torch.device("cpu"))


class Replayed(NamedTuple):
    """A run: a method's variant on a kind of backbone, cnn or vit."""

    method: str
    variant: str
    kind: str

    @property
    def name(self) -> str:
        """As printed and as called for."""
        return f"{self.method}-{self.variant}@{self.kind}"


def runs_of(method: str) -> list[Replayed]:
    """Every variant on the paper's kind of backbone; the first on the other kind too, where settings.yaml says so."""
    paper = (layers.method_config(method).get("backbone") or {}).get("name", "")
    own = "vit" if settings.is_transformer(paper) else "cnn"
    variants = layers.variants(method)
    also = [kind for kind, listed in SETTINGS["also"].items() if method in listed and kind != own]
    return [Replayed(method, variant, own) for variant in variants] + [
        Replayed(method, variants[0], kind) for kind in also
    ]


def resolve_replay(replayed: Replayed) -> Run:
    """The paper's settings, made small by settings.yaml, and the variant's."""
    method, variant, kind = replayed
    written = layers.method_config(method)
    named = dict(layers.leaves((written.get("variants") or {}).get(variant) or {}))
    changes = {
        **dict(layers.leaves(layers.without(SETTINGS["all"], named))),
        **dict(layers.leaves(SETTINGS["methods"].get(method) or {})),
        "backbone.name": SETTINGS["backbones"][kind],
    }
    assignments = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    name = f"{method}-{variant}" if "variants" in written else method
    return settings.resolve_run(name, "rendered", "published", assignments=assignments, pretrains=True)


def replay(replayed: Replayed, record: Record) -> None:
    """Train and test the run as the pipeline does, on drawn people; note what it does, quantity by quantity."""
    run = resolve_replay(replayed)
    seed = SETTINGS["seeds"].get(replayed.method, 0)
    with tempfile.TemporaryDirectory() as place, no_bars(), mock.patch.dict(BACKBONES, NETWORKS):
        folder = Path(place)
        manifest = write_dataset(folder, seed)
        needs = methods.load(run.method).needs(run.config)
        initial = Initial(None, "replay", None)
        data, sizes = assemble.training_data(run, manifest, needs, initial, CPU, folder / "cache")
        streams = Streams(seed)
        method = assemble.build_method(run, sizes, streams, None)
        set_out(method, data, assemble.known_cameras(manifest, needs.trains_on, needs), seed)
        trainer = WatchedTrainer(method, data, run.config, streams, NoCheckpoint(), CPU)
        trainer.start_noting(record)
        with watching(trainer):
            progress = trainer.fit()
        record.note("end, failed", [int(progress.failure is not None)])
        trained = SimpleNamespace(input=initial)  # of a training's record the test reads mean and std alone
        test = scoring.TestSplit(manifest, run, trained, CPU, folder / "cache")
        with watching_test(record):
            scores = test.score(method).ranking
    for name, value in scores.summary().items():
        record.note(f"test, {name}", [value])
    record.note("test, average precision", scores.per_query["ap"].to_numpy(), "query")


def set_out(method: Method, data: TrainingData, cameras: np.ndarray, seed: int) -> None:
    """Weights of the replay's own, with the training images' statistics in the embedder."""
    pixels = normalise(data.images.batch(torch.arange(len(data))), data.mean, data.std)
    fill(method, pixels.double(), torch.as_tensor(cameras), seed)
