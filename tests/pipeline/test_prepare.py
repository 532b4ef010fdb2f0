"""``python -m pipeline.prepare``: what it writes, what it prints, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import datasets
from core.images import UnreadableImages
from core.manifest import read_manifest
from datasets.base import Dataset, DatasetError
from pipeline import prepare
from pipeline.jobs import ROOT
from tests import trees

ALLOW = "--allow-unknown-fingerprint"


def run(name: str, root: Path, out: Path, *more: str) -> int:
    return prepare.main(["--dataset", name, "--root", str(root), "--out", str(out), *more])


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Change what is published about Market-1501, as if the small tree were the dataset."""
    original = datasets.load("market1501")

    def change(**fields: Any) -> Dataset:
        changed = dataclasses.replace(original, **fields)
        monkeypatch.setattr(datasets, "load", lambda name: changed)
        return changed

    return change


COUNTS = {
    "train": {"images": 3, "identities": 2, "cameras": 3},
    "query": {"images": 2, "identities": 2},
    "gallery": {"images": 4, "identities": 2},
    "junk": {"images": 1},
}


def test_the_manifest_and_its_record_are_written_into_folders_that_did_not_exist(
    tmp_path: Path, publish: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(expected=COUNTS)
    root, out = trees.market(tmp_path / "in put ü"), tmp_path / "a" / "b ö"
    assert run("market1501", root, out) == 0
    manifest = read_manifest(out)
    assert list(manifest.table.columns[:4]) == ["path", "split", "person_id", "camera_id"]
    assert manifest.counts()["train"] == {"images": 3, "identities": 2, "cameras": 3}
    assert manifest.counts()["gallery"]["identities"] == 2
    assert manifest.counts()["junk"] == {"images": 1, "identities": 0, "cameras": 1}
    assert all(path.is_file() for path in manifest.paths("query"))
    assert json.loads((out / "dataset.json").read_text())["info"]["fingerprint_status"] == "unverified"
    printed = capsys.readouterr().out
    assert f"fingerprint {manifest.fingerprint} (unverified)" in printed
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines()}
    assert lines["split"] == ["images", "ids", "cameras"]
    assert lines["train"] == ["3", "2", "3"]
    assert lines["gallery"] == ["4", "2", "2"]


def test_preparing_again_writes_the_same_bytes(tmp_path: Path) -> None:
    trees.market(tmp_path)
    written = []
    for _ in range(2):
        run("market1501", tmp_path, tmp_path / "out", ALLOW)
        written.append([(tmp_path / "out" / name).read_bytes() for name in ("manifest.csv", "dataset.json")])
    assert written[0] == written[1]


def test_rows_stand_in_an_order_that_tells_nothing_about_people(tmp_path: Path) -> None:
    for person in range(8):
        for number in range(4):
            trees.image(tmp_path / "train" / f"{person:03d}" / f"{number}.jpg")
    run("folder", tmp_path, tmp_path / "out")
    table = read_manifest(tmp_path / "out").split("train")
    steps = np.abs(np.diff(table["person_id"]))
    assert table["path"].tolist() != sorted(table["path"])
    assert (steps == 0).mean() < 0.5


def test_the_dataset_itself_is_left_alone(tmp_path: Path) -> None:
    root = trees.market(tmp_path)
    before = sorted(root.rglob("*"))
    run("market1501", root, tmp_path / "out", ALLOW)
    assert sorted(root.rglob("*")) == before


def test_other_counts_stop_with_both_numbers_and_the_flag(tmp_path: Path, publish: Any) -> None:
    publish(expected={**COUNTS, "train": {"images": 12936, "identities": 2}})
    trees.market(tmp_path)
    with pytest.raises(DatasetError, match=rf"train images: found 3, expected 12,936[\s\S]*{ALLOW}") as caught:
        run("market1501", tmp_path, tmp_path / "out")
    assert "identities" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_the_flag_accepts_other_counts_and_keeps_them_on_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.market(tmp_path)
    assert run("market1501", tmp_path, tmp_path / "out", ALLOW) == 0
    assert "differs: train images: found 3, expected 12,936" in capsys.readouterr().out
    info = read_manifest(tmp_path / "out").info
    assert info["fingerprint_status"] == "differs from the published dataset"
    assert "query images: found 2, expected 3,368" in info["differences"]


def test_a_contributed_fingerprint_is_verified(
    tmp_path: Path, publish: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(expected=COUNTS)
    root = trees.market(tmp_path)
    run("market1501", tmp_path, tmp_path / "out")
    fingerprint = read_manifest(tmp_path / "out").fingerprint
    publish(expected=COUNTS, fingerprint=fingerprint)
    run("market1501", tmp_path, tmp_path / "out")
    assert f"{fingerprint} (verified)" in capsys.readouterr().out
    (root / "query" / "0003_c4s6_015641_00.jpg").unlink()
    trees.image(root / "query" / "0003_c4s6_015642_00.jpg")
    with pytest.raises(DatasetError, match=rf"fingerprint: found [0-9a-f]{{64}}, expected {fingerprint}"):
        run("market1501", tmp_path, tmp_path / "out")


def test_the_fingerprint_depends_on_paths_and_sizes_not_on_where_the_tree_lies(tmp_path: Path) -> None:
    prints = []
    for place in ("one", "two"):
        trees.market(tmp_path / place)
        run("market1501", tmp_path / place, tmp_path / "out", ALLOW)
        prints.append(read_manifest(tmp_path / "out").fingerprint)
    with (tmp_path / "two" / "Market-1501-v15.09.15" / "query" / "0001_c1s1_001051_00.jpg").open("ab") as file:
        file.write(b"one byte more")
    run("market1501", tmp_path / "two", tmp_path / "out", ALLOW)
    assert prints[0] == prints[1] != read_manifest(tmp_path / "out").fingerprint


def test_all_unreadable_images_are_listed(tmp_path: Path) -> None:
    root = trees.market(tmp_path)
    bad = [
        trees.broken(root / "query" / "0011_c1s1_000001_00.jpg"),
        trees.broken(root / "bounding_box_train" / "0012_c1s1_000001_00.JPG"),
    ]
    (root / "query" / "0013_c1s1_000001_00.jpg").symlink_to(root / "query" / "gone.jpg")
    with pytest.raises(UnreadableImages, match=r"3 image\(s\) cannot be read") as caught:
        run("market1501", tmp_path, tmp_path / "out", ALLOW)
    assert all(str(path) in str(caught.value) for path in bad)
    assert "0013_c1s1_000001_00.jpg: the file does not exist" in str(caught.value)


def test_images_that_a_list_names_and_the_disk_lacks_are_listed(tmp_path: Path) -> None:
    folder = trees.msmt(tmp_path, 1)
    missing = folder / "test" / "0001" / "0001_001_05_0303morning_0008_0.jpg"
    missing.unlink()
    with pytest.raises(UnreadableImages, match=r"1 image\(s\)[\s\S]*0001_001_05_.*does not exist"):
        run("msmt17_v1", tmp_path, tmp_path / "out", ALLOW)


def test_notices_are_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.duke(tmp_path)
    run("dukemtmc", tmp_path, tmp_path / "out", ALLOW)
    assert "notice: DukeMTMC-reID was withdrawn by its authors in 2019" in capsys.readouterr().out
    assert "withdrawn" in read_manifest(tmp_path / "out").info["notices"][0]


def test_one_fold_at_a_time_is_prepared_and_recorded(tmp_path: Path) -> None:
    trees.cuhk_matrix(tmp_path / "cuhk03")
    run("cuhk03_classic_detected", tmp_path, tmp_path / "out", "--fold", "7", ALLOW)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.info["fold"] == 7
    assert manifest.root == tmp_path / "out" / "images"
    assert sorted(manifest.split("query")["path"]) == sorted(manifest.split("gallery")["path"])
    with pytest.raises(DatasetError, match=r"has the folds 0\.\.19; 20 is none of them"):
        run("cuhk03_classic_detected", tmp_path, tmp_path / "out", "--fold", "20")
    with pytest.raises(DatasetError, match=r"has the folds 0\.\.0; 2 is none of them"):
        run("market1501-2", tmp_path, tmp_path / "out")


def test_a_fold_is_named_as_a_dataset_and_goes_into_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.cuhk_matrix(tmp_path / "cuhk03")
    monkeypatch.chdir(tmp_path)
    assert prepare.main(["--dataset", "cuhk03_classic_labeled-3", "--root", str(tmp_path), ALLOW]) == 0
    manifest = read_manifest(Path("data/cuhk03_classic_labeled-3"))
    assert (manifest.name, manifest.info["fold"]) == ("cuhk03_classic_labeled", 3)
    with pytest.raises(DatasetError, match=r"has 20 folds, each .*: prepare cuhk03_classic_labeled-0 to"):
        prepare.main(["--dataset", "cuhk03_classic_labeled", "--root", str(tmp_path), ALLOW])


def test_a_root_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"msmt17_v1: pass --root[\s\S]*Where to get it: MSMT17_V1"):
        prepare.main(["--dataset", "msmt17_v1", "--out", str(tmp_path)])


class TestRendered:
    """The tiny world of the shared fixture, which ``prepare`` drew."""

    def test_all_splits_come_from_the_market_parser(self, world: Any) -> None:
        manifest = read_manifest(world.data)
        assert list(manifest.counts()) == ["source", "train", "query", "gallery", "junk"]
        assert {"size", "world", "renderer_version"} <= set(manifest.info)
        assert "Market-1501-v15.09.15/bounding_box_train" in manifest.split("train")["path"][0]
        assert "source/Market-1501-v15.09.15/" in manifest.split("source")["path"][0]
        assert (manifest.split("gallery")["person_id"] == 0).any()
        assert set(manifest.split("junk")["person_id"]) == {-1}

    def test_people_and_cameras_of_the_source_are_its_own(self, world: Any) -> None:
        table = read_manifest(world.data).table
        source = table["split"] == "source"
        for column in ("person_id", "camera_id"):
            assert not set(table[column][source]) & set(table[column][~source])

    def test_it_has_a_contact_sheet_and_can_be_moved(self, world: Any) -> None:
        assert (world.data / "contact_sheet.png").stat().st_size > 1000
        assert json.loads((world.data / "dataset.json").read_text())["root"] == "images"

    def test_its_fingerprint_is_that_of_its_table(self, world: Any) -> None:
        record = json.loads((world.data / "images" / "rendered.json").read_text())
        assert read_manifest(world.data).fingerprint == record["fingerprint"]


def test_a_folder_with_files_of_others_is_not_emptied_to_draw(tmp_path: Path) -> None:
    mine = trees.image(tmp_path / "images" / "mine.jpg")
    with pytest.raises(DatasetError, match="holds files that `prepare` did not write"):
        prepare.main(["--dataset", "rendered", "--size", "tiny", "--out", str(tmp_path)])
    assert mine.is_file()


def test_the_command_prints_one_message_and_exits_with_2_when_it_cannot_go_on(tmp_path: Path) -> None:
    arguments = ["--dataset", "market1501", "--root", str(tmp_path / "none"), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "pipeline.prepare", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: market1501: ")
    assert "Traceback" not in done.stderr
    assert "Where to get it" in done.stderr


def test_help_names_every_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        prepare.main(["--help"])
    assert left.value.code == 0
    text = "".join(capsys.readouterr().out.split())
    assert all(name in text for name in datasets.available())


def test_a_users_table_goes_through(tmp_path: Path) -> None:
    trees.image(tmp_path / "my images" / "1.jpg")
    trees.image(tmp_path / "my images" / "2.jpg")
    table = pd.DataFrame({"path": ["my images/1.jpg", "my images/2.jpg"], "split": ["train", "train"]})
    table.to_csv(tmp_path / "dataset.csv", index=False)
    assert run("csv", tmp_path, tmp_path / "out") == 0
    assert read_manifest(tmp_path / "out").counts() == {"train": {"images": 2, "identities": 0, "cameras": 0}}


def test_a_pair_has_the_others_training_images_as_its_source_under_a_name_and_fingerprint_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "disk"
    trees.market(root)
    trees.duke(root)
    for arguments in (["--dataset", "market1501", "--source", "dukemtmc"], ["--dataset", "market1501"]):
        assert prepare.main([*arguments, "--root", str(root), ALLOW]) == 0
    pair, alone = read_manifest(Path("data/market1501-from-dukemtmc")), read_manifest(Path("data/market1501"))
    assert (pair.name, pair.info["source"]["name"]) == ("market1501-from-dukemtmc", "dukemtmc")
    assert pair.fingerprint not in (alone.fingerprint, pair.info["source"]["fingerprint"])
    source = pair.split("source")
    assert sorted(Path(path).name for path in source["path"]) == sorted(trees.DUKE_NAMES["bounding_box_train"])
    assert source["person_id"].nunique() == 2
    assert all(path.is_file() for split in ("source", "train", "query", "gallery") for path in pair.paths(split))
    for label in ("person_id", "camera_id"):
        others = set(pair.table[label][pair.table["split"] != "source"])
        assert not others & set(source[label])
    for split in ("train", "query", "gallery", "junk"):
        kept = [Path(path).name for path in pair.split(split)["path"]]
        assert kept == [Path(path).name for path in alone.split(split)["path"]], "the target in its own order"
    assert datasets.protocol_of(pair.name) == datasets.protocol_of("market1501")
    assert prepare.main(["--dataset", "market1501-from-dukemtmc", "--root", str(root), ALLOW]) == 0
    assert read_manifest(Path("data/market1501-from-dukemtmc")).fingerprint == pair.fingerprint


@pytest.mark.parametrize(
    ("target", "source", "reason"),
    [
        ("market1501", "market1501", "same people"),
        ("cuhk03np_labeled", "cuhk03np_detected", "same people"),
        ("rendered-0", "market1501", "one of their own"),
    ],
)
def test_a_source_of_the_same_people_or_beside_drawn_ones_is_refused(
    tmp_path: Path, target: str, source: str, reason: str
) -> None:
    trees.market(tmp_path)
    trees.cuhk_folder(tmp_path, "labeled")
    with pytest.raises(DatasetError, match=reason):
        run(target, tmp_path, tmp_path / "out", "--source", source, "--size", "tiny", ALLOW)
    assert not (tmp_path / "out").exists()


def test_the_labelled_people_of_a_drawn_world_are_a_source_beside_real_ones(tmp_path: Path) -> None:
    trees.market(tmp_path / "disk")
    assert run("market1501-from-rendered-3", tmp_path / "disk", tmp_path / "out", "--size", "tiny", ALLOW) == 0
    pair = read_manifest(tmp_path / "out")
    assert (pair.name, pair.info["source"]["world"]) == ("market1501-from-rendered-3", 3)
    assert pair.info["fingerprint_status"] == "target differs from the published dataset, source drawn"
    assert len(pair.split("source")) > 0
    assert all(path.is_file() and "source" in path.parts for path in pair.paths("source"))
    assert [len(pair.split(split)) for split in ("train", "query", "gallery")] == [3, 2, 4]
