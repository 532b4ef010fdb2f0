"""A teacher: a network that learns by following another one."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Teacher(nn.Module):
    """A copy of a student whose parameters are the running average of the student's; no gradient reaches it.

    Its batch norms are its own: in train mode they normalise by the teacher's batches and take their running
    statistics from them; the student's never enter. As a submodule of a method it is saved, resumed and shared out over
    processes like any other part.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)

    def reset(self, student: nn.Module) -> None:
        """Take over the student's parameters and buffers as they are."""
        self.network.load_state_dict(student.state_dict())

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """Parameters <- momentum own + (1 - momentum) student's; buffers stay."""
        for own, followed in zip(self.network.parameters(), student.parameters(), strict=True):
            own.mul_(momentum).add_(followed, alpha=1 - momentum)
