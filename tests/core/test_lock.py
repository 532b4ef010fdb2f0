"""One writer of a folder at a time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from core.lock import FolderInUse, locked


def test_the_second_process_is_told_who_holds_the_folder_and_how_to_get_it(tmp_path: Path) -> None:
    ready, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        with locked(tmp_path / "run"):
            os.write(write, b"x")
            signal.pause()
    os.read(ready, 1)
    said = rf"run is being written by process {holder} on \S+ since .*; wait until it ends.* remove .*\.run\.lock"
    with pytest.raises(FolderInUse, match=said), locked(tmp_path / "run"):
        pass
    with locked(tmp_path / "another"):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with locked(tmp_path / "run"):  # the dead hold nothing
        pass


def test_a_folder_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "run"):
        raise KeyboardInterrupt
    with locked(tmp_path / "run"):
        pass
