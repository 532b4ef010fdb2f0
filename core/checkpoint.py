"""Checkpoints that survive ``kill -9``: written whole or not at all, found again by what the run computes."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from core.config import digest
from core.distributed import ProcessGroup, from_main
from core.errors import UserError
from core.files import copy, discard, replacing

# What torch.load raises on a file that is cut short or overwritten.
UNREADABLE = (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


def save_atomically(record: Any, path: Path) -> None:
    """``torch.save`` so that ``path`` holds either the old record or the new one, whole, after a power cut too."""
    with replacing(path) as file:
        torch.save(record, file)


def source_hash(paths: Iterable[Path]) -> str:
    """Hash of the Python and YAML sources in the given files and folders: a change of code is another run."""
    digest_ = hashlib.sha256()
    for root in paths:
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        for file in files:
            if file.suffix in (".py", ".yaml") and file.is_file():
                name = file.relative_to(root if root.is_dir() else root.parent).as_posix()
                digest_.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest_.hexdigest()


class DamagedCheckpoint(UserError):
    """A checkpoint that nothing can resume from; the message names the folder to remove."""


class Checkpoint:
    """The resumable state of one run, in a folder named by a hash of everything that decides its numbers.

    It lies outside DVC's ``outs``, which DVC deletes before a stage runs. Weights kept for evaluation wait here too
    until the run is finished. Whoever writes it holds it (``core.lock``).
    """

    def __init__(self, root: Path, key: dict[str, Any]) -> None:
        self.folder = root / digest(key)

    def load(self, group: ProcessGroup) -> dict[str, Any] | None:
        """The last saved state, or None when there is none; raises DamagedCheckpoint when it cannot be read.

        Rank 0 reads it for all: ranks on other hosts need not see the folder.
        """
        path = self.folder / "state.pt"
        content = from_main(lambda: path.read_bytes() if path.is_file() else None, group)
        if content is None:
            return None
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=group.device, weights_only=True)
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise DamagedCheckpoint(f"{path} cannot be read ({reason}); {self._remedy()}") from error
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state at an epoch's end."""
        save_atomically(state, self.folder / "state.pt")

    def keep_weights(self, epoch: int, weights: dict[str, Any]) -> None:
        """Keep the weights after ``epoch`` epochs for evaluation."""
        save_atomically(weights, self.folder / weights_name(epoch))

    def require_weights(self, epochs: Iterable[int]) -> None:
        """Raise DamagedCheckpoint unless the weights after each of ``epochs`` were kept."""
        absent = [epoch for epoch in epochs if not (self.folder / weights_name(epoch)).is_file()]
        if absent:
            raise DamagedCheckpoint(f"{self.folder} lacks the weights of the epochs {absent}; {self._remedy()}")

    def publish_weights(self, folder: Path, epochs: Sequence[int]) -> None:
        """Copy the weights after ``epochs`` into the run's output, which holds no others afterwards."""
        self.require_weights(epochs)
        names = [weights_name(epoch) for epoch in epochs]
        for other in set(folder.glob("epoch_*.pt")) - {folder / name for name in names}:
            other.unlink()
        for name in names:
            copy(self.folder / name, folder / name)

    def delete(self) -> None:
        """Forget the run; a finished run does, so that a forced one really trains."""
        discard(self.folder)

    def _remedy(self) -> str:
        return f"remove {self.folder}, and the run trains from its start"


def weights_name(epoch: int) -> str:
    """What the file of the weights after ``epoch`` epochs is called."""
    return f"epoch_{epoch:03d}.pt"
