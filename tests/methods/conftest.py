"""Fixtures that tests of several methods share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def generator() -> torch.Generator:
    """A stream of its own for each test."""
    return torch.Generator().manual_seed(3)


@pytest.fixture
def one_thread() -> None:
    """For small tensors and samplers of many steps: a second thread only waits for the first."""
    torch.set_num_threads(1)
