"""A teacher follows its student's parameters, and nothing else of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from core.backbones.batchnorm import GroupedBatchNorm1d
from core.teacher import Teacher


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), GroupedBatchNorm1d(4), nn.Linear(4, 2))


def moved(student: nn.Sequential) -> nn.Sequential:
    """The student after something has happened to all that it has."""
    with torch.no_grad():
        for tensor in [*student.parameters(), *student.buffers()]:
            tensor.add_(1)
    return student


def parameters(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize("momentum", [1.0, 0.9, 0.0])
def test_parameters_are_a_running_average_and_buffers_stay_the_teachers_own(momentum: float) -> None:
    student = network()
    teacher = Teacher(student)
    before, buffers = parameters(teacher), [buffer.clone() for buffer in teacher.buffers()]
    teacher.follow(moved(student), momentum)
    for own, old, followed in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(own, momentum * old + (1 - momentum) * followed)
        assert momentum not in (0.0, 1.0) or torch.equal(own, old if momentum else followed)
    assert all(torch.equal(own, old) for own, old in zip(teacher.buffers(), buffers, strict=True))
    teacher.reset(student)
    assert all(torch.equal(own, theirs) for own, theirs in zip(teacher.buffers(), student.buffers(), strict=True))


def test_no_gradient_reaches_a_teacher_but_its_batch_norm_follows_its_own_batches() -> None:
    student = network()
    teacher = Teacher(student).train()
    batch = torch.randn(8, 5) + 3
    statistics = student[1].running_mean.clone()
    teacher.network(batch.requires_grad_()).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(student[1].running_mean, statistics)
    expected = 0.1 * teacher.network[0](batch).mean(dim=0)
    torch.testing.assert_close(teacher.network[1].running_mean, expected.detach())


def test_a_teacher_that_only_evaluates_stays_in_eval_mode_and_its_statistics_follow_the_students() -> None:
    student = network()
    method = nn.ModuleDict({"student": student, "teacher": Teacher(student, only_evaluates=True)}).train()
    teacher = method["teacher"]
    assert student.training
    assert not any(layer.training for layer in teacher.modules())
    before = teacher.network[1].running_mean.clone()
    student(torch.randn(8, 5) + 3)
    teacher.network(torch.randn(8, 5) + 3)
    assert torch.equal(teacher.network[1].running_mean, before)
    teacher.follow(student, 0.75)
    expected = 0.75 * before + 0.25 * student[1].running_mean
    torch.testing.assert_close(teacher.network[1].running_mean, expected)
