"""Bad prepared datasets: each row stops ``train``, ``pretrain``, ``evaluate`` or ``cross_domain`` before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.manifest import read_manifest
from pipeline import cross_domain, evaluate, prepare, pretrain, train
from pipeline.jobs import ROOT
from tests import trees
from tests.inputs.bad import Bad, check, table

assert cross_domain, (evaluate, pretrain, train)  # imported before any right to read files is given up
COMMON = f"--params {ROOT}/params.yaml --profile tiny --device cpu --cache cache"
TRAIN = f"train --method supervised --dataset mine --data data --out out {COMMON}"
PRETRAIN = f"pretrain --dataset mine --data data --out out {COMMON}"
PATHS = [f"{split}/{person}/{number}.jpg" for split in ("source", "train") for person in "12" for number in "12"]
PATHS += ["query/5/1.jpg", "gallery/5/2.jpg", "gallery/6/1.jpg"]
Make = Callable[[Path], object]


def prepared(folder: Path, paths: list[str] | None = None) -> Path:
    """A small dataset of one's own, prepared into ``data`` by the entry point."""
    for number, path in enumerate(PATHS if paths is None else paths):
        trees.image(folder / "images" / path, 20 * number)
    prepare.main(["--dataset", "folder", "--root", str(folder / "images"), "--out", str(folder / "data")])
    return folder / "data"


def of(*paths: str) -> Make:
    """Images of other splits and people."""
    return lambda folder: prepared(folder, list(paths))


def table_with(change: Callable[[str], str]) -> Make:
    """The table on disk changed after it was prepared."""

    def make(folder: Path) -> None:
        path = prepared(folder) / "manifest.csv"
        path.write_text(change(path.read_text()))

    return make


def cell(old: str, new: str) -> Make:
    """The first occurrence of a piece of the table replaced."""
    return table_with(lambda text: text.replace(old, new, 1))


def record_with(**changes: Any) -> Make:
    """The record on disk changed after it was prepared; None takes a key away."""

    def make(folder: Path) -> None:
        path = prepared(folder) / "dataset.json"
        record = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))

    return make


def file_with(name: str, content: bytes | None) -> Make:
    """One of the two files with other bytes, or taken away."""

    def make(folder: Path) -> None:
        path = prepared(folder) / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return make


def closed(name: str) -> Make:
    """One of the two files without permissions."""
    return lambda folder: (prepared(folder) / name).chmod(0)


def image_with(change: Callable[[Path], object]) -> Make:
    """A source image changed after it was prepared."""
    return lambda folder: (prepared(folder), change(folder / "images/source/1/1.jpg"))


def table_as_folder(folder: Path) -> None:
    """A folder where the table was."""
    (prepared(folder) / "manifest.csv").unlink()
    (folder / "data" / "manifest.csv").mkdir()


MISSING_ROWS = [
    Bad(
        "nothing drawn",
        lambda f: None,
        f"train --method hhcl --dataset rendered {COMMON}",
        r"data/rendered holds no prepared dataset; run `python -m pipeline prepare --dataset rendered` first",
    ),
    Bad(
        "nothing drawn, elsewhere",
        lambda f: None,
        f"pretrain --dataset rendered --data 'x' {COMMON}",
        rf"--dataset rendered --out \S+ first .commands run from the suite's root: `cd {ROOT}`".replace(
            " first", "` first"
        ),
    ),
    Bad(
        "nothing prepared",
        lambda f: None,
        f"pretrain --dataset market1501 {COMMON}",
        "run `python -m pipeline prepare --dataset market1501 --root DIR` first, DIR being the folder",
    ),
    Bad(
        "no fold prepared",
        lambda f: None,
        f"train --method hhcl --dataset cuhk03np_labeled-0 {COMMON}",
        "prepare --dataset cuhk03np_labeled-0 --root DIR` first",
    ),
    Bad(
        "nothing of one's own prepared",
        lambda f: None,
        f"train --method hhcl --dataset mine {COMMON}",
        "no dataset is called 'mine' .known: csv.*own: `python -m pipeline prepare --dataset folder .*--out data/mine`",
    ),
    Bad(
        "nothing prepared to test on",
        lambda f: None,
        f"evaluate --method hhcl --dataset market1501 {COMMON}",
        "prepare --dataset market1501 --root DIR` first",
    ),
    Bad(
        "a dataset whose name leads out",
        lambda f: (f / "a").mkdir(),
        f"train --method hhcl --dataset ../a {COMMON}",
        r"a dataset cannot be called '\.\./a'",
    ),
    Bad(
        "no initial weights",
        prepared,
        TRAIN,
        "initial/mine-resnet18_half-0 holds no initial weights; run `python -m pipeline pretrain --dataset mine "
        "--backbone resnet18_half --profile tiny --data data` first",
    ),
    Bad(
        "no trained run",
        prepared,
        f"evaluate --method hhcl --dataset mine --data data {COMMON}",
        "holds no trained run; run `python -m pipeline train --method hhcl --dataset mine --seed 0",
    ),
    Bad(
        "no settings, elsewhere",
        lambda f: None,
        "train --method hhcl --dataset rendered",
        f"params.yaml does not exist .*commands run from the suite's root: `cd {ROOT}`",
    ),
]

TABLE_ROWS = [
    Bad(
        "a row less",
        table_with(lambda text: text[: text.rindex("\n", 0, -1) + 1]),
        TRAIN,
        "not the table that .*prepare",
    ),
    Bad(
        "a label changed",
        cell("train,-1,3", "train,-1,4"),
        TRAIN,
        "not the table that data/dataset",
    ),
    Bad("a table without cameras", cell("camera_id", "cam"), TRAIN, r"manifest.csv lacks the columns \['camera_id'\]"),
    Bad("a split of no name", cell(",query,", ",probe,"), TRAIN, r"manifest.csv holds unknown splits \['probe'\]"),
    Bad(
        "a person that is a word",
        cell("train,-1,3", "train,-1,anna"),
        TRAIN,
        "manifest.csv: person_id must hold whole numbers",
    ),
    Bad("a person that is a fraction", cell("train,-1,3", "train,-1,4.5"), TRAIN, "person_id must hold whole numbers"),
    Bad("a person that is empty", cell("train,-1,3", "train,-1,"), TRAIN, "person_id must hold whole numbers"),
    Bad(
        "a person far below -1",
        cell("train,-1,3", "train,-1,-7"),
        TRAIN,
        "person_id must hold whole numbers of 64 bits, -1 or",
    ),
    Bad(
        "a person of 65 bits",
        cell("train,-1,3", f"train,-1,{2**64}"),
        TRAIN,
        "person_id must hold whole numbers of 64 bits",
    ),
    Bad(
        "a person of 63.5 bits",
        cell("train,-1,3", f"train,-1,{2**63}"),
        TRAIN,
        "person_id must hold whole numbers of 64 bits",
    ),
    Bad("a camera far below -1", cell(",-1,", ",-9,"), TRAIN, "manifest.csv: camera_id must hold"),
    Bad("a path of the table that leads out", cell("train/1/1", "../1/1"), TRAIN, r"paths lead out .*'\.\./1/1.jpg'"),
    Bad("a path of the table from the root", cell("train/1/1", "/etc/1"), TRAIN, "paths lead out .*'/etc/1.jpg'"),
    Bad("a row twice", cell("train/1/1.jpg,train", "train/1/2.jpg,train"), TRAIN, "lists an image twice in one split"),
    Bad(
        "a table of other bytes", file_with("manifest.csv", b"\xff\xfe\x00"), TRAIN, "manifest.csv is no table in UTF-8"
    ),
    Bad(
        "a table of nothing",
        file_with("manifest.csv", b""),
        TRAIN,
        "manifest.csv is no table.*prepare the dataset again",
    ),
    Bad("a table of an open quote", file_with("manifest.csv", b'path,split\n"a,b'), TRAIN, "manifest.csv is no table"),
    Bad("a folder for a table", table_as_folder, TRAIN, "data holds no prepared dataset"),
    Bad("a closed manifest", closed("manifest.csv"), TRAIN, "manifest.csv: Permission denied", True),
    Bad(
        "no record",
        file_with("dataset.json", None),
        TRAIN,
        "dataset.json does not exist; run `python -m pipeline prepare",
    ),
    Bad("a closed record", closed("dataset.json"), TRAIN, "dataset.json: Permission denied", True),
    Bad("a record that is no JSON", file_with("dataset.json", b"{"), TRAIN, "dataset.json is not valid JSON"),
    Bad("a record of other bytes", file_with("dataset.json", b"\xff\xff"), TRAIN, "dataset.json is not valid JSON"),
    Bad("a record without end", file_with("dataset.json", b"[" * 10**5), TRAIN, "dataset.json is not valid JSON"),
    Bad(
        "a record that is a list", file_with("dataset.json", b"[]"), TRAIN, "dataset.json lacks name, root, fingerprint"
    ),
    Bad("a record without fingerprint", record_with(fingerprint=None), TRAIN, "dataset.json lacks fingerprint"),
    Bad(
        "a record of an earlier version",
        record_with(manifest_sha256=None),
        TRAIN,
        "lacks manifest_sha256.*earlier version",
    ),
    Bad(
        "a record whose root is a number",
        record_with(root=3),
        TRAIN,
        "dataset.json lacks root, or holds something else",
    ),
    Bad("a record of other counts", record_with(counts={}), TRAIN, r"dataset.json counts \{\}, but .*holds \{'source'"),
    Bad(
        "a name that leads out",
        record_with(name="../../evil"),
        PRETRAIN,
        "dataset.json: .*cannot be called '../../evil'",
    ),
    Bad("a name with a slash", record_with(name="a/b"), PRETRAIN, "cannot be called 'a/b'"),
    Bad("an empty name", record_with(name=""), PRETRAIN, "cannot be called ''"),
    Bad("a hidden name", record_with(name=".a"), PRETRAIN, "cannot be called '.a'"),
    Bad("a name with a line break", record_with(name="a\n"), PRETRAIN, r"cannot be called 'a\\n'"),
    Bad(
        "a damaged dataset among those to test on",
        lambda f: (cell(",query,", ",probe,")(f), (f / "all").mkdir(), (f / "data").rename(f / "all" / "mine")),
        f"cross_domain --params {ROOT}/params.yaml --trained x --data all --out out",
        r"mine/manifest.csv holds unknown splits \['probe'\]",
    ),
    Bad(
        "no dataset to test on",
        lambda f: None,
        f"cross_domain --params {ROOT}/params.yaml --trained x --data all --out out",
        "no dataset with query and gallery in all",
    ),
]

IMAGE_ROWS = [
    Bad(
        "images that are gone",
        lambda f: (prepared(f), shutil.rmtree(f / "images")),
        PRETRAIN,
        "images.*not there now; br",
    ),
    Bad("an image that is gone", image_with(Path.unlink), PRETRAIN, "source/1/1.jpg: the file does not exist"),
    Bad("an image that is cut", image_with(lambda p: p.write_bytes(p.read_bytes()[:99])), PRETRAIN, "source/1/1.jpg: "),
    Bad(
        "an image that is deep by now",
        image_with(lambda p: Image.new("I;16", (8, 16)).save(p, format="PNG")),
        PRETRAIN,
        "source/1/1.jpg: its pixels have more than 8 bits",
    ),
    Bad(
        "an image that is closed", image_with(lambda p: p.chmod(0)), PRETRAIN, "source/1/1.jpg: Permission denied", True
    ),
    Bad(
        "source people who are unknown",
        of("source/1.jpg", "source/1/1.jpg"),
        PRETRAIN,
        "trained on person ids, but 1 of 2 source images of 'folder' have none; prepare the dataset with its people",
    ),
    Bad(
        "one source person",
        of("source/1/1.jpg", "source/1/2.jpg"),
        PRETRAIN,
        "all 2 source images .* are of one person",
    ),
    Bad("no source and nothing to start from", of("train/1/1.jpg"), PRETRAIN, "no labelled source split.*--start-from"),
]


@table([*MISSING_ROWS, *TABLE_ROWS, *IMAGE_ROWS])
def test_a_prepared_dataset_is_refused(
    bad: Bad, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(bad, monkeypatch, capsys)


def test_the_small_dataset_itself_is_whole(tmp_path: Path) -> None:
    assert len(read_manifest(prepared(tmp_path)).table) == len(PATHS)
