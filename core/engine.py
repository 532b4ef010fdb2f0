"""The training loop, once: label, fill memories, step, keep weights, checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from core.backbones.batchnorm import set_bn_groups
from core.checkpoint import Checkpoint
from core.config import Config, Optimiser, Schedule
from core.data import Batch, Labels, Pixels, TrainingData
from core.distributed import ProcessGroup, from_main, gather_outputs, share_buffers, wait
from core.errors import UserError
from core.images import reading_ahead
from core.method import Method
from core.neighbors import NonFiniteFeatures
from core.precision import autocast, weights_dtype
from core.rng import Streams
from core.timing import forget_peak, peak_memory


class RunFailed(RuntimeError):
    """Training cannot go on for a reason that lies in the run, not in the program: it becomes a row of the table."""


@dataclass
class Progress:
    """What a run has done so far; saved whole at every epoch's end, so that a resumed history has no seams."""

    epoch: int = 0
    images_seen: int = 0
    source_images_seen: int = 0
    collapsed: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    failure: str | None = None


@dataclass(frozen=True)
class Step:
    """A step's place in the run: ``number`` of the ``steps`` of ``epoch``, both from 0.

    source: (B_s,) rows of the source split that stand beside the target's, where the method has a source.
    """

    epoch: int
    number: int
    steps: int
    source: np.ndarray | None = None

    @property
    def place(self) -> float:
        """Epochs before this step: ``epoch`` at its first one, half an epoch more half-way through it."""
        return (self.epoch * self.steps + self.number) / self.steps


class Trainer:
    """Trains one method on one dataset; every random draw is a function of (seed, name, epoch)."""

    def __init__(
        self,
        method: Method,
        data: TrainingData,
        config: Config,
        streams: Streams,
        checkpoint: Checkpoint,
        group: ProcessGroup,
        watch: Callable[[list[dict[str, Any]]], None] | None = None,
    ) -> None:
        """``watch`` is shown the history on rank 0 after every epoch, once it is saved."""
        self.method, self.data, self.config = method, data, config
        self.streams, self.checkpoint, self.group = streams, checkpoint, group
        self.watch = watch
        self.dtype = weights_dtype(config.precision)
        data.computed_by(config)
        method.to(group.device, self.dtype)
        method.to(memory_format=torch.channels_last)  # a quarter faster on the CPU too
        self.network = wrap(method, group)
        self.optimiser = build_optimiser(method, config.optimiser)
        self.scaler = torch.amp.GradScaler(
            group.device.type, enabled=config.precision == "fp16" and group.device.type == "cuda"
        )
        self.progress = Progress()

    def fit(self) -> Progress:
        """Train to the end, from the last checkpoint if there is one; a failed run ends with its reason."""
        forget_peak(self.group.device)
        self._resume()
        if self.watch and self.group.main and self.progress.history:  # the last epoch may have been saved and not shown
            self.watch(self.progress.history)
        if self.group.main and self.config.schedule.epochs == 0:
            self.checkpoint.keep_weights(0, weights_of(self.method))
        epochs = range(self.progress.epoch, self.config.schedule.epochs)
        try:
            for epoch in epochs:
                self._refuse_collapse()
                self._epoch(epoch)
            self._refuse_collapse()
        except RunFailed as failure:
            self.progress.failure = str(failure)
        return self.progress

    def _resume(self) -> None:
        state = self.checkpoint.load(self.group)
        if state is None:
            return
        self.method.load_state_dict(state["method"])
        self.method.load_memory_state(state["memory"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        kept = kept_epochs(self.config.schedule, self.progress.epoch)
        from_main(lambda: self.checkpoint.require_weights(kept), self.group)

    def _save(self) -> None:
        """The state is complete at an epoch's end: streams are rederived, memories refilled or saved here."""
        if self.group.main:
            self.checkpoint.save(
                {
                    "method": self.method.state_dict(),
                    "memory": self.method.memory_state(),
                    "optimiser": self.optimiser.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "progress": vars(self.progress),
                }
            )
            if self.watch:
                self.watch(self.progress.history)
        wait(self.group)

    def _epoch(self, epoch: int) -> None:
        labels = self._label(epoch)
        if labels.new_stage:
            self.optimiser = build_optimiser(self.method, self.config.optimiser)
        losses = self._train(epoch, labels) if labels.clusters >= 2 else {}
        share_buffers(self.method, self.group)
        self._refuse_divergence(epoch)
        self._record(epoch, labels, losses)
        if self.group.main and epoch + 1 in kept_epochs(self.config.schedule, epoch + 1):
            self.checkpoint.keep_weights(epoch + 1, weights_of(self.method))
        self._save()

    def _refuse_collapse(self) -> None:
        """Judged by what is saved, so that a run resumed after its collapse ends as it would have."""
        if self.progress.collapsed < 2:
            return
        last = self.progress.history[-1]
        raise RunFailed(
            f"fewer than two clusters in epochs {last['epoch'] - 1} and {last['epoch']} (the last: {last['clusters']} "
            f"clusters, {last['outliers']} of {len(self.data)} images outliers); clustering.eps or the initial weights "
            "do not fit this data"
        )

    def _refuse_divergence(self, epoch: int) -> None:
        """The loss is checked before a step; what the last step of an epoch did shows only here."""
        state = self.method.state_dict()
        broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
        if broken:
            raise RunFailed(
                f"after epoch {epoch + 1}, {len(broken)} of {len(state)} weights and buffers hold values that are not "
                f"finite, {broken[0]} for one; the learning rate may be too high"
            )

    def _label(self, epoch: int) -> Labels:
        self.method.eval()
        title = f"epoch {epoch + 1} extract" if self.group.main else None
        self.data.new_epoch(partial(self._extract, epoch), title)
        if self.group.size > 1:
            self.data.features()  # a collective: all ranks extract before rank 0 clusters alone
        try:
            with self.data.extraction(allowed=False):
                labels: Labels = from_main(lambda: self.method.label(epoch, self.data), self.group)
        except NonFiniteFeatures as error:
            raise RunFailed(f"epoch {epoch + 1}: {error}") from error
        self.progress.collapsed = self.progress.collapsed + 1 if labels.clusters < 2 else 0
        self.progress.labels.append(torch.as_tensor(labels.ids))
        return labels

    def _extract(self, epoch: int) -> dict[str, Tensor]:
        return self.method.extract(self.data)

    def _train(self, epoch: int, labels: Labels) -> dict[str, float]:
        """All steps of one epoch; returns the mean of each loss term."""
        with self.data.timer("memories"), torch.no_grad():
            self.method.start_epoch(labels, self.data, self.streams.torch("start_epoch", epoch))
        # Layers with randomness of their own (dropout, drop path) draw from torch's global stream.
        torch.manual_seed(self.streams.derive(f"layers/{self.group.rank}", epoch))
        self.method.train()
        sums: dict[str, float] = {}
        with self.data.timer("train"):
            batches = list(self._batches(epoch, labels))
            sources = self._source_batches(epoch)
            for number, rows in enumerate(self._progress_bar(epoch, batches)):
                step = Step(epoch, number, len(batches), next(sources, None))
                values = self._step(step, rows, labels)
                sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
        return {name: value / len(batches) for name, value in sums.items()}

    def _batches(self, epoch: int, labels: Labels) -> Iterator[np.ndarray]:
        """``iterations`` batches, passing over the sampler as often as it takes; or exactly one pass."""
        rng = self.streams.numpy("sampler", epoch)
        wanted = self.config.schedule.iterations
        given = 0
        while wanted is None or given < wanted:
            before = given
            for rows in self.method.batches(labels, self.data, rng):
                yield rows
                given += 1
                if given == wanted:
                    return
            if wanted is None:
                return
            if given == before:
                raise RunFailed(f"the sampler gave no batch in epoch {epoch + 1}")

    def _source_batches(self, epoch: int) -> Iterator[np.ndarray]:
        """Batches of the source without end; none where the method has no source."""
        source = self.data.source
        return iter(()) if source is None else reading_ahead(self._passes_over(source, epoch), source.images)

    def _passes_over(self, source: TrainingData, epoch: int) -> Iterator[np.ndarray]:
        """Batches of the source, passing over it again and again."""
        rng = self.streams.numpy("source sampler", epoch)
        given, before = 0, -1
        while given > before:
            before = given
            for rows in self.method.source_batches(source, rng):
                yield rows
                given += 1
        raise RunFailed(f"the sampler gave no batch of the source in epoch {epoch + 1}")

    def _progress_bar(self, epoch: int, batches: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        title = f"epoch {epoch + 1}/{self.config.schedule.epochs} train"
        rows = reading_ahead(batches, self.data.images)
        bar: Iterator[np.ndarray] = iter(tqdm(rows, title, len(batches), leave=False, disable=not self.group.main))
        return bar

    def _step(self, step: Step, rows: np.ndarray, labels: Labels) -> dict[str, float]:
        set_rate(self.optimiser, self.config.optimiser.lr, self.config.schedule, step.place)
        set_decay(self.optimiser, self.config.optimiser, step.place / self.config.schedule.epochs)
        batch = self._load(step, rows, labels)
        with autocast(self.config.precision, self.group.device):
            local = self.network(batch)
        # Memory and loss mathematics stay in float32 (or 64) whatever the network computed in.
        full = {name: value.to(self.dtype) for name, value in local.items()}
        beside = 0 if step.source is None else len(step.source)
        output = gather_outputs(full, self.group, len(rows), beside)
        terms = self.method.loss(output, batch)
        values = {name: float(term.detach()) for name, term in terms.items()}
        if not all(math.isfinite(value) for value in values.values()):
            raise RunFailed(
                f"the loss is not finite in epoch {step.epoch + 1}, step {step.number + 1}: {values}; "
                f"training rows of the batch: {rows.tolist()}"
                + ("" if step.source is None else f"; of the source: {step.source.tolist()}")
            )
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(torch.stack(list(terms.values())).sum()).backward()
        if self.config.optimiser.clip is not None:
            self.scaler.unscale_(self.optimiser)
            clip_gradients(self.method, self.config.optimiser.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        with torch.no_grad():
            detached = {name: value.detach() for name, value in output.items()}
            self.method.after_step(detached, batch)
        self.progress.images_seen += len(rows)
        self.progress.source_images_seen += beside
        return values

    def _load(self, step: Step, rows: np.ndarray, labels: Labels) -> Batch:
        """The target's batch with its labels, and beside it the source's, whose labels are its people."""
        batch = self._side(step, self.data, rows, labels.ids, labels.extra)
        if step.source is None or self.data.source is None:
            return batch
        source = self._side(step, self.data.source, step.source, self.data.source.identities, {}, "source/")
        return replace(batch, source=source)

    def _side(
        self,
        step: Step,
        data: TrainingData,
        rows: np.ndarray,
        ids: np.ndarray,
        extra: Mapping[str, Tensor],
        streams: str = "",
    ) -> Batch:
        """The full batch's labels, and this rank's part of the views that the method makes of its images."""
        device = self.group.device
        part = self.group.part(len(rows))
        indices = torch.as_tensor(rows)
        stream = partial(self._stream, step, streams)
        order = torch.randperm(len(rows), generator=stream("order"))
        pixels = Pixels(data, indices, order, part, stream, self.config.augment, self.dtype)
        cameras = torch.as_tensor(data.cameras("loss")[rows]) if "loss" in data.needs.cameras else None
        return Batch(
            images=self.method.make_views(pixels),
            indices=indices.to(device),
            targets=torch.as_tensor(ids[rows]).to(device),
            cameras=None if cameras is None else cameras.to(device),
            extra={name: value[indices].to(device) for name, value in extra.items()},
            epoch=step.place,
            part=part,
            order=order.to(device),
            progress=step.place / self.config.schedule.epochs,
        )

    def _stream(self, step: Step, side: str, name: str) -> torch.Generator:
        """What is drawn in a step draws from a stream of its own."""
        return self.streams.torch(f"{side}{name}/{step.number}", step.epoch)

    def _record(self, epoch: int, labels: Labels, losses: dict[str, float]) -> None:
        seconds = {f"seconds_{name}": value for name, value in self.data.timer.take().items()}
        memory = {f"peak_{name}": value for name, value in peak_memory(self.group.device).items()}
        seen = {"images_seen": self.progress.images_seen}
        if self.data.source:
            seen["source_images_seen"] = self.progress.source_images_seen
        self.progress.epoch = epoch + 1
        self.progress.history.append(
            {
                "epoch": epoch + 1,
                "lr": self.optimiser.param_groups[0]["lr"],
                **{f"loss_{name}": value for name, value in losses.items()},
                "clusters": labels.clusters,
                "outliers": labels.outliers,
                **labels.notes,
                **self.data.notes,
                **seen,
                **seconds,
                **memory,
            }
        )


def wrap(method: Method, group: ProcessGroup) -> nn.Module:
    """The method itself, or DDP over it with each rank's share of the batch-norm groups.

    DDP copies rank 0's running statistics, those of chunk 0, to every rank before each step.
    """
    groups = method.config.backbone.bn_groups
    if group.size == 1:
        return method
    if groups % group.size:
        raise UserError(
            f"backbone.bn_groups {groups} cannot be shared out over {group.size} processes: batch-norm statistics "
            f"are per process, so make it a multiple of {group.size}"
        )
    set_bn_groups(method, groups // group.size)
    ids = [group.device.index] if group.device.type == "cuda" else None
    return DistributedDataParallel(method, device_ids=ids)


def kept_epochs(schedule: Schedule, done: int) -> list[int]:
    """After which of the first ``done`` epochs weights are kept: every ``eval_every`` and the last; 0 of no epoch."""
    every = range(1, done + 1)
    kept = [epoch for epoch in every if epoch % schedule.eval_every == 0 or epoch == schedule.epochs]
    return [0] if schedule.epochs == 0 else kept


def build_optimiser(method: Method, config: Optimiser) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD over the method's groups.

    A group may scale the rate with ``lr_scale``, and keeps a ``weight_decay`` that it states from first to last.
    """
    groups = [{"lr_scale": 1.0, "own_decay": "weight_decay" in group, **group} for group in method.param_groups()]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, config.lr, momentum=0.9, weight_decay=config.weight_decay, nesterov=config.nesterov
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, config.lr, weight_decay=config.weight_decay)


def rate_factor(schedule: Schedule, place: float) -> float:
    """Share of the base rate at a place in the run, in epochs from 0: linear warm-up, then ``fallen``.

    A warm-up of whole epochs rises where an epoch starts, as the papers' schedulers do, any other, and the one before
    a cosine, at every step.
    """
    factor = fallen(schedule, place)
    if place < schedule.warmup:
        start = schedule.warmup_factor
        by_epoch = schedule.warmup % 1 == 0 and not schedule.cosine
        risen = math.floor(place) if by_epoch else place
        factor *= start + (1 - start) * risen / schedule.warmup
    return factor


def fallen(schedule: Schedule, place: float) -> float:
    """Share of the base rate that the steps of ``gamma``, the milestones or the cosine leave at a place in the run."""
    if schedule.cosine:
        falling = schedule.epochs - schedule.warmup
        return along_cosine(1.0, schedule.cosine_end, max(0.0, place - schedule.warmup) / falling)
    if schedule.milestones:
        return schedule.gamma ** sum(place >= milestone for milestone in schedule.milestones)
    # The quotient of two rounded numbers may fall short of the whole number that it stands for.
    falls = math.floor(place / schedule.step + 1e-9) if schedule.step else 0
    return schedule.gamma**falls


def along_cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` to ``end`` along half a cosine, ``progress`` in [0, 1]."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def set_rate(optimiser: torch.optim.Optimizer, lr: float, schedule: Schedule, place: float) -> None:
    """Set the rate as a function of the place in the run alone, so that a resumed run needs no scheduler state."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["lr_scale"] * rate_factor(schedule, place)


def set_decay(optimiser: torch.optim.Optimizer, config: Optimiser, progress: float) -> None:
    """Set the weight decay of every group that has none of its own, at a share ``progress`` of the run."""
    if config.weight_decay_end is None:
        return
    for group in optimiser.param_groups:
        if not group["own_decay"]:
            group["weight_decay"] = along_cosine(config.weight_decay, config.weight_decay_end, progress)


def clip_gradients(method: Method, most: float) -> None:
    """Scale each parameter's gradient down to a norm of at most ``most``, each by itself, as DINO's code does."""
    for parameter in method.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_((most / (parameter.grad.norm() + 1e-6)).clamp(max=1.0))


def weights_of(method: Method) -> dict[str, Tensor]:
    """The method's weights on the CPU, for saving."""
    return {name: value.detach().cpu().clone() for name, value in method.state_dict().items()}
