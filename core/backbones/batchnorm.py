"""Batch normalisation in groups, as several GPUs would do it.

Published results of this field come from 4 or 8 GPUs under DataParallel: the batch is split into
consecutive chunks, every replica normalises its chunk by that chunk's statistics, and only the
first replica's running statistics survive. Users who train with one chunk report losses of 10 to
20 mAP: issues 8 and 9 of bupt-ai-cz/HHCL-ReID, 17, 25 and 35 of alibaba/cluster-contrast-reid,
31 of yxgeee/SpCL, 10 and 13 of yoonkicho/PPLR.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import UserError


class GroupedBatchNorm(_BatchNorm):
    """Batch norm whose training batch is split like ``torch.chunk`` into ``groups`` chunks.

    Chunks are consecutive and as large as the first, except the last one; a batch smaller than
    ``groups`` gives one chunk per sample, as DataParallel leaves replicas idle. A chunk that has a
    single value per channel cannot be normalised and is an error. With one group, and in eval mode,
    this is torch's batch norm.
    """

    groups: int = 1

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.groups == 1:
            return super().forward(input)
        first, *others = input.chunk(self.groups)
        smallest = others[-1] if others else first
        if smallest.numel() == smallest.shape[1]:
            raise UserError(
                f"batch norm in {self.groups} groups: a batch of {len(input)} leaves a group of "
                "one sample, which has no variance; use a batch size divisible by bn_groups, with "
                "at least 2 images per group"
            )
        # Only chunk 0 goes through the parent, which updates the running statistics.
        return torch.cat([super().forward(first), *map(self._normalise, others)])

    def _normalise(self, chunk: Tensor) -> Tensor:
        return F.batch_norm(chunk, None, None, self.weight, self.bias, training=True, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


class GroupedBatchNorm1d(GroupedBatchNorm, nn.BatchNorm1d):
    """GroupedBatchNorm over (B, C)."""


class GroupedBatchNorm2d(GroupedBatchNorm, nn.BatchNorm2d):
    """GroupedBatchNorm over (B, C, H, W)."""


def set_bn_groups(module: nn.Module, groups: int) -> None:
    """Let every batch norm inside ``module`` normalise in ``groups`` chunks.

    A plain torch batch norm cannot; meeting one is an error unless ``groups`` is 1, because it
    would silently train on other statistics than its neighbours.
    """
    if groups < 1:
        raise UserError(f"bn_groups must be at least 1, not {groups}")
    for name, layer in module.named_modules():
        if isinstance(layer, GroupedBatchNorm):
            layer.groups = groups
        elif isinstance(layer, _BatchNorm) and groups > 1:
            raise UserError(
                f"'{name}' is a {type(layer).__name__}, which cannot normalise in {groups} groups; "
                "build it as GroupedBatchNorm1d or GroupedBatchNorm2d of core.backbones.batchnorm"
            )


def chunk_sizes(batch: int, groups: int) -> list[int]:
    """Sizes of the chunks that ``batch`` samples are normalised in, for draws made per chunk."""
    return [len(chunk) for chunk in torch.empty(batch, 0).chunk(groups)] if batch else []


DOMAINS = ("target", "source")


class DomainBatchNorm(nn.Module):
    """A batch norm for each domain, weights and running statistics apart; ``active`` is the one in use."""

    def __init__(self, norm: GroupedBatchNorm) -> None:
        super().__init__()
        self.active = DOMAINS[0]
        for name in DOMAINS:
            self.add_module(name, copy.deepcopy(norm))

    def forward(self, input: Tensor) -> Tensor:
        normalised: Tensor = self.get_submodule(self.active)(input)
        return normalised


def per_domain(module: nn.Module) -> None:
    """Give every batch norm inside ``module`` a copy for each domain, all of them what the target's is now.

    In training and in the test the target's is used, but inside ``domain``. A method calls this in ``weights_loaded``,
    so that the copies start from the initial weights; called again, it starts them anew.
    """
    for layer in list(module.modules()):
        if isinstance(layer, DomainBatchNorm):
            for name in DOMAINS[1:]:
                layer.get_submodule(name).load_state_dict(layer.get_submodule(DOMAINS[0]).state_dict())
            continue
        for name, child in list(layer.named_children()):
            if isinstance(child, GroupedBatchNorm):
                layer.add_module(name, DomainBatchNorm(child))


@contextmanager
def domain(module: nn.Module, name: str) -> Iterator[None]:
    """Normalise by the batch norms of domain ``name`` (one of DOMAINS) inside, and by the target's again after it."""
    assert name in DOMAINS, f"no domain '{name}'; known: {DOMAINS}"
    layers = [layer for layer in module.modules() if isinstance(layer, DomainBatchNorm)]
    for layer in layers:
        layer.active = name
    try:
        yield
    finally:
        for layer in layers:
            layer.active = DOMAINS[0]
