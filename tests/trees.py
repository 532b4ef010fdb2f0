"""Small trees in the official layouts of the datasets, and the dirt that real copies of them carry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat


def image(path: Path, shade: int = 100) -> Path:
    """A small image; the format follows the extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 16), (shade % 256, 60, 120)).save(path)
    return path


def broken(path: Path) -> Path:
    """A file that is called an image and is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xd8 cut off")
    return path


def dirt(folder: Path) -> None:
    """Stray files that copies of a dataset collect."""
    for name in ("Thumbs.db", ".DS_Store", "readme.txt"):
        (folder / name).write_bytes(b"stray")
    (folder / "._0002_c1s1_000451_03.jpg").write_bytes(b"a resource fork of macOS")


MARKET_NAMES = {
    "bounding_box_train": ("0002_c1s1_000451_03.jpg", "0002_c2s1_000776_01.JPG", "0007_c3s3_077419_03.jpeg"),
    "query": ("0001_c1s1_001051_00.jpg", "0003_c4s6_015641_00.jpg"),
    "bounding_box_test": (
        *("0001_c2s1_000301_00.jpg", "0003_c1s6_015641_02.jpg", "0003_c1s6_015642_02.jpg"),
        *("0000_c1s1_000151_01.jpg", "-1_c5s1_000401_03.jpg"),
    ),
}
DUKE_NAMES = {
    "bounding_box_train": ("0001_c2_f0046182.jpg", "0001_c7_f0046302.jpg", "0005_c8_f0000001.jpg"),
    "query": ("0002_c1_f0044158.jpg",),
    "bounding_box_test": ("0002_c5_f0051341.jpg", "0139_c2_f0022549.jpg"),
}
CUHK_NAMES = {
    "bounding_box_train": ("0001_c1_1.png", "0001_c2_6.PNG"),
    "query": ("0003_c1_22.png",),
    "bounding_box_test": ("0003_c2_27.png", "0003_c2_28.png"),
}
CUHK01_NAMES = {
    "campus": ("0001001.png", "0001002.png", "0001003.png", "0001004.png", "0007001.PNG"),
    "images": ("0001_c1_1.jpg", "0001_c1_2.jpg", "0001_c2_1.jpg", "0001_c2_2.jpg", "0007_c1_1.png"),
}


def named(folder: Path, names: dict[str, tuple[str, ...]]) -> Path:
    """Folders of images with these names, each with its dirt."""
    for part, files in names.items():
        for shade, name in enumerate(files):
            image(folder / part / name, shade)
        dirt(folder / part)
    return folder


def market(root: Path) -> Path:
    """Market-1501: 3 training images of 2 people, 2 queries, 4 gallery images and 1 of junk; gt_* is not read."""
    folder = named(root / "Market-1501-v15.09.15", MARKET_NAMES)
    image(folder / "gt_bbox" / "0001_c1s1_001051_00.jpg")
    return folder


def duke(root: Path) -> Path:
    """DukeMTMC-reID."""
    return named(root / "DukeMTMC-reID", DUKE_NAMES)


def cuhk01(root: Path, layout: str) -> Path:
    """CUHK01 in one of its two layouts, with a table that is not read beside it."""
    folder = named(root / "cuhk01-source", {layout: CUHK01_NAMES[layout]})
    (folder / "images.csv").write_text("path,split,person,camera\n")
    return folder


def cuhk_folder(root: Path, boxes: str) -> Path:
    """CUHK03 in the new protocol, as a folder."""
    named(root / "cuhk03-np" / boxes, CUHK_NAMES)
    return root / "cuhk03-np"


MSMT_LISTS = {
    "list_train.txt": ("0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_000_15_0303morning_0020_1.jpg 1"),
    "list_val.txt": ("0000/0000_001_02_0303noon_0030_0_ex.jpg 0",),
    "list_query.txt": ("0000/0000_000_03_0303morning_0008_0.jpg 0", "0001/0001_000_14_0303morning_0008_0.jpg 1"),
    "list_gallery.txt": ("0000/0000_001_04_0303morning_0008_0.jpg 0", "0001/0001_001_05_0303morning_0008_0.jpg 1"),
}


def msmt(root: Path, version: int) -> Path:
    """MSMT17; ``train`` also holds an image that no list names."""
    folder = root / f"MSMT17_V{version}"
    train, test = ("train", "test") if version == 1 else ("mask_train_v2", "mask_test_v2")
    for name, lines in MSMT_LISTS.items():
        part = train if name in ("list_train.txt", "list_val.txt") else test
        for line in lines:
            image(folder / part / line.split(" ")[0])
        (folder / name).write_text("\r\n".join(lines) + "\n")
    dirt(image(folder / train / "0000" / "0000_002_01_unlisted.jpg").parent)
    return folder


PEOPLE_PER_PAIR = (4, 3, 2, 1, 1)
EMPTY_CELLS = {(1, 1, 5), (1, 2, 10), (2, 1, 1)}  # (pair, person, image)


def cuhk_shade(pair: int, person: int, number: int) -> int:
    """Red of an image of ``cuhk_matrix``, so that a test can tell which one it sees."""
    return 40 * pair + 10 * person + number


def two_tested(fold: int) -> list[tuple[int, int]]:
    """(pair, person) of the test set of a fold."""
    return [(1, 1 + fold % 4), (2, 1 + fold % 3)]


def cuhk_matrix(
    folder: Path,
    boxes: Iterable[str] = ("detected", "labeled"),
    people_per_pair: Sequence[int] = PEOPLE_PER_PAIR,
    tested: Callable[[int], list[tuple[int, int]]] = two_tested,
) -> Path:
    """``cuhk-03.mat`` as MATLAB writes it: HDF5, arrays transposed, cells as references, empty cells as their size.

    datasets/_cuhk03.py says which public readers this was checked against.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "cuhk-03.mat", "w") as file:
        store = _store_in(file)
        for name in boxes:
            pairs = []
            for pair, people in enumerate(people_per_pair, 1):
                cells = np.empty((10, people), dtype=h5py.ref_dtype)
                for person in range(1, people + 1):
                    for number in range(1, 11):
                        cells[number - 1, person - 1] = store(_cuhk_pixels(pair, person, number))
                pairs.append(store(cells))
            file.create_dataset(name, data=np.array([pairs], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
        folds = [store(np.array(tested(fold), dtype=float).T) for fold in range(20)]
        file.create_dataset("testsets", data=np.array([folds], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
    return folder


def _cuhk_pixels(pair: int, person: int, number: int) -> np.ndarray:
    if (pair, person, number) in EMPTY_CELLS:
        return np.array([0, 0], dtype=np.uint64)
    pixels = np.zeros((16, 8, 3), dtype=np.uint8)
    pixels[..., 0] = cuhk_shade(pair, person, number)
    pixels[12:, :, 1] = 200  # feet, so that a transposed image shows
    return pixels.T


def _store_in(file: h5py.File) -> Callable[[np.ndarray], h5py.Reference]:
    group = file.create_group("#refs#")

    def store(data: np.ndarray) -> h5py.Reference:
        kind = h5py.ref_dtype if data.dtype == object else data.dtype
        return group.create_dataset(str(len(group)), data=data, dtype=kind).ref

    return store


def cuhk_config(folder: Path, boxes: str, names: Iterable[str] | None = None) -> Path:
    """The new protocol's file: people 1 and 3 of pair 1 train, person 2 is tested; indices count from 1."""
    listed = names or ("1_001_1_01.png", "1_001_2_06.png", "1_003_1_02.png", "1_002_1_01.png", "1_002_2_06.png")
    files = np.array([[name] for name in listed], dtype=object)
    settings = {
        "filelist": files,
        "labels": np.array([[1], [1], [3], [2], [2]], dtype=np.uint16),
        "camId": np.array([[1], [2], [1], [1], [2]], dtype=np.uint8),
        "train_idx": np.array([[1], [2], [3]]),
        "query_idx": np.array([[4]]),
        "gallery_idx": np.array([[5]]),
    }
    path = folder / f"cuhk03_new_protocol_config_{boxes}.mat"
    savemat(path, settings)
    return path
