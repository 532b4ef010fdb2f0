"""The committed reference: what the runs of each leaderboard row left, small enough for a repository.

    queries/DATASET-DIGEST.npz  a test split's queries and their people, once for all rows
    runs/ROW/row.json           every record (``pipeline.records.ResultRecord``), what they share once
    runs/ROW/queries.npz        per-query results, COLUMN-I of the I-th record, in float32
    runs/ROW/curves.csv         a line per record and epoch, six digits

A row is written and read by itself: adding a method touches no other. ``read`` gives the same ``Result`` objects as
results/runs, but for the seventh digit of a per-query AP, so that a clone without runs makes every table and interval.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import UserError
from core.files import changed, forget, hashes, write_arrays, write_text
from core.validation import Record, RecordError, read_json
from core.validation import read as read_values
from pipeline import cli
from pipeline.jobs import Job
from pipeline.records import ResultRecord, write_record
from reports.record import Result, figures_fault, side_columns
from reports.table import KEY, read_results, warn_of_unusable

ROW, QUERIES, CURVES = "row.json", "queries.npz", "curves.csv"
PLACE = ("world", "fold", "seed")  # what tells a row's records apart
IDS = ("query", "person_id", "camera_id")


def add_source_arguments(arguments: argparse.ArgumentParser) -> None:
    """Arguments that say whose results are tabled: those of params.yaml's runs, or a reference's."""
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="what was run")
    cli.add_worlds_argument(arguments)
    arguments.add_argument(
        "--from", dest="source", type=Path, metavar="REFERENCE", help="a reference's rows in place of the runs here"
    )


def chosen(options: argparse.Namespace) -> list[Result]:
    """The results that ``add_source_arguments`` asked for; raises UserError when a reference holds none."""
    results = read(options.source) if options.source else read_results(cli.read_params(options))
    if not results:  # params.yaml always asks for some
        raise UserError(f"{options.source} holds no rows yet; leave --from out for what was run here")
    warn_of_unusable(results)
    return results


class Replicate(Record):
    """One record less what its row shares, and the file of its queries."""

    queries: str
    record: dict[str, Any]


class RowFile(Record):
    """row.json: what all records of the row share, each one's own, and hashes of the files beside it."""

    shared: dict[str, Any]
    replicates: tuple[Replicate, ...]
    files: dict[str, str]


def by_row(results: Iterable[Result]) -> dict[tuple[str, ...], list[Result]]:
    """Results by leaderboard row."""
    rows: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        rows.setdefault(tuple(getattr(result.record.run, name) for name in KEY), []).append(result)
    return rows


def write(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the rows of ``results`` and return their folders; rows and worlds of which nothing was run now stay.

    Raises UserError when there is nothing to write, when a result is quarantined or failed (a reference is made of
    results that hold), and when what a row would keep was made by other settings.
    """
    bad = [result.record for result in results if not result.ok]
    if bad or not results:
        reason = f"{bad[0].run.name}, seed {bad[0].seed}: {bad[0].reason}" if bad else "no run has results"
        raise UserError(f"the reference was not written: {reason}")
    places = {folder / "runs" / "-".join(key): group for key, group in by_row(results).items()}
    rows = {place: with_kept(group, place, folder / "queries") for place, group in places.items()}
    for place, group in rows.items():
        write_row(group, place, folder / "queries")
    remove_unused(folder)
    return list(rows)


def with_kept(group: Sequence[Result], place: Path, ids: Path) -> list[Result]:
    """A row's new results and those that the reference has of it in other worlds, folds or seeds, in their order."""
    made = {where(result): result for result in group}
    kept = {where(result): result for result in read_row(place, ids)} if (place / ROW).is_file() else {}
    every = {**kept, **made}
    settings = {result.record.run.config_hash for result in every.values()}
    if len(settings) > 1:
        raise UserError(
            f"the reference was not written: {place} has {len(kept.keys() - made.keys())} more results by other "
            "settings; remove it first"
        )
    return [every[one] for one in sorted(every)]


def where(result: Result) -> tuple[int, ...]:
    """World, fold and seed of a result, with -1 for what its dataset lacks."""
    found = (getattr(result.record, name) for name in PLACE)
    return tuple(-1 if value is None else value for value in found)


def write_row(group: Sequence[Result], place: Path, ids: Path) -> None:
    """Write a row's folder, its record last, and the queries that it is the first to ask."""
    forget(place / ROW)
    arrays, replicates = {}, []
    records = [result.record.model_dump(mode="json") for result in group]
    shared = {key: value for key, value in common(records).items() if key not in PLACE}
    for number, (result, record) in enumerate(zip(group, records, strict=True)):
        assert result.queries is not None, "a result that is ok has its queries"
        name = write_ids(result, ids)
        arrays |= {f"{column}-{number}": values for column, values in measured(result).items()}
        replicates.append(Replicate(queries=name, record=without(record, shared)))
    write_arrays(place / QUERIES, **arrays)
    write_text(place / CURVES, curves_text(group))
    files = hashes(place, [QUERIES, CURVES])
    write_record(RowFile(shared=shared, replicates=tuple(replicates), files=files), place / ROW)


def measured(result: Result) -> dict[str, np.ndarray]:
    """The per-query columns from which every figure of the record can be computed, as small as they go."""
    assert result.queries is not None
    columns = [name for name in side_columns(result.record.protocol.metric) if name not in IDS]
    return {name: small(result.queries[name].to_numpy()) for name in columns}


def small(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the fewest bytes that hold them, others in float32."""
    if values.dtype.kind not in "iu":
        return values.astype(np.float32)
    return values.astype(np.result_type(*(np.min_scalar_type(end) for end in (values.min(), values.max()))))


def write_ids(result: Result, folder: Path) -> str:
    """Write who is asked for, unless it is there, and return the file's name, which its content decides."""
    assert result.queries is not None
    ids = {name: result.queries[name].to_numpy(np.int64) for name in IDS if name in result.queries}
    name = f"{result.record.tested_on.title}-{digest(ids)}.npz"
    if not (folder / name).is_file():
        write_arrays(folder / name, **{column: small(values) for column, values in ids.items()})
    return name


def digest(ids: Mapping[str, np.ndarray]) -> str:
    """Sixteen digits of the sha256 of the ids."""
    content = b"".join(name.encode() + values.astype("<i8").tobytes() for name, values in ids.items())
    return hashlib.sha256(content).hexdigest()[:16]


def curves_text(group: Sequence[Result]) -> str:
    """The curves of all records of a row, numbered, as CSV."""
    tables = []
    for number, result in enumerate(group):
        place = {name: getattr(result.record, name) for name in PLACE}
        tables.append(pd.DataFrame({"record": number, **place, **result.curves}))
    return pd.concat(tables).to_csv(index=False, lineterminator="\n", float_format="%.6g")


def remove_unused(folder: Path) -> None:
    """Remove the queries that no row asks any more."""
    used = {entry.queries for file in row_files(folder) for entry in read_json(RowFile, file).replicates}
    for file in (folder / "queries").glob("*.npz"):
        if file.name not in used:
            file.unlink()


def row_files(folder: Path) -> list[Path]:
    """The records of all rows; raises UserError where the reference is of the earlier format, which kept no queries."""
    if any((folder / "runs").glob("*.json")):
        raise UserError(
            f"{folder}/runs holds a reference of an earlier format, without worlds and per-query results; remove its "
            "*.json and write it again: `python -m pipeline.verify --update`"
        )
    return sorted((folder / "runs").glob(f"*/{ROW}"))


def read(folder: Path) -> list[Result]:
    """All results of a reference; none where there is none. Raises RecordError where a file is not what was written."""
    return [result for file in row_files(folder) for result in read_row(file.parent, folder / "queries")]


def read_row(place: Path, ids: Path) -> list[Result]:
    """The results of one row."""
    row = read_json(RowFile, place / ROW)
    if fault := changed(place, row.files):
        raise RecordError(f"{place}: {fault}")
    curves = pd.read_csv(place / CURVES)
    results = []
    with np.load(place / QUERIES) as arrays:
        for number, entry in enumerate(row.replicates):
            source = f"{place / ROW}, record {number}"
            record = read_values(ResultRecord, merged(row.shared, entry.record), source)
            columns = {name.rpartition("-")[0]: arrays[name] for name in arrays if name.endswith(f"-{number}")}
            queries = queries_table(read_ids(ids / entry.queries), columns)
            if fault := figures_fault(record, queries):
                raise RecordError(f"{source}: {fault}")
            own = curves[curves["record"] == number].drop(columns=["record", *PLACE]).reset_index(drop=True)
            job = Job(record.run.name, record.tested_on.title, record.run.backbone, record.seed)
            results.append(Result(record, queries, job.evaluated, own))
    return results


def read_ids(file: Path) -> dict[str, np.ndarray]:
    """Who was asked for; raises RecordError when the file is not the one that its name tells."""
    if not file.is_file():
        raise RecordError(f"{file} does not exist, but rows of the reference ask its queries")
    with np.load(file) as arrays:
        ids = {name: arrays[name].astype(np.int64) for name in arrays}
    if not file.stem.endswith(digest(ids)):
        raise RecordError(f"{file} holds other queries than its name tells")
    return ids


def queries_table(ids: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The per-query table as ``reports.record.read_result`` gives it: numbers as wide as a CSV's."""
    wide = {name: values.astype(float if values.dtype.kind == "f" else np.int64) for name, values in columns.items()}
    return pd.DataFrame({**ids, **wide})


def common(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all records hold alike, of nested mappings the part that is alike."""
    first, *others = records
    shared = {}
    for key, value in first.items():
        values = [value, *(record[key] for record in others if key in record)]
        if len(values) == len(records) and all(isinstance(one, Mapping) for one in values):
            shared[key] = common(values)
        elif len(values) == len(records) and all(one == value for one in values):
            shared[key] = value
    return shared


def without(record: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """``record`` less what ``shared`` holds; ``merged`` puts it back."""
    own = {}
    for key, value in record.items():
        nested = key in shared and isinstance(value, Mapping)
        if nested and (rest := without(value, shared[key])):
            own[key] = rest
        elif key not in shared:
            own[key] = value
    return own


def merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A whole record."""
    both = [key for key, value in shared.items() if isinstance(value, Mapping) and key in own]
    nested = {key: merged(shared[key], own[key]) for key in both}
    return {**shared, **own, **nested}
