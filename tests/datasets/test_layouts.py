"""Every loader on a small tree in the official layout, with the dirt of real copies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import datasets
from datasets import _cuhk03
from datasets.base import Dataset, DatasetError, check_rows, count_differences, find_folder
from tests import trees

REAL = "REID_DATA"  # names a folder that holds CUHK03, for the one test that reads real images where they lie
Rows = list[tuple[str, str, int, int]]


def read(name: str, root: Path, out: Path | None = None, fold: int = 0) -> tuple[pd.DataFrame, Path]:
    """Rows of the dataset below ``root`` as ``prepare`` reads them, and the folder that they are relative to."""
    dataset = datasets.load(name)
    folder = find_folder(dataset, root)
    if dataset.unpack is not None:
        folder = dataset.unpack(folder, out or root / "unpacked", fold)
    rows = dataset.index(folder)
    check_rows(name, rows, folder)
    return rows, folder


def labels(rows: pd.DataFrame) -> Rows:
    """Sorted (path, split, person, camera)."""
    columns = ["path", "split", "person_id", "camera_id"]
    return sorted(rows[columns].itertuples(index=False, name=None))


def splits(rows: pd.DataFrame) -> dict[str, int]:
    return rows["split"].value_counts().to_dict()


def test_available_lists_every_dataset_and_load_returns_each() -> None:
    assert set(datasets.available()) >= {
        *(
            "csv",
            "cuhk01",
            "cuhk03_classic_detected",
            "cuhk03_classic_labeled",
            "cuhk03np_detected",
            "cuhk03np_labeled",
        ),
        *("dukemtmc", "folder", "market1501", "msmt17_v1", "msmt17_v2", "rendered"),
    }
    for name in datasets.available():
        assert isinstance(datasets.load(name), Dataset)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(DatasetError, match=r"unknown dataset 'market1510'; did you mean 'market1501'\? known: csv"):
        datasets.load("market1510")


def test_no_fingerprint_is_shipped_before_someone_contributed_it() -> None:
    assert all(datasets.load(name).fingerprint is None for name in datasets.available())


def test_the_withdrawn_dataset_says_so() -> None:
    assert "withdrawn" in datasets.load("dukemtmc").notices[0]


@pytest.mark.parametrize(
    ("name", "split", "images", "identities"),
    [
        ("market1501", "train", 12936, 751),
        ("market1501", "query", 3368, 750),
        ("market1501", "gallery", 15913, 750),
        ("market1501", "junk", 3819, None),
        ("dukemtmc", "train", 16522, 702),
        ("dukemtmc", "query", 2228, 702),
        ("dukemtmc", "gallery", 17661, None),
        ("msmt17_v1", "train", 32621, 1041),
        ("msmt17_v2", "query", 11659, None),
        ("msmt17_v2", "gallery", 82161, 3060),
        ("cuhk03np_detected", "train", 7365, 767),
        ("cuhk03np_detected", "query", 1400, 700),
        ("cuhk03np_detected", "gallery", 5332, None),
        ("cuhk03np_labeled", "train", 7368, 767),
        ("cuhk03np_labeled", "gallery", 5328, None),
        ("cuhk03_classic_detected", "train", None, 1367),
        ("cuhk03_classic_labeled", "query", None, 100),
    ],
)
def test_published_counts(name: str, split: str, images: int | None, identities: int | None) -> None:
    expected = datasets.load(name).expected[split]
    if images is not None:
        assert expected["images"] == images
    if identities is not None:
        assert expected["identities"] == identities


def test_market1501(tmp_path: Path) -> None:
    trees.market(tmp_path / "データ sets")
    rows, folder = read("market1501", tmp_path / "データ sets")
    assert folder.name == "Market-1501-v15.09.15"
    assert labels(rows) == [
        ("bounding_box_test/-1_c5s1_000401_03.jpg", "junk", -1, 5),
        ("bounding_box_test/0000_c1s1_000151_01.jpg", "gallery", 0, 1),
        ("bounding_box_test/0001_c2s1_000301_00.jpg", "gallery", 1, 2),
        ("bounding_box_test/0003_c1s6_015641_02.jpg", "gallery", 3, 1),
        ("bounding_box_test/0003_c1s6_015642_02.jpg", "gallery", 3, 1),
        ("bounding_box_train/0002_c1s1_000451_03.jpg", "train", 2, 1),
        ("bounding_box_train/0002_c2s1_000776_01.JPG", "train", 2, 2),
        ("bounding_box_train/0007_c3s3_077419_03.jpeg", "train", 7, 3),
        ("query/0001_c1s1_001051_00.jpg", "query", 1, 1),
        ("query/0003_c4s6_015641_00.jpg", "query", 3, 4),
    ]
    assert dict(zip(rows["path"], rows["frame"], strict=True))["query/0003_c4s6_015641_00.jpg"] == 15641


def test_the_root_may_be_the_dataset_folder_itself(tmp_path: Path) -> None:
    folder = trees.market(tmp_path)
    assert labels(read("market1501", folder)[0]) == labels(read("market1501", tmp_path)[0])


def test_the_whole_folder_may_be_a_link(tmp_path: Path) -> None:
    folder = trees.market(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / folder.name).symlink_to(folder)
    assert len(read("market1501", tmp_path / "here")[0]) == 10


def test_dukemtmc(tmp_path: Path) -> None:
    trees.duke(tmp_path)
    rows, _ = read("dukemtmc", tmp_path)
    assert splits(rows) == {"train": 3, "gallery": 2, "query": 1}
    assert ("bounding_box_train/0001_c7_f0046302.jpg", "train", 1, 7) in labels(rows)
    assert rows["frame"].max() == 51341


@pytest.mark.parametrize(("version", "train", "test"), [(1, "train", "test"), (2, "mask_train_v2", "mask_test_v2")])
def test_msmt17_reads_listed_images_only_and_offsets_test_people(
    tmp_path: Path, version: int, train: str, test: str
) -> None:
    trees.msmt(tmp_path, version)
    rows, _ = read(f"msmt17_v{version}", tmp_path)
    assert labels(rows) == [
        *sorted(
            [
                (f"{test}/0000/0000_000_03_0303morning_0008_0.jpg", "query", 3, 3),
                (f"{test}/0000/0000_001_04_0303morning_0008_0.jpg", "gallery", 3, 4),
                (f"{test}/0001/0001_000_14_0303morning_0008_0.jpg", "query", 4, 14),
                (f"{test}/0001/0001_001_05_0303morning_0008_0.jpg", "gallery", 4, 5),
                (f"{train}/0000/0000_000_01_0303morning_0015_0.jpg", "train", 1, 1),
                (f"{train}/0000/0000_001_02_0303noon_0030_0_ex.jpg", "train", 1, 2),
                (f"{train}/0001/0001_000_15_0303morning_0020_1.jpg", "train", 2, 15),
            ]
        )
    ]


def test_one_version_of_msmt17_is_not_taken_for_the_other(tmp_path: Path) -> None:
    trees.msmt(tmp_path, 2)
    with pytest.raises(DatasetError, match=r"lacks train, test[\s\S]*mask_train_v2 is the dataset msmt17_v2"):
        read("msmt17_v1", tmp_path / "MSMT17_V2")


def test_a_malformed_line_of_a_list_is_named(tmp_path: Path) -> None:
    folder = trees.msmt(tmp_path, 1)
    (folder / "list_val.txt").write_text("0000/0000_001_02_a.jpg 0\n0000/picture.jpg 0\n")
    with pytest.raises(DatasetError, match=r"list_val.txt, line 2: expected .* found '0000/picture.jpg 0'"):
        read("msmt17_v1", tmp_path)


@pytest.mark.parametrize(("folder", "names"), trees.CUHK01_NAMES.items())
def test_cuhk01_is_people_to_learn_from_in_both_layouts(tmp_path: Path, folder: str, names: tuple[str, ...]) -> None:
    trees.cuhk01(tmp_path, folder)
    rows, place = read("cuhk01", tmp_path)
    assert place == tmp_path / "cuhk01-source"
    cameras = zip(sorted(names), (1, 1, 2, 2, 1), (1, 1, 1, 1, 7), strict=True)
    assert labels(rows) == [(f"{folder}/{name}", "train", person, camera) for name, camera, person in cameras]


def test_cuhk01s_message_says_whom_to_ask(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"lacks campus\.[\s\S]*from its authors[^\n]*on request[\s\S]*or: images"):
        read("cuhk01", tmp_path)
    image = trees.image(tmp_path / "campus" / "0001005.png")
    with pytest.raises(DatasetError, match=rf"1 image name\(s\).*image 3 of 4[\s\S]*{image.name}"):
        read("cuhk01", tmp_path)


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03np_as_a_folder(tmp_path: Path, boxes: str) -> None:
    trees.cuhk_folder(tmp_path, boxes)
    rows, folder = read(f"cuhk03np_{boxes}", tmp_path)
    assert folder == tmp_path / "cuhk03-np"
    assert labels(rows) == [
        (f"{boxes}/bounding_box_test/0003_c2_27.png", "gallery", 3, 2),
        (f"{boxes}/bounding_box_test/0003_c2_28.png", "gallery", 3, 2),
        (f"{boxes}/bounding_box_train/0001_c1_1.png", "train", 1, 1),
        (f"{boxes}/bounding_box_train/0001_c2_6.PNG", "train", 1, 2),
        (f"{boxes}/query/0003_c1_22.png", "query", 3, 1),
    ]


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
@pytest.mark.parametrize("place", ["", "cuhk03_release"])
def test_cuhk03np_from_the_official_file(tmp_path: Path, boxes: str, place: str) -> None:
    root = tmp_path / "CUHK03"
    trees.cuhk_matrix(root / place, [boxes])
    trees.cuhk_config(root, boxes)
    rows, folder = read(f"cuhk03np_{boxes}", tmp_path, tmp_path / "out")
    assert folder == tmp_path / "out"
    assert labels(rows) == [
        (f"{boxes}/bounding_box_test/0002_c2_1_002_2_06.png", "gallery", 2, 2),
        (f"{boxes}/bounding_box_train/0001_c1_1_001_1_01.png", "train", 1, 1),
        (f"{boxes}/bounding_box_train/0001_c2_1_001_2_06.png", "train", 1, 2),
        (f"{boxes}/bounding_box_train/0003_c1_1_003_1_02.png", "train", 3, 1),
        (f"{boxes}/query/0002_c1_1_002_1_01.png", "query", 2, 1),
    ]
    pixels = np.asarray(Image.open(folder / boxes / "bounding_box_train/0003_c1_1_003_1_02.png"))
    assert pixels.shape == (16, 8, 3)
    assert (pixels[..., 0] == trees.cuhk_shade(1, 3, 2)).all()
    assert (pixels[12:, :, 1] == 200).all()
    assert (pixels[:12, :, 1] == 0).all()


@pytest.mark.parametrize("name", ["1_001_1_05.png", "9_001_1_01.png", "1_900_1_01.png"])
def test_an_image_that_the_protocol_lists_and_the_file_lacks_is_named(tmp_path: Path, name: str) -> None:
    trees.cuhk_matrix(tmp_path, ["detected"])
    trees.cuhk_config(tmp_path, "detected", ["1_001_1_01.png", "1_001_2_06.png", name, "1_002_1_01.png", name])
    with pytest.raises(DatasetError, match=rf"cuhk-03.mat lacks 2 image.* {name}, {name}"):
        read("cuhk03np_detected", tmp_path)


def test_a_listed_name_cannot_lead_out_of_the_target(tmp_path: Path) -> None:
    trees.cuhk_matrix(tmp_path, ["detected"])
    trees.cuhk_config(tmp_path, "detected", ["../../evil.png", *["1_001_2_06.png"] * 4])
    with pytest.raises(DatasetError, match=r"'../../evil.png' is no CUHK03 image name"):
        read("cuhk03np_detected", tmp_path)


def test_a_file_that_is_no_hdf5_is_named(tmp_path: Path) -> None:
    (tmp_path / "cuhk-03.mat").write_bytes(b"not HDF5")
    with pytest.raises(DatasetError, match=r"cuhk-03.mat is not the HDF5 file of CUHK03"):
        read("cuhk03_classic_labeled", tmp_path)


def test_unpacking_refuses_a_folder_with_files_of_others(tmp_path: Path) -> None:
    trees.cuhk_matrix(tmp_path / "cuhk03", ["detected"])
    trees.image(tmp_path / "out" / "mine.png")
    with pytest.raises(DatasetError, match="holds files that `prepare` did not write"):
        read("cuhk03_classic_detected", tmp_path, tmp_path / "out")
    assert (tmp_path / "out" / "mine.png").is_file()


@pytest.mark.parametrize("fold", [0, 7])
def test_classic_cuhk03_has_every_test_image_as_query_and_in_the_gallery(tmp_path: Path, fold: int) -> None:
    trees.cuhk_matrix(tmp_path)
    rows, _ = read("cuhk03_classic_detected", tmp_path, tmp_path / "out", fold)
    people = sum(trees.PEOPLE_PER_PAIR)
    tested = {(1, 1 + fold % 4): 1 + fold % 4, (2, 1 + fold % 3): 4 + 1 + fold % 3}  # (pair, person): running number
    parts = dict(iter(rows.groupby("split")))
    assert set(parts["query"]["person_id"]) == set(tested.values())
    assert parts["query"]["path"].tolist() == parts["gallery"]["path"].tolist()
    assert len(set(parts["train"]["person_id"])) == people - 2
    empty = sum((pair, person) in tested for pair, person, _ in trees.EMPTY_CELLS)
    assert len(parts["query"]) == 20 - empty
    assert len(parts["train"]) + len(parts["query"]) == 10 * people - len(trees.EMPTY_CELLS)
    views = {int(path[-6:-4]): camera for path, camera in zip(rows["path"], rows["camera_id"], strict=True)}
    assert views == {number: 1 if number <= 5 else 2 for number in range(1, 11)}


def test_an_unpacked_fold_replaces_the_one_before(tmp_path: Path) -> None:
    trees.cuhk_matrix(tmp_path)
    first, _ = read("cuhk03_classic_labeled", tmp_path, tmp_path / "out", 0)
    read("cuhk03_classic_labeled", tmp_path, tmp_path / "out", 1)
    again, _ = read("cuhk03_classic_labeled", tmp_path, tmp_path / "out", 0)
    assert labels(first) == labels(again)


def test_image_keys_read_their_own_names() -> None:
    key = _cuhk03.Key(5, 49, 2, 10)
    assert key.name == "5_049_2_10.png"
    assert _cuhk03.read_key(key.name) == key


def test_published_counts_of_cuhk03_hold_where_the_data_lie() -> None:
    if not (root := os.environ.get(REAL)):
        pytest.skip(f"{REAL} does not name a folder that holds CUHK03")
    rows, _ = read("cuhk03np_detected", Path(root))
    assert count_differences(datasets.load("cuhk03np_detected").expected, counted(rows)) == []


def counted(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Images and people of every split."""
    return {
        split: {"images": len(part), "identities": part["person_id"].nunique()} for split, part in rows.groupby("split")
    }


def test_a_missing_folder_says_where_to_get_it_where_to_put_it_and_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read("market1501", tmp_path / "nowhere")
    for words in (
        "nowhere is not a folder",
        "Where to get it: Market-1501-v15.09.15.zip",
        f"Where to put it: {tmp_path / 'nowhere' / 'Market-1501-v15.09.15'}",
        "must contain: bounding_box_train, query, bounding_box_test",
        "Archives are not opened",
    ):
        assert words in str(caught.value)


def test_an_incomplete_folder_names_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "Market-1501-v15.09.15" / "query").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"v15.09.15 lacks bounding_box_train, bounding_box_test\.") as caught:
        read("market1501", tmp_path)
    assert "lacks bounding_box_train, query" not in str(caught.value)


def test_an_image_whose_name_says_nothing_is_named(tmp_path: Path) -> None:
    folder = trees.market(tmp_path)
    trees.image(folder / "query" / "holiday.jpg")
    with pytest.raises(DatasetError, match=r"1 image name\(s\)[\s\S]*query/holiday.jpg"):
        read("market1501", tmp_path)


def link_file(folder: Path, target: Path) -> str:
    (folder / "query" / "0009_c1s1_000001_00.jpg").symlink_to(target / "0001_c1s1_000001_00.jpg")
    return "query/0009_c1s1_000001_00.jpg"


def link_folder(folder: Path, target: Path) -> str:
    for path in sorted((folder / "query").iterdir()):
        path.unlink()
    (folder / "query").rmdir()
    (folder / "query").symlink_to(target)
    return "query/0001_c1s1_000001_00.jpg"


@pytest.mark.parametrize("link", [link_file, link_folder])
def test_links_that_leave_the_tree_are_listed(tmp_path: Path, link: Callable[[Path, Path], str]) -> None:
    folder = trees.market(tmp_path / "data")
    # A neighbour whose name begins like the dataset's must not pass for a part of it.
    target = trees.image(tmp_path / "data" / (folder.name + "-private") / "0001_c1s1_000001_00.jpg").parent
    path = link(folder, target)
    with pytest.raises(DatasetError, match=rf"1 path\(s\) or link\(s\) lead out of [\s\S]*{path}"):
        read("market1501", tmp_path / "data")


def test_links_within_the_tree_are_fine(tmp_path: Path) -> None:
    folder = trees.market(tmp_path)
    (folder / "query" / "0009_c1s1_000001_00.jpg").symlink_to(folder / "query" / "0001_c1s1_001051_00.jpg")
    assert splits(read("market1501", tmp_path)[0])["query"] == 3


def test_a_dataset_without_images_is_an_error(tmp_path: Path) -> None:
    for part in trees.MARKET_NAMES:
        (tmp_path / part).mkdir()
    with pytest.raises(DatasetError, match="market1501: no image was found"):
        read("market1501", tmp_path)


def test_a_person_in_training_and_in_test_is_an_error(tmp_path: Path) -> None:
    folder = trees.market(tmp_path)
    trees.image(folder / "query" / "0007_c1s1_000001_00.jpg")
    with pytest.raises(DatasetError, match=r"1 person id\(s\) occur both in training and in test, among them \[7\]"):
        read("market1501", tmp_path)
