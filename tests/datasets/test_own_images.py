"""A user's own images: folder trees and tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from datasets.base import DatasetError
from tests import trees
from tests.datasets.test_layouts import labels, read


def test_a_plain_folder_is_training_images_of_unknown_people(tmp_path: Path) -> None:
    for name in ("a.jpg", "Söder 1/b.PNG", "deep/er/c.jpeg", "deep/.hidden/d.jpg"):
        trees.image(tmp_path / name)
    trees.dirt(tmp_path)
    assert labels(read("folder", tmp_path)[0]) == [
        ("Söder 1/b.PNG", "train", -1, -1),
        ("a.jpg", "train", -1, -1),
        ("deep/er/c.jpeg", "train", -1, -1),
    ]


def test_split_folders_hold_people_as_folders(tmp_path: Path) -> None:
    paths = ("train/anna/1.jpg", "train/bo/1.jpg", "query/anna/1.jpg", "gallery/anna/2.jpg", "gallery/x/side/3.jpg")
    for name in paths:
        trees.image(tmp_path / name)
    trees.image(tmp_path / "notes" / "ignored.jpg")
    assert labels(read("folder", tmp_path)[0]) == [
        ("gallery/anna/2.jpg", "gallery", 1, -1),
        ("gallery/x/side/3.jpg", "gallery", 2, -1),
        ("query/anna/1.jpg", "query", 1, -1),
        ("train/anna/1.jpg", "train", 3, -1),
        ("train/bo/1.jpg", "train", 4, -1),
    ]


def test_cameras_come_from_names_only_when_every_image_has_one(tmp_path: Path) -> None:
    for name in ("train/7/0007_c2_1.jpg", "train/7/c11_5.jpg"):
        trees.image(tmp_path / name)
    assert sorted(read("folder", tmp_path)[0]["camera_id"]) == [2, 11]
    trees.image(tmp_path / "train/7/other.jpg")
    assert set(read("folder", tmp_path)[0]["camera_id"]) == {-1}


def test_gallery_images_of_nobody_are_junk(tmp_path: Path) -> None:
    for name in ("train/1.jpg", "gallery/2.jpg", "gallery/anna/3.jpg"):
        trees.image(tmp_path / name)
    assert labels(read("folder", tmp_path)[0]) == [
        ("gallery/2.jpg", "junk", -1, -1),
        ("gallery/anna/3.jpg", "gallery", 1, -1),
        ("train/1.jpg", "train", -1, -1),
    ]


def test_linked_folders_are_followed_unless_they_lead_out_or_in_circles(tmp_path: Path) -> None:
    folder, outside = tmp_path / "data", trees.image(tmp_path / "other" / "2.jpg").parent
    trees.image(folder / "real" / "1.jpg")
    (folder / "again").symlink_to(folder / "real")
    (folder / "real" / "circle").symlink_to(folder)
    assert [row[0] for row in labels(read("folder", folder)[0])] == ["again/1.jpg", "real/1.jpg"]
    (folder / "out").symlink_to(outside)
    with pytest.raises(DatasetError, match=r"1 path\(s\) or link\(s\) lead out of [\s\S]*out/2.jpg"):
        read("folder", folder)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="folder: no image was found"):
        read("folder", tmp_path)


def write_table(folder: Path, text: str, name: str = "dataset.csv", encoding: str = "utf-8") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding=encoding)


def test_a_table_needs_path_and_split_only(tmp_path: Path) -> None:
    write_table(tmp_path, "path,split\nu/1.jpg,train\nu/2.jpg,query\n")
    assert labels(read("csv", tmp_path)[0]) == [("u/1.jpg", "train", -1, -1), ("u/2.jpg", "query", -1, -1)]


@pytest.mark.parametrize("suffix", ["", "_id"])
def test_whole_numbers_are_kept(tmp_path: Path, suffix: str) -> None:
    lines = ["1.jpg,train,0007,3", "2.jpg,query,12,1", "3.jpg,gallery,0,1", "4.jpg,gallery,-1,", "5.jpg,gallery,,2"]
    write_table(tmp_path, "\n".join([f"path,split,person{suffix},camera{suffix}", *lines]))
    assert labels(read("csv", tmp_path)[0]) == [
        ("1.jpg", "train", 7, 3),
        ("2.jpg", "query", 12, 1),
        ("3.jpg", "gallery", 0, 1),
        ("4.jpg", "junk", -1, -1),
        ("5.jpg", "junk", -1, 2),
    ]


def test_names_are_numbered_and_na_is_a_name(tmp_path: Path) -> None:
    lines = ("é 1.jpg,query,zoë,hall", "2.jpg,gallery,NA,door", "3.jpg,gallery,zoë,door")
    write_table(tmp_path, "\n".join(["path,split,person,camera,comment", *(f"{line},x" for line in lines)]))
    rows, _ = read("csv", tmp_path)
    assert labels(rows) == [
        ("2.jpg", "gallery", 1, 1),
        ("3.jpg", "gallery", 2, 1),
        ("é 1.jpg", "query", 2, 2),
    ]
    assert "comment" not in rows.columns


def test_frames_and_the_mark_of_spreadsheets_are_read(tmp_path: Path) -> None:
    write_table(tmp_path, "path,split,frame\n1.jpg,train,45\n2.jpg,train,\n", encoding="utf-8-sig")
    assert read("csv", tmp_path)[0]["frame"].tolist() == [45, -1]


def test_the_only_csv_of_a_folder_is_taken_whatever_its_name(tmp_path: Path) -> None:
    write_table(tmp_path, "path,split\n1.jpg,train\n", name="Meine Bilder.CSV")
    write_table(tmp_path, "path,split,person_id,camera_id\n", name="manifest.csv")
    assert len(read("csv", tmp_path)[0]) == 1
    write_table(tmp_path, "path,split\n", name="b.csv")
    with pytest.raises(DatasetError, match=r"needs a dataset.csv .* found Meine Bilder.CSV, b.csv"):
        read("csv", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,split\n1.jpg,train\n", r"lacks the column\(s\) path; it has file, split"),
        ("path;split\n1.jpg;train\n", r"lacks the column\(s\) path, split; it has path;split"),
        ("path,split\n1.jpg,test\n", r"unknown splits \['test'\]; known are source, train, query"),
        ("path,split\n", "no image was found"),
        ("", "dataset.csv is empty; its first line names the columns path, split"),
        ("path,split\n1.jpg,train\n1.jpg,train\n", r"1 image\(s\) are listed twice in one split:\n  1.jpg"),
        (
            "path,split\n../1.jpg,train\n/etc/2.jpg,train\n",
            r"2 path\(s\) .* lead out of [\s\S]*\.\./1.jpg\n  /etc/2.jpg",
        ),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    write_table(tmp_path, text)
    with pytest.raises(DatasetError, match=message):
        read("csv", tmp_path)


def test_absolute_paths_within_the_folder_become_relative(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    pd.DataFrame({"path": [str(folder / "a" / "1.jpg")], "split": ["train"]}).to_csv(folder / "dataset.csv")
    assert read("csv", folder)[0]["path"].tolist() == ["a/1.jpg"]
