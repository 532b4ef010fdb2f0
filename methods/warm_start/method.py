"""The initial weights as they are: the row every method must beat."""

from __future__ import annotations

from core.config import Config
from core.data import Needs
from core.method import Method


class WarmStart(Method):
    """Trains for no epoch (``schedule.epochs`` is 0), so that the initial weights are tested like any run's."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Nothing."""
        return Needs()
