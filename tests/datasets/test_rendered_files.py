"""The trees on disk: Market-1501's layout and names, and the same bytes when written again."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import UserError
from datasets import rendered
from datasets.rendered import MARKET, SIZES, SOURCE_TREE

NAME = re.compile(r"(-1|\d{4})_c([1-6])s([1-6])_(\d{6})_(\d{2})\.jpg")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Threads inside of operations on so small images only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rendered")
    rendered.write(out, "tiny", 0, progress=False)
    return out


def _people(folder: Path) -> list[int]:
    return [int(NAME.fullmatch(path.name)[1]) for path in sorted(folder.iterdir())]  # type: ignore[index]


def test_folders_and_names_are_those_of_market_1501(tree: Path) -> None:
    folders = {path.parent.relative_to(tree).as_posix() for path in tree.glob("**/*.jpg")}
    market = {f"{MARKET}/{name}" for name in ("bounding_box_train", "query", "bounding_box_test")}
    assert folders == market | {f"{SOURCE_TREE}/bounding_box_train"}
    assert all(NAME.fullmatch(path.name) for path in tree.glob("**/*.jpg"))


def test_the_gallery_holds_distractors_and_junk_and_the_query_only_people_of_the_gallery(tree: Path) -> None:
    gallery, query = _people(tree / MARKET / "bounding_box_test"), _people(tree / MARKET / "query")
    assert gallery.count(0) == SIZES["tiny"].distractors
    assert gallery.count(-1) == SIZES["tiny"].junk
    assert set(query) == set(gallery) - {0, -1}
    assert len(query) == SIZES["tiny"].test.pairs


def test_no_person_is_in_two_splits(tree: Path) -> None:
    source, train = _people(tree / SOURCE_TREE / "bounding_box_train"), _people(tree / MARKET / "bounding_box_train")
    test = _people(tree / MARKET / "query")
    assert set(source).isdisjoint(train + test)
    assert set(train).isdisjoint(test)
    assert min(source + train + test) > 0


def test_no_image_is_lost_to_a_name_used_twice(tree: Path) -> None:
    world = rendered.draw_world("tiny", 0)
    assert len(list(tree.glob("**/*.jpg"))) == len(world.images)


def test_images_are_jpeg_of_the_promised_size(tree: Path) -> None:
    for path in tree.glob(f"{MARKET}/query/*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 64))


def test_writing_again_gives_the_same_bytes_and_record(tree: Path, tmp_path: Path) -> None:
    record = rendered.write(tmp_path, "tiny", 0, progress=False)
    files = [path.relative_to(tree) for path in sorted(tree.glob("**/*")) if path.is_file()]
    digests = [[hashlib.sha256((root / file).read_bytes()).digest() for file in files] for root in (tree, tmp_path)]
    assert digests[0] == digests[1]
    assert record["fingerprint"] == rendered.draw_world("tiny", 0).fingerprint
    assert rendered.write(tmp_path, "tiny", 0, progress=False) == record


def test_writing_over_another_world_is_refused(tree: Path) -> None:
    with pytest.raises(FileExistsError, match="not of this world"):
        rendered.write(tree, "tiny", 1, progress=False)


def test_the_contact_sheet_shows_people_by_cameras(tree: Path, tmp_path: Path) -> None:
    rendered.contact_sheet(tree, tmp_path / "sheet.png", people=4, per_camera=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(float)
    assert pixels.shape[0] > 4 * 64
    assert pixels.shape[1] > 3 * 32
    assert (pixels.min(axis=2) < 250).mean() > 0.4


def test_a_contact_sheet_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write them there first"):
        rendered.contact_sheet(tmp_path, tmp_path / "sheet.png")
