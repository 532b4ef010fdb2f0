"""A row of the tables of bad inputs, and what each of them must end in: exit status 2, one message, nothing left."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from pipeline import cli

NOBODY = 65534


class Bad(NamedTuple):
    """``make(folder)`` makes the input below an empty folder, the working directory; ``command`` then meets it.

    message: what the error must say (a regular expression). denied: run without the superuser's right to ignore
    permissions.
    """

    what: str
    make: Callable[[Path], object]
    command: str
    message: str
    denied: bool = False


def table(rows: Sequence[Bad]) -> pytest.MarkDecorator:
    """The rows as parameters, each a test of its name."""
    assert len({row.what for row in rows}) == len(rows)
    return pytest.mark.parametrize("bad", rows, ids=[row.what for row in rows])


def check(bad: Bad, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the row and check how it ends."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders let nobody else through
        folder = Path(name)
        folder.chmod(0o777)
        monkeypatch.chdir(folder)
        bad.make(folder)
        before, there = files(folder), (folder / "out").exists()
        verb, *arguments = bad.command.split()
        with permissions_held(bad.denied), pytest.raises(SystemExit) as left:
            cli.run_verb(verb, arguments)
        monkeypatch.undo()
        said = capsys.readouterr().err.rpartition("\r")[2]  # behind the progress bar, which is gone by now
        assert left.value.code == cli.USER_ERROR, said
        assert said.startswith(("error: ", "usage: ")), said
        assert re.search(bad.message, said), said
        assert "Traceback" not in said
        assert files(folder) == before
        assert (folder / "out").exists() == there


def files(folder: Path) -> dict[str, int]:
    """Every file and link with its size, but for empty locks, which stay; not the folders of a cache."""
    found = {}
    for parent, _, names in os.walk(folder):
        found |= {os.path.join(parent, name): os.lstat(os.path.join(parent, name)).st_size for name in names}
    return {name: size for name, size in found.items() if size or not name.endswith(".lock")}


@contextmanager
def permissions_held(denied: bool) -> Iterator[None]:
    """Give up the superuser's right to read and write what is not allowed, where the tests have it."""
    if not denied or os.geteuid() != 0:
        yield
        return
    Image.init()  # Pillow imports its decoders when they are first needed, which may be forbidden below
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
