"""The manifest on disk and in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from core.manifest import Manifest, ManifestError, build_manifest, read_manifest
from tests import trees

ROWS = [
    ("ü/NA.jpg", "train", 5, 2),
    ("a.jpg", "query", 1, 1),
    ("null.jpg", "gallery", 1, -1),
    ("b.jpg", "gallery", 0, 3),
]


def manifest(root: Path) -> Manifest:
    for path, *_ in ROWS:
        trees.image(root / path)
    rows = pd.DataFrame(ROWS, columns=["path", "split", "person_id", "camera_id"])
    return build_manifest(rows, root, "mine", info={"note": "Grüße"})


@pytest.mark.parametrize("place", ["out/images", "elsewhere"])
def test_what_is_written_is_read_again(tmp_path: Path, place: str) -> None:
    made = manifest(tmp_path / place)
    made.write(tmp_path / "out")
    read = read_manifest(tmp_path / "out")
    assert read.table.equals(made.table)
    assert (read.name, read.fingerprint, dict(read.info)) == ("mine", made.fingerprint, {"note": "Grüße"})
    assert all(path.is_file() for path in read.paths("gallery"))


def test_a_root_inside_the_folder_moves_with_it(tmp_path: Path) -> None:
    manifest(tmp_path / "out" / "images").write(tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / "moved")
    assert read_manifest(tmp_path / "moved").paths("train")[0].is_file()


def test_counts_leave_out_nobody_and_unknown_cameras(tmp_path: Path) -> None:
    counts = manifest(tmp_path).counts()
    assert list(counts) == ["train", "query", "gallery"]
    assert counts["gallery"] == {"images": 2, "identities": 1, "cameras": 1}


def test_a_split_without_images_is_an_error_that_names_the_others(tmp_path: Path) -> None:
    made = manifest(tmp_path)
    assert made.has("train")
    assert not made.has("source")
    with pytest.raises(ManifestError, match=r"'mine' has no 'source' images; .* \['gallery', 'query', 'train'\]"):
        made.split("source")


def test_a_folder_without_a_manifest_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=rf"manifest.csv does not exist; run `.*prepare --out {tmp_path}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("camera_id", "cam", r"lacks the columns \['camera_id'\]"), ("query", "probe", r"unknown splits \['probe'\]")],
)
def test_a_malformed_manifest_says_why(tmp_path: Path, old: str, new: str, message: str) -> None:
    manifest(tmp_path / "images").write(tmp_path)
    path = tmp_path / "manifest.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)
