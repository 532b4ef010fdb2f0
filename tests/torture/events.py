"""File events of a process: counted, and one of them chosen to die at.

Events are what changes a disk below ``root``: open for writing, half of a file's bytes written, fsync, fallocate,
truncate, rename, unlink, mkdir and rmdir. The process dies before the event, or in the middle of the writing; to die
after an event is to die before the next, for the disk is the same.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PARTIAL = re.compile(r"\.[^./]+-[0-9a-f]{8}-\d+-\d+-[0-9a-f]{8}\.partial")
ONE_PATH = ("unlink", "remove", "mkdir", "rmdir", "truncate")


class Event(NamedTuple):
    """The ``turn``-th event of a kind on a path (relative to the root, without what makes partial names unique)."""

    kind: str
    path: str
    turn: int

    def __str__(self) -> str:
        return f"{self.kind} {self.path}" + (f" ({self.turn})" if self.turn > 1 else "")


class Tracer:
    """Watches this process until it ends; there is no way back, so it lives in a forked child.

    sizes: bytes that each opening of a file came to in a run that was not killed; without them halves are not known.
    """

    def __init__(self, root: Path, die_at: Event | None = None, sizes: dict[str, int] | None = None) -> None:
        self.root, self.die_at, self.sizes = f"{root.resolve()}{os.sep}", die_at, sizes or {}
        self.events: list[Event] = []
        self.written: Counter[str] = Counter()
        self.turns: Counter[tuple[str, str]] = Counter()
        self.lock = threading.RLock()
        self.real = {name: getattr(os, name) for name in (*ONE_PATH, "open", "replace", "rename", "fsync", "pwrite")}

    def install(self) -> None:
        """Watch from now on."""
        real = self.real
        for name in ONE_PATH:
            setattr(os, name, self._before(name, real[name]))
        for name in ("replace", "rename"):
            setattr(os, name, self._before_rename(real[name]))
        os.fsync = self._before_descriptor("fsync", real["fsync"])  # type: ignore[assignment]
        os.posix_fallocate = self._before_descriptor("fallocate", os.posix_fallocate)  # type: ignore[assignment]
        os.pwrite = self._pwrite  # type: ignore[assignment]
        os.open = self._os_open  # type: ignore[assignment]
        builtins.open = io.open = self._open(io.open)  # type: ignore[assignment]

    def happens(self, kind: str, path: str) -> None:
        """Count an event, and die when it is the chosen one."""
        if path.startswith(self.root):
            with self.lock:
                short = self.short(path)
                self.turns[kind, short] += 1
                event = Event(kind, short, self.turns[kind, short])
                self.events.append(event)
                if event == self.die_at:
                    die()

    def short(self, path: str) -> str:
        """The path below the root, the same in every run."""
        return PARTIAL.sub("~", path.removeprefix(self.root))

    def before_write(self, path: str, content: bytes, write: Callable[[bytes], Any]) -> None:
        """Count the bytes; write those up to the file's half and die when that was chosen."""
        if not path.startswith(self.root):
            return
        with self.lock:
            short = self.short(path)
            opening = self.opening(short)
            half = self.sizes.get(opening, 0) // 2
            chosen = self.die_at == Event("half", short, self.turns["open", short])
            if chosen and self.written[opening] + len(content) > half:
                write(content[: half - self.written[opening]])
                die()
            self.written[opening] += len(content)

    def opening(self, short: str) -> str:
        """Name of the present opening of a file."""
        return f"{short}#{self.turns['open', short]}"

    def halves(self) -> list[Event]:
        """The half-written states that a recorded run went through."""
        parts = [(opening.rpartition("#"), size) for opening, size in self.written.items()]
        return [Event("half", path, int(turn)) for (path, _, turn), size in parts if size > 1]

    def _before(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            folder = options.get("dir_fd")
            where = os.path.join(place_of(folder), os.fspath(path)) if folder is not None else os.path.abspath(path)
            self.happens("unlink" if kind == "remove" else kind, where)
            return real(path, *arguments, **options)

        return call

    def _before_rename(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, **options: Any) -> Any:
            self.happens("rename", os.path.abspath(target))
            return real(source, target, **options)

        return call

    def _before_descriptor(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any) -> Any:
            self.happens(kind, place_of(descriptor))
            return real(descriptor, *arguments)

        return call

    def _pwrite(self, descriptor: int, content: bytes, offset: int) -> int:
        write = self.real["pwrite"]
        self.before_write(place_of(descriptor), content, lambda part: write(descriptor, part, offset))
        return int(write(descriptor, content, offset))

    def _os_open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and "dir_fd" not in options:
            self.happens("open", os.path.abspath(path))
        return int(self.real["open"](path, flags, *arguments, **options))

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
            watched = not isinstance(file, int) and set(mode) & set("wxa+") and "opener" not in options
            if not watched or not os.path.abspath(file).startswith(self.root):
                return real(file, mode, buffering, *arguments, **options)
            path = os.path.abspath(os.fsdecode(file))
            self.happens("open", path)
            raw = WatchedFile(path, mode.replace("b", "").replace("t", ""), self)
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            text = dict(zip(("encoding", "errors", "newline"), arguments, strict=False)) | options
            return io.TextIOWrapper(buffered, **{name: text.get(name) for name in ("encoding", "errors", "newline")})

        return call


class WatchedFile(io.FileIO):
    """A file whose every write is told to the tracer."""

    def __init__(self, path: str, mode: str, tracer: Tracer) -> None:
        super().__init__(path, mode)
        self.place, self.tracer = path, tracer

    def write(self, content: Any) -> int:
        """Write after telling."""
        self.tracer.before_write(self.place, bytes(content), super().write)
        return super().write(content) or 0


def place_of(descriptor: int) -> str:
    """Path of an open file."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def die() -> None:
    """As the kernel's out-of-memory killer ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()
