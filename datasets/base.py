"""What a dataset is to the suite, and the helpers that several layouts share."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from core.errors import UserError
from core.files import discard
from core.images import LISTED
from core.manifest import LABELS, UNKNOWN, leaving

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
COLUMNS = ("path", "split", "person_id", "camera_id")
# In a path: control characters, and bytes that are no text, which Python reads as lone surrogates.
NO_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
OWN_MARK = ".written-by-prepare"  # only folders that hold this file are ever emptied
# The layout that Market-1501 introduced: folder -> split.
MARKET_LAYOUT = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}

TRAINING = ("source", "train")

# split -> {"images": ..., "identities": ..., "cameras": ...}
Counts = Mapping[str, Mapping[str, int]]


class DatasetError(UserError):
    """The images on disk are not what the dataset should be; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """One dataset as it is distributed.

    folders: names its own folder goes by. layouts: what that folder must contain, any of them.
    obtain: where to get it. index: reads that folder into rows ``path`` (relative to it),
    ``split``, ``person_id``, ``camera_id`` and perhaps ``frame``. expected: the published counts,
    only those that are certain. unpack: for datasets distributed as one file: (folder, empty folder
    to write images into, fold) -> folder to index, the first again where nothing needs unpacking.
    folds: predefined partitions, each prepared as a dataset of its own. collection: set where several
    datasets divide the same people differently, so that none may test what was trained on another.
    fingerprint: null until contributed. protocol: the one that its runs are scored by; without one it is
    the protocol of the dataset's name, and where there is none Market-1501's. notices: what every table of
    its numbers must say. images_may_be_shown: whether the report may hold its images; false for real people.
    """

    name: str
    folders: tuple[str, ...]
    layouts: tuple[tuple[str, ...], ...]
    obtain: str
    index: Callable[[Path], pd.DataFrame]
    expected: Counts = field(default_factory=dict)
    fingerprint: str | None = None
    notices: tuple[str, ...] = ()
    unpack: Callable[[Path, Path, int], Path] | None = None
    folds: int = 1
    collection: str = ""
    protocol: str = ""
    images_may_be_shown: bool = False


def find_folder(dataset: Dataset, root: Path) -> Path:
    """The dataset's own folder: ``root``, or a known name in it, that holds one of its layouts."""
    if not root.is_dir():
        raise DatasetError(f"{dataset.name}: {root} is not a folder.\n{instructions(dataset, root)}")
    candidates = [root, *(root / name for name in dataset.folders)]
    for folder in candidates:
        if any(not lacking(folder, layout) for layout in dataset.layouts):
            return folder
    existing = [folder for folder in candidates[1:] if folder.is_dir()] or [root]
    short = min((lacking(existing[0], layout) for layout in dataset.layouts), key=len)
    raise DatasetError(f"{dataset.name}: {existing[0]} lacks {', '.join(short)}.\n{instructions(dataset, root)}")


def lacking(folder: Path, layout: Iterable[str]) -> list[str]:
    """The entries of ``layout`` that ``folder`` does not have."""
    return [entry for entry in layout if not (folder / entry).exists()]


def instructions(dataset: Dataset, root: Path) -> str:
    """Where to get the dataset, where to put it, and what its folder must contain."""
    place = f"{root / dataset.folders[0]}, or pass its folder as --root" if dataset.folders else root
    contents = "\n  or: ".join(", ".join(layout) for layout in dataset.layouts)
    return (
        f"Where to get it: {dataset.obtain}\n"
        f"Where to put it: {place}\n"
        f"What the folder must contain: {contents}\n"
        "Archives are not opened: extract them first."
    )


def is_image(name: str) -> bool:
    """Whether a file name is an image's; Thumbs.db, .DS_Store and ._x files (macOS) are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def images_in(folder: Path) -> list[str]:
    """Sorted names of the images directly in ``folder``."""
    return sorted(entry.name for entry in entries(folder) if is_image(entry.name) and not entry.is_dir())


def images_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Images anywhere below ``folder``, sorted, relative to it; hidden folders are left out.

    ``above``: the folders that it lies in, so that a link to one of them is not followed in a circle.
    """
    above = above | {os.path.realpath(folder)}
    for entry in sorted(entries(folder), key=lambda entry: entry.name):
        if not entry.is_dir():
            if is_image(entry.name):
                yield Path(entry.name)
        elif not entry.name.startswith(".") and os.path.realpath(entry.path) not in above:
            yield from (Path(entry.name) / path for path in images_below(folder / entry.name, above))


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in ``folder``; raises DatasetError when it cannot be listed, so that no dataset gets smaller unseen."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be listed: {error.strerror}; make it readable, or take it away") from error


def table(rows: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as a table that has its columns even when it is empty."""
    built = pd.DataFrame(list(rows))
    return built if len(built) else pd.DataFrame(columns=list(COLUMNS))


def index_names(folder: Path, pattern: str, parts: Mapping[str, str] = MARKET_LAYOUT, prefix: str = "") -> pd.DataFrame:
    """Read labels from file names; ``parts``: each folder below ``folder / prefix`` and its split.

    pattern: matched at the start of a name, with the groups ``person``, ``camera`` and perhaps
    ``frame``. Gallery images of person -1 are junk.
    """
    name_pattern = re.compile(pattern)
    rows: list[dict[str, object]] = []
    strange: list[str] = []
    for part, split in parts.items():
        for name in images_in(folder / prefix / part):
            path = (Path(prefix) / part / name).as_posix()
            match = name_pattern.match(name)
            if match is None:
                strange.append(path)
                continue
            fields = {f"{key}_id": int(value) for key, value in match.groupdict().items()}
            rows.append({"path": path, "split": split, **fields})
    if strange:
        raise DatasetError(
            f"{len(strange)} image name(s) under {folder} do not read as {pattern}; "
            f"remove or rename them:\n{listing(strange)}"
        )
    return set_junk_apart(table(rows).rename(columns={"frame_id": "frame"}))


def set_junk_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Give gallery images of an unknown person the split ``junk``: no ranking can judge them."""
    unknown = (rows["split"] == "gallery") & (rows["person_id"] == UNKNOWN)
    return rows.assign(split=rows["split"].mask(unknown, "junk"))


def empty_own_folder(folder: Path) -> None:
    """Empty ``folder``, so that no image of another world stays; refuse if it is not ours."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / OWN_MARK).is_file():
            raise DatasetError(f"{folder} holds files that `prepare` did not write; choose another --out")
        discard(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWN_MARK).touch()


def listing(items: Iterable[object]) -> str:
    """One indented line each, and how many are left out where they are many."""
    lines = [f"  {item}" for item in items]
    more = [f"  and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n".join(lines[:LISTED] + more)


def check_rows(dataset: str, rows: pd.DataFrame, folder: Path) -> None:
    """Stop on no images, on impossible ids, and on paths that are no text, lead out of ``folder`` or come twice."""
    if rows.empty:
        raise DatasetError(f"{dataset}: no image was found in {folder} ({', '.join(sorted(EXTENSIONS))})")
    _check_paths(dataset, rows, folder)
    _check_repeats(dataset, rows)
    _check_labels(dataset, rows)


def _check_paths(dataset: str, rows: pd.DataFrame, folder: Path) -> None:
    strange = [repr(os.fsencode(path))[1:] for path in [str(folder), *rows["path"]] if NO_TEXT.search(path)]
    if strange:
        raise DatasetError(
            f"{dataset}: {len(strange)} path(s) hold control characters or bytes that are no text in UTF-8; rename "
            f"them:\n{listing(strange)}"
        )
    inside = os.path.join(os.path.realpath(folder), "")
    out = set(leaving(rows["path"]))
    outside = [path for path in rows["path"] if path in out or not os.path.realpath(folder / path).startswith(inside)]
    if outside:
        raise DatasetError(
            f"{dataset}: {len(outside)} path(s) or link(s) lead out of {folder}; "
            f"copy the images into it, or link the folder as a whole:\n{listing(outside)}"
        )


def _check_repeats(dataset: str, rows: pd.DataFrame) -> None:
    """An image may be query and gallery at once; twice in one split, or in training and in test, it may not be."""
    images = rows["path"].map(posixpath.normpath)
    twice = rows["path"][pd.DataFrame({"image": images, "split": rows["split"]}).duplicated(keep=False)].unique()
    if len(twice):
        raise DatasetError(f"{dataset}: {len(twice)} image(s) are listed twice in one split:\n{listing(twice)}")
    training = rows["split"].isin(TRAINING)
    shared = sorted(set(images[training]) & set(images[~training]))
    if shared:
        raise DatasetError(f"{dataset}: {len(shared)} image(s) are both in training and in test:\n{listing(shared)}")


def _check_labels(dataset: str, rows: pd.DataFrame) -> None:
    for column in LABELS:
        bad = [number for number in rows[column].unique() if not UNKNOWN <= number < 2**63]
        if bad:
            raise DatasetError(
                f"{dataset}: {column} {bad[0]} of {rows['path'][rows[column] == bad[0]].iloc[0]}: numbers go from "
                f"{UNKNOWN} (unknown, or junk) up to 64 bits"
            )
    people = {split: set(part["person_id"][part["person_id"] > 0]) for split, part in rows.groupby("split")}
    training = people.get("train", set()) | people.get("source", set())
    shared = sorted(training & (people.get("query", set()) | people.get("gallery", set())))
    if shared:
        raise DatasetError(
            f"{dataset}: {len(shared)} person id(s) occur both in training and in test, among them "
            f"{shared[:5]}; ids must tell people apart across splits"
        )


def count_differences(expected: Counts, found: Counts) -> list[str]:
    """One line per published count that the images on disk do not have."""
    return [
        f"{split} {what}: found {found.get(split, {}).get(what, 0):,}, expected {want:,}"
        for split, counts in expected.items()
        for what, want in counts.items()
        if found.get(split, {}).get(what, 0) != want
    ]
