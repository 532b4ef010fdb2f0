"""Checkpoints that survive ``kill -9``: written whole or not at all, found again by what the run computes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from core.config import digest
from core.files import replacing


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


class Checkpoint:
    """The resumable state of one run, in a folder named by a hash of everything that decides its numbers.

    It lies outside DVC's ``outs``, which DVC deletes before a stage runs. Weights kept for evaluation wait here too
    until the run is finished.
    """

    def __init__(self, root: Path, key: dict[str, Any]) -> None:
        self.folder = root / digest(key)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The last saved state, or None when there is none."""
        path = self.folder / "state.pt"
        return torch.load(path, map_location=device, weights_only=True) if path.is_file() else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state at an epoch's end."""
        save_atomically(state, self.folder / "state.pt")

    def keep_weights(self, epoch: int, weights: dict[str, Any]) -> None:
        """Keep the weights after ``epoch`` epochs for evaluation."""
        save_atomically(weights, self.folder / f"epoch_{epoch:03d}.pt")

    def publish_weights(self, folder: Path, last: int) -> None:
        """Copy the kept weights up to epoch ``last`` into the run's output."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in sorted(self.folder.glob("epoch_*.pt")):
            if int(path.stem.removeprefix("epoch_")) <= last:
                shutil.copyfile(path, folder / path.name)

    def delete(self) -> None:
        """Forget the run; a finished run does, so that a forced one really trains."""
        shutil.rmtree(self.folder, ignore_errors=True)
