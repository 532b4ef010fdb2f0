"""A teacher: a network that learns by following another one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A copy of a student whose parameters are the running average of the student's; no gradient reaches it.

    Its batch norms are its own: in train mode they normalise by the teacher's batches and take their running
    statistics from them; the student's never enter. One that ``only_evaluates`` stays in eval mode whatever its method
    does, and its running statistics follow the student's like its parameters. As a submodule of a method it is saved,
    resumed and shared out over processes like any other part.
    """

    def __init__(self, student: nn.Module, only_evaluates: bool = False) -> None:
        super().__init__()
        self.only_evaluates = only_evaluates
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Set the mode of the network, but for a teacher that only evaluates."""
        super().train(mode and not self.only_evaluates)
        return self

    def reset(self, student: nn.Module) -> None:
        """Take over the student's parameters and buffers as they are."""
        self.network.load_state_dict(student.state_dict())

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """Parameters <- momentum own + (1 - momentum) student's; buffers stay, unless it only evaluates."""
        pairs: list[tuple[Tensor, Tensor]] = list(zip(self.network.parameters(), student.parameters(), strict=True))
        if self.only_evaluates:
            buffers = zip(self.network.buffers(), student.buffers(), strict=True)
            pairs += [(own, followed) for own, followed in buffers if own.is_floating_point()]
        for own, followed in pairs:
            own.mul_(momentum).add_(followed, alpha=1 - momentum)
