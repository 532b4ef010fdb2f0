"""One writer of a folder at a time, over all processes and hosts that share the disk."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from core.distributed import ProcessGroup, from_main
from core.errors import UserError

PATIENCE_SECONDS = 0.5


class FolderInUse(UserError):
    """Another process writes this folder; the message says which, and what to do."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` while the block runs; raises FolderInUse when another process does.

    The lock is an ``flock`` of ``.NAME.lock`` beside the folder. The kernel drops it with its process, however that
    ends, so a lock is never stale on its host. Linux carries it over NFS (version 4, or 3 with lockd) to the server,
    which drops the locks of a host that is gone after its lease, about 90 seconds. File systems that only pretend to
    lock (some FUSE mounts) protect nothing. The file stays; it is empty while nobody holds it.
    """
    file = folder.with_name(f".{folder.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=PATIENCE_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUse(in_use(folder, file)) from None
    try:
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        file.write_text(json.dumps(holder))
        yield
    finally:
        os.truncate(file, 0)
        lock.release()


@contextmanager
def locked_by_main(group: ProcessGroup, *folders: Path) -> Iterator[None]:
    """Rank 0 holds the folders for all ranks; FolderInUse is raised on every rank."""
    with ExitStack() as held:

        def hold() -> None:
            for folder in folders:
                held.enter_context(locked(folder))

        from_main(hold, group)
        yield


def in_use(folder: Path, file: Path) -> str:
    """Who holds the folder, and how to get it."""
    try:
        holder = json.loads(file.read_text())
        who = f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):  # it has just begun, or just ended
        return f"{folder} is being written by another process; try again when it has ended"
    return (
        f"{folder} is being written by {who}; wait until it ends, or end it and run this again. If that host is gone "
        f"for good and its file server keeps the lock, remove {file}"
    )
