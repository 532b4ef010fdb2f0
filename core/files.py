"""Files written whole or not at all, and records that tell whether the files they speak of are the ones beside them.

A stage writes its files one by one through ``replacing`` and its record last; the record holds the sha256 of each
(``hashes``), and who reads the record asks ``changed`` whether they are still those. Before it writes the first file a
stage removes the old record (``forget``), so that no record ever stands over files that it does not know.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import psutil

FOREIGN_SECONDS = 24 * 3600  # a partial file of a process that cannot be asked counts as left behind after a day
CLOCK_SECONDS = 60  # by which a process may seem to have begun earlier or later after the clock was set
UNKNOWN_FILES: Mapping[str, str] = MappingProxyType({})  # hashes of a record that holds none
_PARTIAL = re.compile(r"\.(?P<host>[^.]+)-(?P<place>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}\.partial$")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """An open file that takes the place of ``path`` when the block ends: readers see the old file or the new, whole.

    It is on disk before it takes that place, so this holds after a power cut as well. After an error ``path`` is as
    it was. What killed processes left in the folder is removed (``remove_stale``).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent)
    partial = path.with_name(path.name + partial_suffix())
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by these bytes."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by the text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Replace ``path`` by the record, indented, names in their own script."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Replace ``path`` by the table without its index."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Replace ``path`` by a compressed .npz of the named arrays."""
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def copy(source: Path, path: Path) -> None:
    """Replace ``path`` by the bytes of ``source``."""
    with source.open("rb") as original, replacing(path) as file:
        shutil.copyfileobj(original, file, 2**20)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of files by their name below ``folder``, for the record that speaks of them."""
    return {name: hash_file(folder / name) for name in names}


def changed(folder: Path, recorded: Mapping[str, str]) -> str | None:
    """What is wrong with the first file of ``hashes`` that is no longer the recorded one, or None.

    A record of a time before records held hashes has UNKNOWN_FILES.
    """
    if recorded is UNKNOWN_FILES:
        return "the record holds no hashes, as those of an earlier version did not"
    for name, digest in recorded.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if hash_file(folder / name) != digest:
            return f"{name} is not the file that was recorded (it was changed, cut short or written by another run)"
    return None


def forget(record: Path) -> None:
    """Remove a record, for good, before the files that it speaks of are replaced."""
    if record.is_file():
        record.unlink()
        _sync_folder(record.parent)


def discard(folder: Path) -> None:
    """Remove a folder that must not be found half removed: it loses its name first."""
    if folder.is_dir():
        remove_stale(folder.parent)
        nameless = folder.with_name(folder.name + partial_suffix())
        os.rename(folder, nameless)
        _sync_folder(folder.parent)
        shutil.rmtree(nameless)


def remove_stale(folder: Path) -> None:
    """Remove the partial files and folders directly in ``folder`` whose writer is no more."""
    for entry in list(os.scandir(folder)):
        owner = _PARTIAL.search(entry.name)
        if owner is None or _may_live(owner, entry):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)


def partial_suffix() -> str:
    """What a file is called by until it is whole: host, place, process and its start, and a random number.

    A process number alone is no owner: hosts, and containers of one host, that share a folder number alike.
    """
    host = socket.gethostname().replace(".", "_")[:40]
    return f".{host}-{_place()}-{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(4)}.partial"


def _may_live(owner: re.Match[str], entry: os.DirEntry[str]) -> bool:
    """Whether the writer may still be at it; one that cannot be asked is believed to be for a day."""
    if owner["place"] == _place():
        started = _started(int(owner["pid"]))
        return started is not None and abs(started - int(owner["start"])) <= CLOCK_SECONDS
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime < FOREIGN_SECONDS
    except FileNotFoundError:  # it ended meanwhile
        return True


def _started(pid: int) -> int | None:
    """When the process began, in seconds; None when there is none."""
    try:
        return round(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


@functools.cache
def _place() -> str:
    """Hash of what process numbers belong to: the host, its boot and the container's numbering."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux alone tells
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


def _sync_folder(folder: Path) -> None:
    """Put a folder's names on disk; where folders cannot be, the file system orders them itself."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
