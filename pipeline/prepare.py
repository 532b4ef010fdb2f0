"""Write the manifest of a dataset: one row per image, checked against the published counts.

Every dataset but `rendered` is read from --root, the folder that holds, or is, the dataset's own
folder; nothing there is changed and archives are not opened. `rendered` is drawn into --out first.
A dataset with several partitions is prepared one at a time, as NAME-FOLD (cuhk03_classic_detected-0), and so is a
world of drawn people (rendered-3). With --source, another dataset's training images, or the source people of a drawn
world, stand beside it as its labelled source; the pair is a dataset of its own, called TARGET-from-SOURCE
(market1501-from-dukemtmc says the same).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import datasets
from core import distributed
from core.files import forget
from core.images import UnreadableImages, find_unreadable
from core.lock import locked
from core.manifest import LABELS, UNKNOWN, Manifest, build_manifest
from datasets.base import (
    Dataset,
    DatasetError,
    check_rows,
    count_differences,
    empty_own_folder,
    find_folder,
    instructions,
    listing,
)
from evaluation.protocol import Protocol
from pipeline import cli
from pipeline.jobs import data_folder
from pipeline.params import DRAWN

ALLOW = "--allow-unknown-fingerprint"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the manifest is written; a folder that did not exist is left behind only then."""
    options = _parser().parse_args(argv)
    target, source = datasets.split_pair(options.dataset)
    source = options.source or source
    options.dataset = f"{target}{datasets.BESIDE}{source}" if source else target
    name, number = datasets.split_number(target)
    dataset = datasets.load(name)
    drawn = name == DRAWN
    if drawn and options.world is None:
        options.world = number or 0
    fold = chosen_fold(dataset, None if drawn else number if options.fold is None else options.fold)
    out = options.out or data_folder(f"{name}-{fold}" if dataset.folds > 1 else options.dataset)
    if out.exists() and not out.is_dir():
        raise DatasetError(f"{out} is a file; --out names the folder to write to")
    there = out.exists()
    with locked(out):
        try:
            manifest, status = prepare(dataset, fold, out, options)
            if source:
                manifest = beside(manifest, dataset, source, out, options)
            manifest.write(out)
        except BaseException:
            if not there:
                shutil.rmtree(out, ignore_errors=True)
            raise
    print(report(manifest, status))
    print(f"manifest -> {out / 'manifest.csv'}")
    return 0


def prepare(dataset: Dataset, fold: int, out: Path, options: argparse.Namespace) -> tuple[Manifest, str]:
    """The manifest of a drawn dataset or of one on disk, and what is known of its version.

    Raises ProtocolError, before any work, when no protocol could score runs on it.
    """
    datasets.protocol_of(dataset.name)
    if dataset.name == DRAWN:
        manifest = draw_rendered(dataset, out, options.size, options.world, options.device)
        return manifest, f"size {options.size}, world {options.world}"
    if options.root is None:
        raise DatasetError(
            f"{dataset.name}: pass --root, the folder that holds the dataset.\n" + instructions(dataset, Path("ROOT"))
        )
    manifest = read_dataset(dataset, options.root, out, fold, options.allow)
    return manifest, manifest.info["fingerprint_status"]


def beside(target: Manifest, dataset: Dataset, source: str, out: Path, options: argparse.Namespace) -> Manifest:
    """The target with the training images of ``source`` as its source split, people and cameras numbered after its own.

    Raises DatasetError for a target that has a source or several folds, and for two datasets of the same people.
    """
    name, number = datasets.split_number(source)
    other = datasets.load(name)
    if target.has("source") or dataset.folds > 1:
        raise DatasetError(
            f"{dataset.name} cannot have {source} as its source: worlds of drawn people have one of their own, and a "
            "dataset of several folds is prepared without"
        )
    if name == dataset.name or (other.collection and other.collection == dataset.collection):
        raise DatasetError(f"{dataset.name} and {source} are of the same people; choose another --source")
    if name == DRAWN:
        drawn = draw_rendered(other, out / "source", options.size, number or 0, options.device)
        found = replace(drawn, info={"notices": [], "fingerprint_status": "drawn", **drawn.info})
    else:
        found = read_dataset(other, options.root, out / "source", chosen_fold(other, number), options.allow)
    root = Path(os.path.commonpath([target.root.resolve(), found.root.resolve()]))
    tables = []
    for manifest in (target, found):
        place = manifest.root.resolve().relative_to(root)
        tables.append(manifest.table.assign(path=[(place / path).as_posix() for path in manifest.table["path"]]))
    labelled = "source" if name == DRAWN else "train"
    own, rows = tables[0], tables[1][tables[1]["split"] == labelled].assign(split="source")
    for label in LABELS:
        known = rows[label] > UNKNOWN
        rows.loc[known, label] += int(own[label].max()) + 1
    table = pd.concat([rows, own], ignore_index=True)
    fingerprint = hashlib.sha256(f"{target.fingerprint}\0{found.fingerprint}".encode()).hexdigest()
    states = [manifest.info["fingerprint_status"] for manifest in (target, found)]
    info = {**target.info, "source": {"name": source, "fingerprint": found.fingerprint, **found.info}}
    info["notices"] = list(dict.fromkeys([*target.info["notices"], *found.info["notices"]]))
    info["fingerprint_status"] = states[0] if states[0] == states[1] else f"target {states[0]}, source {states[1]}"
    return Manifest(table, root, f"{dataset.name}{datasets.BESIDE}{source}", fingerprint, info)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("prepare", __doc__ or "")
    parser.add_argument("--dataset", required=True, help="what to prepare; NAME-FOLD for one of several partitions")
    parser.add_argument("--source", help="a dataset, or a drawn world, whose labelled images are the source beside it")
    parser.add_argument("--root", type=Path, help="folder that holds, or is, the dataset's own folder")
    parser.add_argument("--out", type=Path, help="folder to write to; default: data/DATASET")
    parser.add_argument(
        ALLOW,
        action="store_true",
        dest="allow",
        help="accept counts or a fingerprint other than the published ones",
    )
    parser.add_argument("--fold", type=int, help="which of the predefined partitions; NAME-FOLD says the same")
    parser.add_argument("--size", default="medium", help="rendered only: tiny, small, medium or large")
    parser.add_argument("--world", type=int, help="rendered only: number of the world; rendered-3 says the same")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="rendered only: what draws")
    return parser


def chosen_fold(dataset: Dataset, fold: int | None) -> int:
    """``fold``, or 0 for a dataset that is not divided; raises DatasetError unless the dataset has that fold."""
    last = dataset.folds - 1
    if fold is None and last:
        raise DatasetError(
            f"{dataset.name} has {dataset.folds} folds, each a dataset of its own: prepare {dataset.name}-0 to "
            f"{dataset.name}-{last}, and list them under `datasets` in params.yaml; the leaderboard averages them"
        )
    if not 0 <= (fold or 0) <= last:
        raise DatasetError(f"{dataset.name} has the folds 0..{last}; {fold} is none of them")
    return fold or 0


def read_dataset(dataset: Dataset, root: Path, out: Path, fold: int = 0, allow: bool = False) -> Manifest:
    """The manifest of a dataset on disk, after all checks."""
    folder = find_folder(dataset, root)
    if dataset.unpack is not None:
        forget(out / "dataset.json")
        folder = dataset.unpack(folder, out / "images", fold)
    manifest = checked_manifest(dataset, folder, {"notices": list(dataset.notices)})
    differences = count_differences(dataset.expected, manifest.counts())
    if dataset.fingerprint not in (None, manifest.fingerprint):
        differences.append(f"fingerprint: found {manifest.fingerprint}, expected {dataset.fingerprint}")
    if differences and not allow:
        raise DatasetError(
            f"{dataset.name}: what lies in {folder} is not the published dataset:\n"
            f"{listing(differences)}\n"
            f"Is it complete, and the version that was asked for? Pass {ALLOW} to use it as it is."
        )
    info = dict(manifest.info) | {"fingerprint_status": _fingerprint_status(dataset, differences)}
    if dataset.folds > 1:
        info["fold"] = fold
    if differences:
        info["differences"] = differences
    return replace(manifest, info=info)


def _fingerprint_status(dataset: Dataset, differences: list[str]) -> str:
    if differences:
        return "differs from the published dataset"
    return "unverified" if dataset.fingerprint is None else "verified"


def checked_manifest(dataset: Dataset, folder: Path, info: dict[str, Any], fingerprint: str | None = None) -> Manifest:
    """Index ``folder``; stop on no images, links that leave it and unreadable files."""
    rows = dataset.index(folder)
    check_rows(dataset.name, rows, folder)
    unreadable = find_unreadable([folder / path for path in rows["path"].unique()])
    if unreadable:
        raise UnreadableImages(unreadable)
    return build_manifest(rows, folder.resolve(), dataset.name, fingerprint, info)


def draw_rendered(dataset: Dataset, out: Path, size: str, world: int, device: str) -> Manifest:
    """Draw a world below ``out`` and read it back through the parser of real data."""
    from datasets import rendered  # the renderer loads only when something is drawn

    if size not in rendered.SIZES:
        raise DatasetError(f"rendered people have no size '{size}'; choose one of {', '.join(rendered.SIZES)}")
    device = str(distributed.start(device).device)
    images = out / "images"
    forget(out / "dataset.json")
    empty_own_folder(images)
    info = rendered.write(images, size=size, world=world, device=device, progress=True)
    fingerprint = info.pop("fingerprint")
    rendered.contact_sheet(images, out / "contact_sheet.png")
    return checked_manifest(dataset, images, info, fingerprint)


def untestable(manifest: Manifest, protocol: Protocol) -> str | None:
    """Why no run could be scored on the dataset under its protocol, or None."""
    sides = (protocol.query, protocol.gallery)
    absent = [split for split in sides if not manifest.has(split)]
    if absent:
        return f"it has no {' and no '.join(absent)} images"
    query, gallery = (manifest.split(split) for split in sides)
    known = query[query["person_id"] != UNKNOWN]
    pairs = known.merge(gallery, on="person_id", suffixes=("", "_of_match"))
    same_camera = (pairs["camera_id"] == pairs["camera_id_of_match"]) & (pairs["camera_id"] != UNKNOWN)
    if same_camera.all():
        return "no query has an image of its person, under another camera, in the gallery"
    return None


def report(manifest: Manifest, status: str) -> str:
    """Counts per split, the fingerprint and the notices, for a terminal."""
    lines = [
        f"{manifest.name}: {manifest.root}",
        f"{'split':<10}{'images':>10}{'ids':>8}{'cameras':>9}",
    ]
    for split, counts in manifest.counts().items():
        lines.append(f"{split:<10}{counts['images']:>10,}{counts['identities']:>8,}{counts['cameras']:>9}")
    lines.append(f"fingerprint {manifest.fingerprint} ({status})")
    protocol = datasets.protocol_of(manifest.name)
    reason = untestable(manifest, protocol)
    tested = f"scored by the protocol {protocol.name}"
    lines.append(f"notice: runs cannot be tested on it: {reason}" if reason else tested)
    lines += [f"differs: {line}" for line in manifest.info.get("differences", [])]
    lines += [f"notice: {notice}" for notice in manifest.info.get("notices", [])]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_main(main)
