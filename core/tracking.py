"""A run that can be watched: its history after every epoch, as a table and, if asked for, on TensorBoard.

What is written here is for eyes alone and outside of every stage's outputs: the run's own history.csv is written when
it is finished, beside the record that speaks of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from core.errors import UserError
from core.files import write_csv

TRACKERS = ("tensorboard",)


def check_tracker(name: str | None) -> None:
    """Raise UserError when the package that a tracker needs is not installed."""
    if name == "tensorboard":
        try:
            import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UserError(
                "--track tensorboard needs a package that is not installed: `pip install tensorboard`, or leave the "
                "option out and watch history.csv"
            ) from error


class Tracker:
    """Writes ``folder/history.csv`` and, for ``tensorboard``, its numbers by epoch.

    Both are written from the whole history, so that those of a resumed run have neither gaps nor doubles.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder, self.name = folder, name
        self.shown = 0
        self.writer: Any = None

    def update(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Show a history of which the first epochs may have been shown before."""
        write_csv(self.folder / "history.csv", pd.DataFrame(history))
        if self.name == "tensorboard":
            self._add_scalars(history[self.shown :])
        self.shown = len(history)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def _add_scalars(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.writer is None:
            for old in self.folder.glob("events.out.tfevents.*"):  # of the run before it was interrupted
                old.unlink()
            self.writer = import_module("torch.utils.tensorboard").SummaryWriter(self.folder)
        for row in rows:
            for title, value in row.items():
                if title != "epoch" and isinstance(value, int | float):
                    self.writer.add_scalar(title, value, row["epoch"])
        self.writer.flush()
