"""Files that are whole or not there, whoever else writes, dies or reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core import files
from pipeline.jobs import ROOT

WRITER = """
import itertools, sys
from pathlib import Path
from core import files
for size in itertools.cycle((10, 100_000)):
    files.write_json(Path(sys.argv[1]), {"size": size, "numbers": [size] * size})
"""


def python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT)


def test_a_reader_in_a_tight_loop_beside_a_writer_sees_whole_files_only(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    writer = python(WRITER, str(file))
    try:
        while not file.is_file():
            assert writer.poll() is None
        last, replacements = None, 0
        while replacements < 20:
            record = json.loads(file.read_text())
            assert len(record["numbers"]) == record["size"]
            replacements += record["size"] != last
            last = record["size"]
    finally:
        writer.kill()
        writer.wait()
    files.write_json(file, {})
    assert os.listdir(tmp_path) == ["record.json"], "what the killed writer left is removed by the next"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    files.write_text(tmp_path / "table.csv", "old")
    with pytest.raises(TypeError):
        files.write_bytes(tmp_path / "table.csv", "text is no bytes")
    assert (tmp_path / "table.csv").read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_partial_files_of_the_living_and_of_other_hosts_stay(tmp_path: Path) -> None:
    mine = tmp_path / f"a.pt{files.partial_suffix()}"
    foreign = tmp_path / "a.pt.elsewhere-00000000-1-1-00000000.partial"
    no_partial = tmp_path / "notes.partial"
    for file in (mine, foreign, no_partial):
        file.touch()
    files.remove_stale(tmp_path)
    assert {mine.name, foreign.name, no_partial.name} == set(os.listdir(tmp_path))
    os.utime(foreign, (0, 0))
    files.remove_stale(tmp_path)
    assert {mine.name, no_partial.name} == set(os.listdir(tmp_path)), "untouched for a day, so left behind"


def test_two_writers_of_one_name_never_share_a_partial_file() -> None:
    assert files.partial_suffix() != files.partial_suffix()


def test_a_record_notices_every_file_that_is_no_longer_its_own(tmp_path: Path) -> None:
    files.write_arrays(tmp_path / "labels.npz", labels=np.arange(3))
    files.write_text(tmp_path / "history.csv", "epoch\n1\n")
    recorded = files.hashes(tmp_path, ["labels.npz", "history.csv"])
    assert files.changed(tmp_path, recorded) is None
    (tmp_path / "history.csv").write_text("epoch\n")
    assert "history.csv is not the file that was recorded" in str(files.changed(tmp_path, recorded))
    (tmp_path / "labels.npz").unlink()
    assert files.changed(tmp_path, recorded) == "labels.npz is missing"
