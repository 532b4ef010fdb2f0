"""The suite's own trainer, fed the batches of an official training run, step by step (tests/golden/README_lockstep.md).

Three things are given: the backbone (the file's two convolutions), the batches, and the augmentation (the file's
flips, nothing else). All else is ``core.engine.Trainer`` and the method: features, labels, memories, losses,
gradients, optimiser, rates, batch-norm statistics and mAP, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import methods
from core import augment, config
from core.backbones.net import Embedder
from core.backbones.pooling import AveragePooling
from core.data import Labels, TrainingData
from core.distributed import ProcessGroup
from core.engine import Step, Trainer
from core.images import ImageStore
from core.method import Method
from core.rng import Streams
from evaluation.ranking import evaluate_features
from tests.no_checkpoint import NoCheckpoint
from tests.progress import no_bars

Arrays = Mapping[str, np.ndarray]
Comparison = tuple[str, np.ndarray, np.ndarray]


class OtherLabels(Exception):
    """The recorded batches fit the recorded labels only, so a run with others ends here."""


class TwoConvolutions(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x)))))): 3 x 3, stride 2, padding 1, no bias."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, first, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)

    def forward(self, images: Tensor, after: None = None) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(images)))
        return torch.relu(self.bn2(self.conv2(hidden)))


class LockstepTrainer(Trainer):
    """The suite's trainer on the file's batches; ``compared`` collects ours and theirs as it goes."""

    flips: Tensor

    def __init__(self, gold: Arrays, method: Method, data: TrainingData, cameras: np.ndarray) -> None:
        super().__init__(method, data, method.config, Streams(0), NoCheckpoint(), data.group)
        self.gold, self.cameras = gold, cameras
        self.compared: list[Comparison] = []

    def compare(self, what: str, ours: Any, key: str, place: int | None = None, relative: bool = False) -> None:
        """Note ours and theirs; ``relative``: both over the largest entry of theirs."""
        theirs = self.gold[key] if place is None else self.gold[key][place]
        scale = float(np.abs(theirs).max()) if relative else 1.0
        self.compared.append((what, np.asarray(ours) / scale, np.asarray(theirs) / scale))

    def _label(self, epoch: int) -> Labels:
        labels = super()._label(epoch)
        if epoch == 0:
            self.compare("features_0", self.data.features(), "features_0")
        theirs = self.gold[f"labels_{epoch}"]
        ours = labels.extra["class"].numpy() if "class" in labels.extra else labels.ids
        if "class" in labels.extra:  # numbers of classes have gaps in the file: a partition is compared
            ours, theirs = (np.unique(ids, return_index=True, return_inverse=True)[1:] for ids in (ours, theirs))
            ours, theirs = (first[inverse] for first, inverse in (ours, theirs))
        self.compared.append((f"labels_{epoch}", ours, theirs))
        if not np.array_equal(ours, theirs):
            raise OtherLabels
        return labels

    def _batches(self, epoch: int, labels: Labels) -> Iterator[np.ndarray]:
        if f"memory_{epoch}" in self.gold:
            self.compare(f"memory_{epoch}", memory_rows(self.method), f"memory_{epoch}")
        for rows in self.gold[f"rows_{epoch}"]:
            yield rows.astype(np.int64)

    def draw(self, settings: augment.Augment, batch: int, *size: Any) -> dict[str, Tensor]:
        """The file's flips in the form of ``augment.draw``."""
        still = torch.zeros(batch, 2, dtype=torch.int64)
        return {"flip": self.flips, "shift": still, "erase": still.repeat(1, 2), "fill": torch.zeros(batch, 3)}

    def _step(self, at: Step, rows: np.ndarray, labels: Labels) -> dict[str, float]:
        epoch, step = at.epoch, at.number
        self.flips = torch.from_numpy(self.gold[f"flips_{epoch}"][step])
        values = super()._step(at, rows, labels)
        where = f"epoch {epoch + 1} step {step + 1}"
        self.compare(f"{where} loss", sum(values.values()), f"loss_{epoch}", step, relative=True)
        parameters = dict(self.method.named_parameters())
        gradients = [parameters[suite_name(name)].grad for name in self.gold["gradient_names"]]
        norms = [float(gradient.norm()) for gradient in gradients if gradient is not None]
        self.compare(f"{where} gradient_norm", norms, f"gradient_norm_{epoch}", step, relative=True)
        bank = memory_rows(self.method)
        mark = torch.arange(1, len(bank) + 1, dtype=bank.dtype) @ bank
        self.compare(f"{where} memory_mark", mark, f"memory_mark_{epoch}", step, relative=True)
        return values

    def _epoch(self, epoch: int) -> None:
        super()._epoch(epoch)
        self.compare(f"lr_{epoch}", self.optimiser.param_groups[0]["lr"], f"lr_{epoch}")
        self.compare(f"memory_end_{epoch}", memory_rows(self.method), f"memory_end_{epoch}")
        state = self.method.state_dict()
        prefix = f"state_{epoch + 1}."
        for key in (key for key in self.gold if key.startswith(prefix)):
            self.compare(key, state[suite_name(key.removeprefix(prefix))], key)
        self.method.eval()
        features = self._extract(epoch)["feature"].numpy()
        self.compare(f"features_{epoch + 1}", features, f"features_{epoch + 1}")
        query, people, cameras = self.gold["query"], self.gold["person_ids"].astype(np.int64), self.cameras
        scores = evaluate_features(features[query], features, people[query], people, cameras[query], cameras)
        self.compare(f"mAP after epoch {epoch + 1}", scores.mAP, "mAP", epoch)


def lockstep(data: Arrays) -> Iterator[Comparison]:
    """Every recorded quantity of the file's training, in the order in which it arises."""
    gold = dict(data)
    name = str(gold["method"])
    kind = methods.load(name)
    settings = config_of(gold, kind.Settings)
    first, second = (len(gold[f"state_0.bn{layer}.weight"]) for layer in (1, 2))
    method = kind(settings, Embedder(TwoConvolutions(first, second), AveragePooling(), second), len(gold["images"]))
    method.double()  # before the weights, which float32 parameters would round
    start = {key.removeprefix("state_0."): value for key, value in gold.items() if key.startswith("state_0.")}
    method.load_state_dict({suite_name(key): torch.from_numpy(value) for key, value in start.items()})
    group = ProcessGroup(0, 1, torch.device("cpu"))
    cameras = gold["cameras"].astype(np.int64)
    mean, std = tuple(gold["mean"].tolist()), tuple(gold["std"].tolist())
    images = ImageStore(torch.from_numpy(gold["images"]), group.device)
    trainer = LockstepTrainer(
        gold, method, TrainingData(images, kind.needs(settings), group, cameras, None, mean, std), cameras
    )
    try:
        with no_bars(), mock.patch.object(augment, "draw", trainer.draw):
            progress = trainer.fit()
    except OtherLabels:
        yield from trainer.compared
        return
    assert progress.failure is None, progress.failure
    assert progress.epoch == gold["epochs"], f"{progress.epoch} epochs were trained instead of {gold['epochs']}"
    yield from trainer.compared


def config_of(gold: Arrays, settings: type) -> config.Config:
    """The run's configuration, of the file's scalars."""

    def pick(*names: str) -> dict[str, Any]:
        return {name: gold[name].item() for name in names}

    return config.Config(
        settings=settings(**own_settings(gold)),
        backbone=config.Backbone(bn_groups=1),
        sampler=config.Sampler(**pick("identities", "instances")),
        clustering=config.Clustering(**pick("k1", "k2", "eps", "min_samples")),
        optimiser=config.Optimiser(**pick("lr", "weight_decay")),
        schedule=config.Schedule(**pick("epochs", "iterations", "step", "gamma")),
        precision="fp64",
    )


def own_settings(gold: Arrays) -> dict[str, Any]:
    """The method's own settings, of the file's scalars."""
    shared = {"temperature": gold["temperature"].item(), "momentum": gold["momentum"].item()}
    method = str(gold["method"])
    if method == "cluster_contrast":
        return {**shared, "update": str(gold["update"])}
    if method == "hhcl":  # the file has one weight w: w (L_hard + (1 - w) L_mean)
        weight = gold["hard_weight"].item()
        return {**shared, "hard_memory": "momentum", "w_hard": weight, "w_mean": weight * (1 - weight)}
    gap, epsilon, share = (gold[name].item() for name in ("eps_gap", "epsilon", "independence_share"))
    return {**shared, "gap": gap, "epsilon": epsilon, "independence_share": share}


def suite_name(name: str) -> str:
    """A parameter's name in the suite's method, of its name in the file."""
    if name.startswith("neck."):
        return f"embedder.bnneck.{name.removeprefix('neck.')}"
    return f"embedder.backbone.{name}"


def memory_rows(method: Any) -> Tensor:
    """(R, D) rows of the method's memory; HHCL's hard ones, then its mean ones."""
    if hasattr(method, "hard"):
        return torch.cat([method.hard.rows, method.mean.rows])
    rows: Tensor = (method.memory if hasattr(method, "memory") else method.instances).rows
    return rows
