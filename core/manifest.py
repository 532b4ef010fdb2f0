"""The manifest: all that the rest of the suite knows of a dataset, one row per image."""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core import files
from core.errors import UserError

SPLITS = ("source", "train", "query", "gallery", "junk")
COLUMNS = ("path", "split", "person_id", "camera_id")
LABELS = ("person_id", "camera_id")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a dataset: it becomes part of file names
UNKNOWN = -1  # person_id or camera_id of an image whose label the dataset does not have (and of junk)


class ManifestError(UserError):
    """The manifest is missing, malformed, or does not hold what was asked of it."""


@dataclass(frozen=True)
class Manifest:
    """A dataset as a table.

    table: columns ``path`` (relative to ``root``, posix), ``split`` (one of SPLITS), ``person_id``
    (unique across
        splits; 0 = distractor in a gallery, -1 = junk or unknown), ``camera_id`` (-1 = unknown);
        more may follow. Rows are in path-hash order within a split, so that file order leaks
        nothing about identities.
    root: folder that the paths are relative to.
    name: dataset name; fingerprint: hash of what the images are, not of their labels.
    info: facts for people and provenance (counts, world, size, notices).

    Raises ManifestError for a name that would not do as part of a file name.
    """

    table: pd.DataFrame
    root: Path
    name: str
    fingerprint: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ManifestError(f"a dataset cannot be called {self.name!r}: use letters, digits, '.', '_' and '-'")

    def split(self, name: str) -> pd.DataFrame:
        """Rows of one split, in manifest order, index reset; of ``train+source``, those of one after the other's.

        Raises ManifestError when a split has none.
        """
        parts = {part: self.table[self.table["split"] == part] for part in name.split("+")}
        for part, rows in parts.items():
            if rows.empty:
                present = sorted(self.table["split"].unique())
                raise ManifestError(
                    f"dataset '{self.name}' has no '{part}' images; its manifest holds the splits {present}"
                )
        return pd.concat(parts.values(), ignore_index=True)

    def has(self, name: str) -> bool:
        """Whether the split has any image."""
        return bool((self.table["split"] == name).any())

    def paths(self, split: str) -> list[Path]:
        """Absolute image paths of one split, in manifest order."""
        return [self.root / path for path in self.split(split)["path"]]

    def counts(self) -> dict[str, dict[str, int]]:
        """Images, identities (0 and -1 are none) and cameras per split."""
        rows = {}
        for name in SPLITS:
            part = self.table[self.table["split"] == name]
            if part.empty:
                continue
            people = part["person_id"][part["person_id"] > 0]
            cameras = part["camera_id"][part["camera_id"] >= 0]
            rows[name] = {
                "images": len(part),
                "identities": int(people.nunique()),
                "cameras": int(cameras.nunique()),
            }
        return rows

    def write(self, folder: Path) -> None:
        """Write ``manifest.csv`` and ``dataset.json``; the root is stored relative to ``folder`` when inside it."""
        folder.mkdir(parents=True, exist_ok=True)
        text = self.table.to_csv(index=False, lineterminator="\n").encode()
        root = self.root.resolve()
        inside = root.is_relative_to(folder.resolve())
        record = {
            "name": self.name,
            "root": root.relative_to(folder.resolve()).as_posix() if inside else str(root),
            "fingerprint": self.fingerprint,
            "manifest_sha256": hashlib.sha256(text).hexdigest(),
            "counts": self.counts(),
            "info": dict(self.info),
        }
        files.forget(folder / "dataset.json")
        files.write_bytes(folder / "manifest.csv", text)
        files.write_json(folder / "dataset.json", record)


def read_manifest(folder: Path) -> Manifest:
    """Read what ``Manifest.write`` wrote; raises ManifestError, with the remedy, when it is not there or not whole."""
    table_path, record_path = folder / "manifest.csv", folder / "dataset.json"
    for path in (table_path, record_path):
        if not path.is_file():
            raise ManifestError(f"{path} does not exist; run `python -m pipeline prepare --out {folder} ...` first")
    record = _read_record(record_path)
    text = table_path.read_bytes()
    table = _read_table(text, table_path)
    if hashlib.sha256(text).hexdigest() != record["manifest_sha256"]:
        raise ManifestError(
            f"{table_path} is not the table that {record_path} was written with; prepare the dataset again"
        )
    root = Path(record["root"])
    try:
        manifest = Manifest(
            table, root if root.is_absolute() else folder / root, record["name"], record["fingerprint"], record["info"]
        )
    except ManifestError as error:
        raise ManifestError(f"{record_path}: {error}") from error
    if manifest.counts() != record["counts"]:
        raise ManifestError(
            f"{record_path} counts {record['counts']}, but {table_path} holds {manifest.counts()}; "
            "prepare the dataset again"
        )
    return manifest


def _read_record(path: Path) -> dict[str, Any]:
    """``dataset.json``, with its keys there and of the right types."""
    kinds = {"name": str, "root": str, "fingerprint": str, "manifest_sha256": str, "counts": dict, "info": dict}
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, no text, or nested without end
        raise ManifestError(f"{path} is not valid JSON ({error}); prepare the dataset again") from error
    given = record if isinstance(record, dict) else {}
    wrong = [key for key, kind in kinds.items() if not isinstance(given.get(key), kind)]
    if wrong:
        raise ManifestError(
            f"{path} lacks {', '.join(wrong)}, or holds something else there; it is damaged, or of an earlier version "
            "of the suite: prepare the dataset again"
        )
    return given


def _read_table(text: bytes, path: Path) -> pd.DataFrame:
    """``manifest.csv``, with its columns there and every cell possible."""
    try:
        # keep_default_na: a person may well have put images into a folder named "NA" or "null".
        table = pd.read_csv(io.BytesIO(text), keep_default_na=False, dtype={"path": str, "split": str})
    except ValueError as error:  # pandas' own errors and those of decoding are ValueErrors
        raise ManifestError(f"{path} is no table in UTF-8 ({error}); prepare the dataset again") from error
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ManifestError(f"{path} lacks the columns {missing}; it needs {list(COLUMNS)}")
    strange = sorted(set(table["split"]) - set(SPLITS))
    if strange:
        raise ManifestError(f"{path} holds unknown splits {strange}; known are {list(SPLITS)}")
    for column in LABELS:
        values = table[column]
        if not pd.api.types.is_signed_integer_dtype(values) or (values < UNKNOWN).any():
            raise ManifestError(f"{path}: {column} must hold whole numbers of 64 bits, {UNKNOWN} or above")
    if outside := leaving(table["path"]):
        raise ManifestError(f"{path}: paths lead out of the dataset's folder, such as {outside[0]!r}")
    if table.duplicated(["path", "split"]).any():
        raise ManifestError(f"{path} lists an image twice in one split; prepare the dataset again")
    return table


def leaving(paths: Iterable[str]) -> list[str]:
    """Those of the relative paths that are absolute, or lead out by ``..``, whatever links there are."""
    return [path for path in paths if posixpath.isabs(path) or posixpath.normpath(path).split("/")[0] == ".."]


def build_manifest(
    rows: pd.DataFrame, root: Path, name: str, fingerprint: str | None = None, info: Mapping[str, Any] | None = None
) -> Manifest:
    """Order rows by split, then by a hash of the path, and fingerprint them by path and file size."""
    table = rows.copy()
    table["path"] = [Path(path).as_posix() for path in table["path"]]
    table["order"] = [hashlib.sha256(path.encode()).hexdigest() for path in table["path"]]
    table["rank"] = table["split"].map({split: k for k, split in enumerate(SPLITS)})
    table = table.sort_values(["rank", "order"], kind="stable").drop(columns=["rank", "order"])
    table = table.astype({"person_id": np.int64, "camera_id": np.int64}).reset_index(drop=True)
    return Manifest(table, root, name, fingerprint or fingerprint_files(root, list(table["path"])), dict(info or {}))


def fingerprint_files(root: Path, paths: list[str]) -> str:
    """sha256 over the sorted relative paths and the file sizes: tells versions of a dataset apart, not pixels."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path}\0{os.stat(root / path).st_size}\n".encode())
    return digest.hexdigest()
