"""A checkpoint for trainings that tests watch step by step."""

from __future__ import annotations

from typing import Any

from core.distributed import ProcessGroup


class NoCheckpoint:
    """Nothing is saved and nothing resumed."""

    def load(self, group: ProcessGroup) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        pass

    def keep_weights(self, epoch: int, weights: dict[str, Any]) -> None:
        pass
