"""The manifest: all that the rest of the suite knows of a dataset, one row per image."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError

SPLITS = ("source", "train", "query", "gallery", "junk")
COLUMNS = ("path", "split", "person_id", "camera_id")
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
    """

    table: pd.DataFrame
    root: Path
    name: str
    fingerprint: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> pd.DataFrame:
        """Rows of one split, in manifest order, index reset; raises ManifestError when there are none."""
        rows = self.table[self.table["split"] == name].reset_index(drop=True)
        if rows.empty:
            present = sorted(self.table["split"].unique())
            raise ManifestError(
                f"dataset '{self.name}' has no '{name}' images; its manifest holds the splits {present}"
            )
        return rows

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
        self.table.to_csv(folder / "manifest.csv", index=False)
        root = self.root.resolve()
        inside = root.is_relative_to(folder.resolve())
        record = {
            "name": self.name,
            "root": root.relative_to(folder.resolve()).as_posix() if inside else str(root),
            "fingerprint": self.fingerprint,
            "counts": self.counts(),
            "info": dict(self.info),
        }
        (folder / "dataset.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read what ``Manifest.write`` wrote; raises ManifestError with the remedy when it is not there or not whole."""
    table_path, record_path = folder / "manifest.csv", folder / "dataset.json"
    for path in (table_path, record_path):
        if not path.is_file():
            raise ManifestError(f"{path} does not exist; run `python -m pipeline.prepare --out {folder} ...` first")
    # keep_default_na: a person may well have put images into a folder named "NA" or "null".
    table = pd.read_csv(table_path, keep_default_na=False)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ManifestError(f"{table_path} lacks the columns {missing}; it needs {list(COLUMNS)}")
    strange = sorted(set(table["split"]) - set(SPLITS))
    if strange:
        raise ManifestError(f"{table_path} holds unknown splits {strange}; known are {list(SPLITS)}")
    record = json.loads(record_path.read_text(encoding="utf-8"))
    root = Path(record["root"])
    return Manifest(
        table=table,
        root=root if root.is_absolute() else folder / root,
        name=record["name"],
        fingerprint=record["fingerprint"],
        info=record["info"],
    )


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
