"""Bad datasets: each row is refused by ``prepare`` with a message that names the file and leaves nothing behind."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from pipeline import evaluate, prepare
from tests import trees
from tests.inputs.bad import Bad, check, table

assert prepare, evaluate  # imported before any right to read files is given up
ALLOW = "--allow-unknown-fingerprint"
MARKET = f"prepare --dataset market1501 --root . --out out {ALLOW}"
QUERY = "Market-1501-v15.09.15/query"
NAME = "0009_c1s1_000001_00"
Make = Callable[[Path], object]


def market(change: Callable[[Path], object]) -> Make:
    """A small Market-1501; ``change`` gets the folder of its queries."""
    return lambda folder: change(trees.market(folder) / "query")


def written(name: str, content: bytes) -> Make:
    """Market-1501 with one query more."""
    return market(lambda query: (query / name).write_bytes(content))


def saved(suffix: str, mode: str, **more: Any) -> Make:
    """Market-1501 with a query whose pixels are of Pillow's mode."""
    return market(lambda query: Image.new(mode, (8, 16)).save(query / f"{NAME}{suffix}", **more))


def pages(query: Path) -> None:
    """A query of two pictures."""
    first, second = Image.new("RGB", (8, 16)), Image.new("RGB", (8, 16), "red")
    first.save(query / f"{NAME}.tif", save_all=True, append_images=[second])


def truncated(query: Path) -> None:
    """A query whose end is missing."""
    path = trees.image(query / f"{NAME}.jpg")
    path.write_bytes(path.read_bytes()[:-40])


def bomb(query: Path) -> None:
    """A PNG that says it has 10^10 pixels."""
    path = trees.image(query / f"{NAME}.png")
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + content[24:29]
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])


def closed(folder: Path, *paths: str) -> None:
    """Take all permissions from these paths."""
    for path in paths:
        (folder / path).chmod(0)


MARKET_ROWS = [
    Bad("a root that is not there", lambda f: None, MARKET.replace("--root .", "--root no"), "market1501: no is not a"),
    Bad(
        "a root that is a file",
        lambda f: (f / "a").touch(),
        MARKET.replace("--root .", "--root a"),
        "a is not a folder",
    ),
    Bad("an empty root", lambda f: None, MARKET, "lacks bounding_box_train, query, bounding_box_test"),
    Bad("no root", lambda f: None, "prepare --dataset market1501 --out out", "pass --root[\\s\\S]*Where to get it"),
    Bad(
        "folders without images", lambda f: [(f / p).mkdir() for p in trees.MARKET_NAMES], MARKET, "no image was found"
    ),
    Bad("a name that says nothing", market(lambda q: trees.image(q / "me.jpg")), MARKET, "query/me.jpg"),
    Bad("a cut image", market(truncated), MARKET, f"{NAME}.jpg: OSError: .*[Tt]runcated"),
    Bad("an empty image", written(f"{NAME}.jpg", b""), MARKET, f"{NAME}.jpg: .*cannot identify"),
    Bad("a text called an image", written(f"{NAME}.jpg", b"hello"), MARKET, f"{NAME}.jpg: .*cannot identify"),
    Bad(
        "16-bit grey PNG", saved(".png", "I;16"), MARKET, f"{NAME}.png: .*more than 8 bits .mode I;16.; save it with 8"
    ),
    Bad("16-bit grey TIFF", saved(".tif", "I;16"), MARKET, f"{NAME}.tif: .*more than 8 bits"),
    Bad("32-bit TIFF", saved(".tif", "I"), MARKET, f"{NAME}.tif: .*more than 8 bits .mode I"),
    Bad("float TIFF", saved(".tif", "F"), MARKET, f"{NAME}.tif: .*more than 8 bits .mode F"),
    Bad("a TIFF of two pages", market(pages), MARKET, f"{NAME}.tif: it holds several pictures"),
    Bad("a decompression bomb", market(bomb), MARKET, f"{NAME}.png: DecompressionBomb"),
    Bad("a link to nothing", market(lambda q: (q / f"{NAME}.jpg").symlink_to("no")), MARKET, "the file does not exist"),
    Bad(
        "a link to itself",
        market(lambda q: (q / f"{NAME}.jpg").symlink_to(f"{NAME}.jpg")),
        MARKET,
        f"{NAME}.jpg: Too many levels",
    ),
    Bad(
        "a named pipe", market(lambda q: os.mkfifo(q / f"{NAME}.jpg")), MARKET, f"{NAME}.jpg: it is not a regular file"
    ),
    Bad(
        "a link out",
        market(lambda q: (q / f"{NAME}.jpg").symlink_to("/dev/null")),
        MARKET,
        f"lead out .*\n *query/{NAME}",
    ),
    Bad("a mistyped name", trees.market, MARKET.replace("market", "marked"), "did you mean 'market1501'"),
    Bad(
        "a person in both halves",
        written("0007_c1s1_000001_00.jpg", b""),
        MARKET,
        r"both in training and in test.*\[7\]",
    ),
    Bad("a person below -1", written("-2_c1s1_000001_00.jpg", b""), MARKET, "person_id -2 of query/-2_c1s1"),
    Bad("a person beyond 64 bits", written(f"{2**63}_c1s1_000001_00.jpg", b""), MARKET, f"person_id {2**63} of query/"),
    Bad(
        "a camera beyond 64 bits",
        written(f"0003_c{2**64}s1_000001_00.jpg", b""),
        MARKET,
        f"camera_id {2**64} of query/",
    ),
    Bad(
        "a name with a line break",
        written("0009_c1s1_000001_0\n.jpg", b""),
        MARKET,
        r"control characters.*\n.*0\\n.jpg",
    ),
    Bad(
        "a name that is no text",
        market(lambda q: Path(os.fsdecode(os.fsencode(q) + b"/0009_c1s1_000001_\xff.jpg")).write_bytes(b"")),
        MARKET,
        r"no text in UTF-8.*\n.*0009_c1s1_000001_\\xff.jpg",
    ),
    Bad(
        "other counts",
        lambda f: trees.market(f),
        MARKET.replace(ALLOW, ""),
        f"found 3, expected 12,936[\\s\\S]*{ALLOW}",
    ),
    Bad("a closed folder", market(lambda q: closed(q, ".")), MARKET, "query cannot be listed: Permission denied", True),
    Bad(
        "a closed image",
        market(lambda q: closed(trees.image(q / f"{NAME}.jpg"), ".")),
        MARKET,
        f"{NAME}.jpg: .*ermission",
        True,
    ),
    Bad(
        "a closed root",
        lambda f: ((f / "r").mkdir(), closed(f, "r")),
        MARKET.replace("--root .", "--root r"),
        "r.*ermission",
        True,
    ),
    Bad(
        "an output that may not be made",
        lambda f: (trees.market(f), f.chmod(0o555)),
        MARKET,
        "out.*Permission denied",
        True,
    ),
    Bad(
        "an output that is a file",
        lambda f: (trees.market(f), (f / "out").touch()),
        MARKET,
        "out is a file; --out names",
    ),
    Bad(
        "an output below a file",
        lambda f: (trees.market(f), (f / "a").touch()),
        MARKET.replace("out out", "out a/b"),
        "a: (File exists|Not a directory)",
    ),
    Bad("a fold of a whole dataset", trees.market, f"{MARKET} --fold 3", r"has the folds 0\.\.0; 3 is none"),
    Bad("a fold below 0", trees.market, f"{MARKET} --fold -1", "-1 is none of them"),
    Bad(
        "no fold of a divided dataset",
        lambda f: None,
        "prepare --dataset cuhk03_classic_labeled --root .",
        "has 20 folds",
    ),
    Bad(
        "a size that none has",
        lambda f: None,
        "prepare --dataset rendered --size huge --out out",
        "no size 'huge'.*tiny",
    ),
    Bad(
        "a device that none is",
        lambda f: None,
        "prepare --dataset rendered --device tpu --out out",
        "choose from 'cpu'",
    ),
    Bad(
        "drawing over files of others",
        lambda f: trees.image(f / "out" / "images" / "mine.jpg"),
        "prepare --dataset rendered --size tiny --out out",
        "holds files that `prepare` did not write",
    ),
]


def csv(*lines: str, header: str = "path,split,person,camera", encoding: str = "utf-8") -> Make:
    """A user's table beside two images."""

    def make(folder: Path) -> None:
        for name in ("1.jpg", "2.jpg"):
            trees.image(folder / "a" / name)
        (folder / "dataset.csv").write_bytes("\n".join([header, *lines, ""]).encode(encoding))

    return make


CSV = "prepare --dataset csv --root . --out out"
GOOD = "a/1.jpg,train,1,1"
CSV_ROWS = [
    Bad("no table", lambda f: None, CSV, "needs a dataset.csv with the columns path and split; found none"),
    Bad("two tables", lambda f: [(f / n).touch() for n in ("a.csv", "b.csv")], CSV, "found a.csv, b.csv"),
    Bad("a table that is a folder", lambda f: (f / "dataset.csv").mkdir(), CSV, "needs a dataset.csv.*found none"),
    Bad("an empty table", lambda f: (f / "dataset.csv").touch(), CSV, "dataset.csv is empty; its first line names"),
    Bad("a table without rows", csv(), CSV, "no image was found"),
    Bad("no path column", csv("a/1.jpg,train", header="file,split"), CSV, r"lacks the column\(s\) path; it has file"),
    Bad("semicolons", csv("a/1.jpg;train", header="path;split"), CSV, "it has path;split"),
    Bad("a column twice", csv("a/1.jpg,b,train", header="path,path,split"), CSV, r"names the column\(s\) path twice"),
    Bad("two columns of people", csv("a/1.jpg,train,1,1", header="path,split,person,person_id"), CSV, "mean the same"),
    Bad(
        "a cell too many",
        csv(GOOD, "a/2.jpg,train,1,1,x"),
        CSV,
        "dataset.csv, line 3: 5 cells, but the first line names 4",
    ),
    Bad("a cell too few", csv("a/1.jpg,train"), CSV, "line 2: 2 cells"),
    Bad("an open quote", csv('"a/1.jpg,train,1,1'), CSV, "dataset.csv cannot be read as a table"),
    Bad("UTF-16", csv(GOOD, encoding="utf-16"), CSV, "dataset.csv cannot be read as a table in UTF-8"),
    Bad("Latin-1", csv("a/ü.jpg,train,1,1", encoding="latin-1"), CSV, "dataset.csv cannot be read as a table in UTF-8"),
    Bad("an unknown split", csv("a/1.jpg,Train,1,1"), CSV, r"unknown splits \['Train'\]; known are source, train"),
    Bad("no path", csv(",train,1,1"), CSV, r"1 row\(s\) without a path"),
    Bad("a path with a NUL", csv("a/1\0.jpg,train,1,1"), CSV, r"control characters.*\n.*a/1\\x00.jpg"),
    Bad("a path twice", csv(GOOD, GOOD), CSV, "listed twice in one split:\n  a/1.jpg"),
    Bad("a path twice, by a dot", csv(GOOD, "./a/1.jpg,train,1,1"), CSV, "listed twice.*\n  a/1.jpg\n  ./a/1.jpg"),
    Bad("a path twice, by slashes", csv(GOOD, "a//1.jpg,train,1,1"), CSV, "listed twice.*\n  a/1.jpg\n  a//1.jpg"),
    Bad("a path twice, by a parent", csv(GOOD, "a/../a/1.jpg,train,1,1"), CSV, "listed twice"),
    Bad(
        "an image in both halves",
        csv("a/1.jpg,train,,", "a/1.jpg,gallery,4,"),
        CSV,
        "both in training and in test:\n  a/1",
    ),
    Bad("a path out", csv("../1.jpg,train,1,1"), CSV, r"lead out of .*\n  \.\./1.jpg"),
    Bad("a path from the root", csv("/etc/passwd,train,1,1"), CSV, "lead out of .*\n  /etc/passwd"),
    Bad("a path to a folder", csv("a,train,1,1"), CSV, "a: it is not a regular file"),
    Bad("a path to nothing", csv("a/3.jpg,train,1,1"), CSV, "a/3.jpg: the file does not exist"),
    Bad("a path that is too long", csv(f"a/{'x' * 300}.jpg,train,1,1"), CSV, "x.jpg: File name too long"),
    Bad("backslashes", csv(r"a\1.jpg,train,1,1"), CSV, r"a\\1.jpg: the file does not exist"),
    Bad("a table's person beyond 64 bits", csv(f"a/1.jpg,train,{2**63},1"), CSV, f"person_id {2**63} of a/1.jpg"),
    Bad("a table's person below -1", csv("a/1.jpg,train,-5,1"), CSV, "person_id -5 of a/1.jpg"),
    Bad("a table's camera below -1", csv("a/1.jpg,train,1,-3"), CSV, "camera_id -3 of a/1.jpg"),
    Bad("a distractor that trains", csv("a/1.jpg,train,0,1"), CSV, "a person 0 outside the gallery; .*from 1"),
    Bad("a person of both halves", csv(GOOD, "a/2.jpg,query,1,1"), CSV, r"both in training and in test.*\[1\]"),
    Bad(
        "a closed table",
        lambda f: (csv(GOOD)(f), closed(f, "dataset.csv")),
        CSV,
        "dataset.csv: Permission denied",
        True,
    ),
]

FOLDER = "prepare --dataset folder --root . --out out"
FOLDER_ROWS = [
    Bad("a folder of nothing", lambda f: None, FOLDER, "folder: no image was found"),
    Bad("hidden folders alone", lambda f: trees.image(f / ".a" / "1.jpg"), FOLDER, "folder: no image was found"),
    Bad(
        "a person's folder that is closed",
        lambda f: (trees.image(f / "train/1/1.jpg"), trees.image(f / "train/2/1.jpg"), closed(f, "train/2")),
        FOLDER,
        "train/2 cannot be listed: Permission denied",
        True,
    ),
    Bad(
        "a person's folder whose name is no text",
        lambda f: trees.image(Path(os.fsdecode(os.fsencode(f) + b"/train/\xe9/1.jpg"))),
        FOLDER,
        r"no text.*\n.*train/\\xe9/1.jpg",
    ),
    Bad(
        "a camera of many digits", lambda f: trees.image(f / f"train/1/1_c{'9' * 30}.jpg"), FOLDER, "camera_id 9{30} of"
    ),
]

MSMT = f"prepare --dataset msmt17_v1 --root . --out out {ALLOW}"


def listed(line: str) -> Make:
    """MSMT17 with another line in its list of queries."""
    return lambda folder: (trees.msmt(folder, 1) / "list_query.txt").write_bytes(line.encode("latin-1"))


def list_as_folder(folder: Path) -> None:
    """MSMT17 whose list of queries is a folder."""
    path = trees.msmt(folder, 1) / "list_query.txt"
    path.unlink()
    path.mkdir()


PICTURE = "0000/0000_000_03_0303morning_0008_0.jpg"
MSMT_ROWS = [
    Bad("a line without a label", listed(PICTURE), MSMT, "list_query.txt, line 1: expected"),
    Bad("a label that is a word", listed(f"{PICTURE} one"), MSMT, "list_query.txt, line 1: expected"),
    Bad("a list that is no text", listed(f"{PICTURE} \xb2"), MSMT, "list_query.txt is no list in UTF-8"),
    Bad("a label below 0", listed(f"{PICTURE} -1"), MSMT, "list_query.txt, line 1: expected"),
    Bad("a label beyond 64 bits", listed(f"{PICTURE} {2**63}"), MSMT, "person_id 9223372036854775811 of test/"),
    Bad("a line twice", listed(f"{PICTURE} 0\n{PICTURE} 0"), MSMT, "listed twice in one split"),
    Bad("a listed path out", listed(f"../../{PICTURE} 0"), MSMT, "lead out of"),
    Bad("a listed image that is absent", listed("0000/0000_000_03_x.jpg 0"), MSMT, "03_x.jpg: the file does not exist"),
    Bad("the other version", lambda f: trees.msmt(f, 2), MSMT.replace("--root .", "--root MSMT17_V2"), "msmt17_v2"),
    Bad("a list that is a folder", list_as_folder, MSMT, "list_query.txt: Is a directory"),
]

CLASSIC = f"prepare --dataset cuhk03_classic_detected-0 --root . --out out {ALLOW}"
CUHK = f"prepare --dataset cuhk03np_detected --root . --out out {ALLOW}"
CONFIG = "cuhk03_new_protocol_config_detected.mat"


def stored(change: Callable[[h5py.File], object]) -> Make:
    """``cuhk-03.mat`` with a change of what HDF5 stores."""

    def make(folder: Path) -> None:
        trees.cuhk_matrix(folder, ["detected"])
        with h5py.File(folder / "cuhk-03.mat", "r+") as file:
            change(file)

    return make


def replaced(file: h5py.File, image: np.ndarray) -> None:
    """Put another array where the second image of pair 1, person 1 is."""
    pair = file[file["detected"][0, 0]]
    reference = file["#refs#"].create_dataset("other", data=image).ref
    cells = pair[:]
    cells[1, 0] = reference
    pair[:] = cells


def config(**changes: Any) -> Make:
    """The new protocol's files, with other entries; None takes one away."""

    def make(folder: Path) -> None:
        trees.cuhk_matrix(folder, ["detected"])
        path = trees.cuhk_config(folder, "detected")
        entries = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
        savemat(path, {key: value for key, value in {**entries, **changes}.items() if value is not None})

    return make


def cut(path: str, make: Make) -> Make:
    """Halve a file after it was made."""

    def made(folder: Path) -> None:
        make(folder)
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2])

    return made


def not_there(file: h5py.File, name: str) -> None:
    """Take an entry away."""
    del file[name]


def other(file: h5py.File, name: str, value: np.ndarray) -> None:
    """Put another value into an entry's place."""
    del file[name]
    file[name] = value


CUHK_ROWS = [
    Bad(
        "a matrix that is text", lambda f: (f / "cuhk-03.mat").write_text("hi"), CLASSIC, "cuhk-03.mat is not the HDF5"
    ),
    Bad("a matrix that is a folder", lambda f: (f / "cuhk-03.mat").mkdir(), CLASSIC, "cuhk-03.mat is not the HDF5"),
    Bad("a cut matrix", cut("cuhk-03.mat", trees.cuhk_matrix), CLASSIC, "cuhk-03.mat is not the HDF5.*truncated"),
    Bad(
        "a matrix without boxes", lambda f: trees.cuhk_matrix(f, ["labeled"]), CLASSIC, "cuhk-03.mat is not .*detected"
    ),
    Bad("a matrix without folds", stored(lambda f: not_there(f, "testsets")), CLASSIC, "cuhk-03.mat is not .*testsets"),
    Bad(
        "folds that are numbers", stored(lambda f: other(f, "testsets", np.ones(20))), CLASSIC, "cuhk-03.mat is not the"
    ),
    Bad(
        "boxes that are numbers", stored(lambda f: other(f, "detected", np.ones(5))), CLASSIC, "cuhk-03.mat is not the"
    ),
    Bad(
        "a matrix of float images",
        stored(lambda f: replaced(f, np.ones((3, 8, 16)))),
        CLASSIC,
        "1_001_1_02.png holds float64",
    ),
    Bad(
        "a matrix of grey images",
        stored(lambda f: replaced(f, np.ones((1, 8, 16), "u1"))),
        CLASSIC,
        "1_001_1_02.png holds uint8",
    ),
    Bad(
        "a protocol that is text",
        lambda f: (config()(f), (f / CONFIG).write_text("hi")),
        CUHK,
        f"{CONFIG} is not the new",
    ),
    Bad(
        "a protocol that is empty",
        lambda f: (config()(f), (f / CONFIG).write_bytes(b"")),
        CUHK,
        f"{CONFIG} is not the new",
    ),
    Bad("a cut protocol", cut(CONFIG, config()), CUHK, f"{CONFIG} "),
    Bad(
        "a protocol of MATLAB 7.3",
        lambda f: (config()(f), trees.cuhk_matrix(f / "x"), (f / "x/cuhk-03.mat").rename(f / CONFIG)),
        CUHK,
        f"{CONFIG} is not the new protocol's file",
    ),
    Bad("a protocol without labels", config(labels=None), CUHK, f"{CONFIG} lacks labels"),
    Bad("a protocol that counts from 0", config(query_idx=np.array([[0]])), CUHK, f"{CONFIG} .*query_idx holds 0"),
    Bad(
        "a protocol that counts too far",
        config(query_idx=np.array([[9]])),
        CUHK,
        f"{CONFIG} .*query_idx holds 9, but 5",
    ),
    Bad("a protocol's row that is no number", config(query_idx=np.array([[np.nan]])), CUHK, f"{CONFIG} .*holds nan"),
    Bad("a protocol of too few labels", config(labels=np.array([[1]])), CUHK, f"{CONFIG} "),
    Bad(
        "a protocol's name that leads out",
        lambda f: (trees.cuhk_matrix(f, ["detected"]), trees.cuhk_config(f, "detected", ["../e.png"] * 5)),
        CUHK,
        "'../e.png' is no CUHK03 image name",
    ),
    Bad(
        "a protocol's image that the matrix lacks",
        lambda f: (trees.cuhk_matrix(f, ["detected"]), trees.cuhk_config(f, "detected", ["9_001_1_01.png"] * 5)),
        CUHK,
        "cuhk-03.mat lacks 5 image",
    ),
]


@table([*MARKET_ROWS, *CSV_ROWS, *FOLDER_ROWS, *MSMT_ROWS, *CUHK_ROWS])
def test_prepare_refuses(bad: Bad, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check(bad, monkeypatch, capsys)
