"""A checkpoint for trainings that tests watch step by step."""

from __future__ import annotations

from typing import Any

import torch


class NoCheckpoint:
    """Nothing is saved and nothing resumed."""

    def load(self, device: torch.device) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        pass

    def keep_weights(self, epoch: int, weights: dict[str, Any]) -> None:
        pass
