"""The suite's own trainer and its own test, watched: every quantity of a step goes into a Record."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor, nn

import core.clustering
import core.jaccard
import pipeline.scoring
from core import augment
from core.data import Batch, Labels
from core.engine import Step, Trainer
from core.method import Method
from tests.replay.record import SINGLE, Record

OWN = ("core.", "methods.")


class WatchedTrainer(Trainer):
    """Notes what goes into each epoch and step and what comes out; changes nothing."""

    record: Record
    where: str = "start"

    def start_noting(self, record: Record) -> None:
        """Note the start, and all that follows."""
        self.record = record
        self.kept: dict[str, list[float]] = {}
        self.method.register_forward_hook(lambda *call: self._note_rows("output", call[2], "image"))
        self._note_state()

    def _label(self, epoch: int) -> Labels:
        self.where = f"epoch {epoch + 1}"
        labels = super()._label(epoch)
        self.record.note(f"{self.where}, labels", labels.ids, "image")
        self._note_rows("labels", labels.extra, "image")
        self.record.note(f"{self.where}, new stage", [int(labels.new_stage)])
        if labels.notes:
            self.record.note_named(f"{self.where}, notes", labels.notes, "note")
        return labels

    def _extract(self, epoch: int) -> dict[str, Tensor]:
        outputs = super()._extract(epoch)
        self._note_rows("extracted", outputs, "image")
        return outputs

    def _batches(self, epoch: int, labels: Labels) -> Iterator[np.ndarray]:
        self._note_memories()
        yield from super()._batches(epoch, labels)

    def _load(self, step: Step, rows: np.ndarray, labels: Labels) -> Batch:
        self.where = f"epoch {step.epoch + 1}, step {step.number + 1}"
        self.record.note(f"{self.where}, batch", rows, "entry")
        batch = super()._load(step, rows, labels)
        self.record.note(f"{self.where}, place in the run", [float(batch.epoch)])
        self._note_batch(batch, "")
        if batch.source is not None:
            self.record.note(f"{self.where}, source batch", batch.source.indices, "entry")
            self._note_batch(batch.source, "source ")
        return batch

    def _note_batch(self, batch: Batch, side: str) -> None:
        given = {"targets": batch.targets, **batch.extra}
        if batch.cameras is not None:
            given["cameras"] = batch.cameras
        self._note_rows(f"{side}batch", given, "entry")
        self._note_rows(f"{side}images", {f"view {place}": view for place, view in enumerate(batch.images)}, "entry")

    def _step(self, step: Step, rows: np.ndarray, labels: Labels) -> dict[str, float]:
        values = super()._step(step, rows, labels)
        parameters = {name: value for name, value in self.method.named_parameters() if value.requires_grad}
        norms = {name: 0.0 if value.grad is None else value.grad.norm() for name, value in parameters.items()}
        for name, value in values.items():
            self.record.note(f"{self.where}, loss {name}", [value])
        self.record.note_named(f"{self.where}, gradient norm", norms, "parameter")
        self.record.note(f"{self.where}, learning rate", [group["lr"] for group in self.optimiser.param_groups])
        self._note_memories()
        return values

    def _record(self, epoch: int, labels: Labels, losses: dict[str, float]) -> None:
        super()._record(epoch, labels, losses)
        self.where = f"epoch {epoch + 1}, end"
        history = self.progress.history[-1]
        for name, value in history.items():
            if not name.startswith(("seconds_", "peak_")):
                self.record.note(f"{self.where}, history {name}", [value])
        self._note_state()

    def drawn(self, *arguments: Any, **named: Any) -> dict[str, Tensor]:
        """``augment.draw``, noted; each view of a step draws once."""
        params = DRAW(*arguments, **named)
        view = sum(name.startswith(f"{self.where}, flip") for name in self.record.quantities)
        self._note_rows("", {f"{name} of view {view}": values for name, values in params.items()}, "entry")
        return params

    def _note_rows(self, what: str, values: Mapping[str, Any], unit: str) -> None:
        for name, value in values.items():
            self.record.note(", ".join([self.where, f"{what} {name}".strip()]), value, unit)

    def _note_memories(self) -> None:
        """What the method remembers beside its weights; whole numbers only where they changed."""
        for name, values in remembered(self.method):
            key = f"{self.where}, {name if name.startswith('memory') else f'memory {name}'}"
            self.record.note(key, values)
            kept = self.record.quantities[key]
            if self.kept.get(name) == kept and all(isinstance(value, int) for value in kept):
                del self.record.quantities[key]
            self.kept[name] = kept

    def _note_state(self) -> None:
        """A checksum of every tensor of the method's state: a projection, so that rounding does not matter."""
        state = {name: value.flatten()[None] for name, value in self.method.state_dict().items()}
        sums = Record()
        for name, value in state.items():
            sums.note(name, value)
        self.record.note_named(f"{self.where}, weights", {k: v[0] for k, v in sums.quantities.items()}, "tensor")


DRAW = augment.draw


def remembered(method: Method) -> Iterator[tuple[str, Any]]:
    """Path and value of every tensor, array and number that the method keeps outside its modules."""
    for name, value in vars(method).items():
        if not name.startswith("_") and name not in ("training", "config", "capacity", "source_identities"):
            yield from _walk(name, value)


def _walk(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module) or callable(value):
        return
    if isinstance(value, (Tensor, np.ndarray)):
        if value.size if isinstance(value, np.ndarray) else value.numel():
            yield path, value
    elif isinstance(value, (bool, int, float)):
        yield path, [value]
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(f"{path}.{key}", item)
    elif hasattr(value, "_asdict"):
        yield from _walk(path, value._asdict())
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from _walk(f"{path}.{place}", item)
    elif type(value).__module__.startswith(OWN):
        for name, item in vars(value).items():
            # The rows of a memory are what its name stands for.
            yield from _walk(path if name == "rows" else f"{path}.{name}", item)


@contextmanager
def watching(trainer: WatchedTrainer) -> Iterator[None]:
    """Note draws, whole Jaccard graphs and DBSCAN radii, wherever a method asks for them."""
    graphs, radii = core.jaccard._mutual_distance, core.clustering._pairs_within
    record = trainer.record

    def count(what: str) -> int:
        return sum(name.startswith(f"{trainer.where}, {what}") for name in record.quantities)

    def graph_of(encoding: Any, limit: float | None) -> Any:
        whole = graphs(encoding)
        record.note(
            f"{trainer.where}, Jaccard graph {count('Jaccard')} {SINGLE}", whole.sum(axis=1, dtype=float), "image"
        )
        return graphs(encoding, limit)

    def pairs_within(distance: Any, eps: float) -> Any:
        record.note(f"{trainer.where}, radius of DBSCAN {count('radius')}", [eps])
        return radii(distance, eps)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(core.jaccard, "_mutual_distance", graph_of))
        stack.enter_context(mock.patch.object(core.clustering, "_pairs_within", pairs_within))
        stack.enter_context(mock.patch.object(augment, "draw", trainer.drawn))
        yield


@contextmanager
def watching_test(record: Record) -> Iterator[None]:
    """Note the distances that the protocol is given."""
    score = pipeline.scoring.score
    place = list(inspect.signature(score).parameters).index("distance_block")

    def noted(*arguments: Any, **named: Any) -> Any:
        block = arguments[place]
        record.note("test, distances", np.asarray(block(slice(0, None))), "query")
        return score(*arguments, **named)

    with mock.patch.object(pipeline.scoring, "score", noted):
        yield
