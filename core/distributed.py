"""One process or several: the same code, with memories and labels identical on every rank.

Every rank draws the full batch and its augmentation, computes its own slice, and sees the outputs of all ranks in
the loss, so an in-batch term means the same on one process and on eight.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core.allocation import keep_freed_memory
from core.errors import UserError

# How long a rank waits for the others: rank 0 clusters alone, on large data for longer than NCCL's 10 minutes.
PATIENCE = timedelta(days=1)
SOURCE = "source_"  # how the names of outputs begin whose rows are those of the source batch


@dataclass(frozen=True)
class ProcessGroup:
    """This process among the others: ``rank`` of ``size``, computing on ``device``."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """This rank's contiguous share of a batch; ranks differ by at most one sample, as BN chunks do."""
        share = -(-batch // self.size)
        return slice(min(batch, self.rank * share), min(batch, (self.rank + 1) * share))


def start(device: str) -> ProcessGroup:
    """Join the processes that torchrun started, or be the only one.

    ``device`` is ``auto`` (CUDA when there is one), ``cpu`` or ``cuda``. A rank that ends takes the others with it
    (torchrun sees to that), so that they need not be told by a time-out.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda was asked for, but torch sees no CUDA device; use --device cpu")
    if device == "cuda":
        repeatable_cuda()
    else:
        keep_freed_memory()
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return ProcessGroup(0, 1, torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"))
    place = torch.device("cpu")
    if device == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), place)


def repeatable_cuda() -> None:
    """fp32 means fp32 (torch lets convolutions use TF32 otherwise), and a kernel gives the same sum every time."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def finish(group: ProcessGroup) -> None:
    """Leave the process group."""
    if group.size > 1:
        dist.destroy_process_group()


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, in rank order. Every rank computes the whole loss, so the gradient of this rank's rows is
    its slice of the full gradient, times the number of processes that DDP's mean divides by again."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: ProcessGroup, batch: int) -> Tensor:
        ctx.part, ctx.size = group.part(batch), group.size
        return _all_rows(local, group, batch)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.part] * ctx.size, None, None


def gather_outputs(outputs: dict[str, Tensor], group: ProcessGroup, batch: int, source: int = 0) -> dict[str, Tensor]:
    """Concatenate every rank's rows of each named output, with gradient; the identity on one process.

    An output has a row for each of ``batch`` images; or, where its name begins with ``source_`` and there are any, for
    each of ``source`` images. Raises UserError for one whose rows are not this rank's.
    """
    sizes = {name: source if source and name.startswith(SOURCE) else batch for name in outputs}
    for name, value in outputs.items():
        part = group.part(sizes[name])
        if source and len(value) != part.stop - part.start:
            raise UserError(
                f"the output '{name}' has {len(value)} rows, but this process has {part.stop - part.start} images of "
                f"its batch; outputs of the source batch, and no others, have names that begin with '{SOURCE}'"
            )
    if group.size == 1:
        return outputs
    return {name: _GatherRows.apply(value, group, sizes[name]) for name, value in outputs.items()}


def _all_rows(local: Tensor, group: ProcessGroup, batch: int) -> Tensor:
    share = -(-batch // group.size)
    padded = local.new_zeros((share, *local.shape[1:]))
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(group.size)]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat(parts)[:batch]


def merge_chunks(mine: dict[int, dict[str, Tensor]], count: int, group: ProcessGroup) -> list[dict[str, Tensor]]:
    """Chunk ``i`` was computed by rank ``i % size``; return all ``count`` chunks in order, on every rank.

    Ranks tell each other the forms of their chunks, and then each chunk goes out as it lies in memory: nothing is
    pickled, and beside the result a rank holds one chunk.
    """
    if group.size == 1:
        return [{name: value.to(group.device) for name, value in mine[i].items()} for i in range(count)]
    forms: list[Any] = [None] * group.size
    own = {i: {name: Form.of(value) for name, value in chunk.items()} for i, chunk in mine.items()}
    dist.all_gather_object(forms, own)
    merged = []
    for i in range(count):
        sender, values = i % group.size, mine.get(i, {})
        merged.append({name: _sent(values.get(name), form, sender, group) for name, form in forms[sender][i].items()})
    return merged


class Form(NamedTuple):
    """Shape, strides without gaps, and type of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Tensor) -> Form:
        """Of a copy of ``value``."""
        return cls(tuple(value.shape), torch.empty_like(value, device="meta").stride(), value.dtype)


def _sent(value: Tensor | None, form: Form, sender: int, group: ProcessGroup) -> Tensor:
    """The sender's ``value``, on this rank's device; byte by byte, so that every type can be sent."""
    dense = torch.empty_strided(form.shape, form.strides, dtype=form.dtype, device=group.device)
    if value is not None:
        dense.copy_(value)
    if dense.numel():
        dist.broadcast(dense.as_strided((dense.numel(),), (1,)).view(torch.uint8), src=sender)
    return dense


def from_main(compute: Callable[[], Any], group: ProcessGroup) -> Any:
    """Run ``compute`` on rank 0 and hand its (picklable) result to every rank; its error is raised on every rank."""
    if group.size == 1:
        return compute()
    box: list[Any] = [None, None]
    if group.main:
        try:
            box[0] = compute()
        except Exception as error:  # carried to the other ranks, which would otherwise wait for ever
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def share_buffers(module: nn.Module, group: ProcessGroup) -> None:
    """Give every rank rank 0's buffers: batch-norm running statistics follow chunk 0, which rank 0 holds."""
    if group.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def wait(group: ProcessGroup) -> None:
    """Wait until every rank is here."""
    if group.size > 1:
        dist.barrier()
