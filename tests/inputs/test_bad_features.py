"""Bad feature files: each row stops ``evaluate --features`` with a message that names file and array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import evaluate
from tests.inputs.bad import Bad, check, table

assert evaluate  # imported before any right to read files is given up
COMMAND = "evaluate --protocol market1501 --features f.npz --out m.json"
Make = Callable[[Path], object]


def arrays(**changes: Any) -> dict[str, Any]:
    """Two queries and three gallery images that can be ranked, but for the changes; None takes one away."""
    good: dict[str, Any] = {
        "query_features": np.eye(2, 4),
        "gallery_features": np.eye(3, 4),
        "query_ids": np.array([1, 2]),
        "gallery_ids": np.array([1, 2, 0]),
        "query_cameras": np.array([1, 1]),
        "gallery_cameras": np.array([2, 2, 2]),
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def with_(**changes: Any) -> Make:
    """A feature file with these changes."""
    return lambda folder: np.savez(folder / "f.npz", **arrays(**changes))


def cut(folder: Path) -> None:
    """A feature file whose end is missing."""
    with_()(folder)
    content = (folder / "f.npz").read_bytes()
    (folder / "f.npz").write_bytes(content[:-100])


def flipped(folder: Path) -> None:
    """A feature file with damage in its middle."""
    with_(query_features=np.ones((2, 4000)), gallery_features=np.ones((3, 4000)))(folder)
    content = bytearray((folder / "f.npz").read_bytes())
    content[5000] ^= 255
    (folder / "f.npz").write_bytes(content)


def single(folder: Path) -> None:
    """One array instead of an archive."""
    with (folder / "f.npz").open("wb") as file:
        np.save(file, np.ones(3))


def objects(folder: Path) -> None:
    """An archive of pickled objects, which reading must not run."""
    with_(query_ids=np.array([{}, []], dtype=object))(folder)


def closed(folder: Path) -> None:
    """A feature file without permissions."""
    with_()(folder)
    (folder / "f.npz").chmod(0)


NAN, INF, BIG = np.full((2, 4), np.nan), np.full((3, 4), np.inf), np.full((3, 4), 1e300)
ROWS = [
    Bad("no file", lambda f: None, COMMAND, "f.npz does not exist"),
    Bad("a folder", lambda f: (f / "f.npz").mkdir(), COMMAND, "f.npz does not exist|f.npz is a folder"),
    Bad("a text", lambda f: (f / "f.npz").write_text("hello"), COMMAND, "f.npz cannot be read as an .npz"),
    Bad("nothing", lambda f: (f / "f.npz").touch(), COMMAND, "f.npz cannot be read as an .npz"),
    Bad("a cut file", cut, COMMAND, "f.npz cannot be read as an .npz"),
    Bad("a damaged file", flipped, COMMAND, "f.npz cannot be read as an .npz.*CRC"),
    Bad("one array", single, COMMAND, "f.npz .*a single array; save several"),
    Bad("pickled objects", objects, COMMAND, "f.npz cannot be read as an .npz file of numbers: Object arrays"),
    Bad("a closed file", closed, COMMAND, "f.npz.*Permission denied", True),
    Bad("no ids", with_(query_ids=None), COMMAND, "f.npz lacks query_ids; it holds query_features"),
    Bad("flat features", with_(query_features=np.ones(2)), COMMAND, r"query_features must have 2 dimension\(s\)"),
    Bad("a table of ids", with_(gallery_ids=np.ones((3, 1), int)), COMMAND, r"gallery_ids must have 1 dimension\(s\)"),
    Bad(
        "an id too few",
        with_(query_ids=np.array([1])),
        COMMAND,
        "query_features has 2 rows but query_ids has 1 entries",
    ),
    Bad("a camera too many", with_(gallery_cameras=np.ones(4, int)), COMMAND, "3 rows but gallery_cameras has 4"),
    Bad("ids that are words", with_(query_ids=np.array(["a", "b"])), COMMAND, "query_ids must hold numbers"),
    Bad("ids that are truths", with_(query_ids=np.array([True, False])), COMMAND, "query_ids must hold numbers"),
    Bad("ids that are fractions", with_(query_ids=np.array([1.5, 2])), COMMAND, "query_ids must hold integers"),
    Bad("cameras that are fractions", with_(gallery_cameras=np.ones(3)), COMMAND, "gallery_cameras must hold integers"),
    Bad("ids below -1", with_(gallery_ids=np.array([1, 2, -2])), COMMAND, "gallery_ids holds -2; numbers go from -1"),
    Bad("cameras below -1", with_(query_cameras=np.array([1, -5])), COMMAND, "query_cameras holds -5"),
    Bad(
        "ids beyond 64 bits",
        with_(query_ids=np.array([1, 2**63], "u8")),
        COMMAND,
        f"query_ids holds {2**63}; numbers go",
    ),
    Bad(
        "complex features", with_(query_features=np.ones((2, 4), complex)), COMMAND, "query_features must hold numbers"
    ),
    Bad("NaN", with_(query_features=NAN), COMMAND, "f.npz: query_features holds NaN or infinite values in 2 rows"),
    Bad("infinity", with_(gallery_features=INF), COMMAND, "f.npz: gallery_features holds NaN or infinite values"),
    Bad(
        "features too large to square", with_(gallery_features=BIG), COMMAND, "f.npz: the distances of query 0 hold NaN"
    ),
    Bad("features of no length", with_(query_features=np.ones((2, 0))), COMMAND, "query_features must have shape"),
    Bad("other widths", with_(query_features=np.ones((2, 5))), COMMAND, "5 columns but gallery_features has 4"),
    Bad(
        "no query",
        with_(query_features=np.ones((0, 4)), query_ids=np.ones(0, int), query_cameras=np.ones(0, int)),
        COMMAND,
        "query_features",
    ),
    Bad("junk alone", with_(gallery_ids=np.full(3, -1)), COMMAND, "f.npz: gallery_ids holds nothing but junk"),
    Bad("no match", with_(query_ids=np.array([7, 8])), COMMAND, "f.npz: none of the 2 queries has a correct match"),
    Bad("one camera", with_(gallery_cameras=np.ones(3, int)), COMMAND, "none of the 2 queries .*another camera"),
    Bad(
        "two files for one fold", with_(), COMMAND.replace("f.npz", "f.npz f.npz"), r"has 1 fold\(s\), 2 feature files"
    ),
    Bad("a protocol of no name", with_(), COMMAND.replace("market", "marked"), "did you mean 'market1501'"),
    Bad(
        "no protocol",
        with_(),
        COMMAND.replace("--protocol market1501", ""),
        "--features needs --protocol NAME and --out",
    ),
    Bad("no output", with_(), COMMAND.replace("--out m.json", ""), "--features needs --protocol NAME and --out"),
    Bad(
        "an output that is a folder", with_(), COMMAND.replace("m.json", "."), ". is a folder; .*the JSON file to write"
    ),
    Bad(
        "an output below a file",
        with_(),
        COMMAND.replace("m.json", "f.npz/m.json"),
        "f.npz: (Not a directory|File exists)",
    ),
    Bad(
        "an output that may not be written",
        lambda f: (with_()(f), f.chmod(0o555)),
        COMMAND,
        "m.*Permission denied",
        True,
    ),
    Bad("a method and features", with_(), f"{COMMAND} --method hhcl", "--method does not go with --features"),
    Bad("re-ranked features", with_(), f"{COMMAND} --rerank", "--rerank does not go with --features"),
    Bad(
        "a run's protocol",
        lambda f: None,
        "evaluate --method hhcl --dataset rendered --protocol csv",
        "--protocol goes with",
    ),
    Bad(
        "a run normalised",
        lambda f: None,
        "evaluate --method hhcl --dataset rendered --normalize",
        "--normalize goes with",
    ),
    Bad("nothing to do", lambda f: None, "evaluate --method hhcl", "give --method and --dataset, or --protocol and"),
]


@table(ROWS)
def test_evaluate_refuses(bad: Bad, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check(bad, monkeypatch, capsys)


def test_the_unchanged_file_is_ranked(tmp_path: Path) -> None:
    with_()(tmp_path)
    arguments = ["--protocol", "market1501", "--features", str(tmp_path / "f.npz"), "--out", str(tmp_path / "m.json")]
    assert evaluate.main(arguments) == 0
