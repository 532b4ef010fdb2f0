"""The nearest gallery images of every query, and rank-1 by camera pair: what the report shows of a run's ranking.

One job of each row of the table, its first, is ranked again with the weights of its last epoch. Numbers of tables never
come from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from core import distributed
from core.distributed import ProcessGroup
from core.manifest import read_manifest
from evaluation.distances import DistanceBlock, checked_block
from pipeline import cli
from pipeline.jobs import CACHE, Job, data_folder, jobs
from pipeline.params import Params
from pipeline.records import SCORED, TRAINED, NearestRecord, read_nearest, read_result, write_record
from pipeline.scoring import TestSplit, distance_blocks, kept_weights, load_method, read_whole

NEAREST = 10  # images of a query's list
CHUNK = 256  # queries at a time


def main(argv: Sequence[str] | None = None) -> int:
    """Write results/nearest/JOB.json of every row whose weights are there and whose file is not of them already."""
    arguments = cli.parser("nearest", __doc__ or "")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="what was run")
    cli.add_worlds_argument(arguments)
    arguments.add_argument("--cache", type=Path, default=CACHE, help="decoded images")
    cli.add_machine_arguments(arguments)
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    torch.set_num_threads(cli.threads(options, params))
    group = distributed.start(options.device)
    wanted = [job for job in first_jobs(params) if stale(job)]
    for job in tqdm(wanted, "nearest", leave=False):
        write_record(nearest(job, group, options.cache), job.nearest)
    print(f"nearest images: {len(wanted)} runs ranked")
    return 0


def first_jobs(params: Params) -> list[Job]:
    """The first job of every row that was trained and tested, did not fail, and whose images are there."""
    found: dict[tuple[str, ...], Job] = {}
    for job in jobs(params):
        needed = (job.evaluated / SCORED, job.trained / TRAINED, data_folder(job.dataset) / "manifest.csv")
        if all(file.is_file() for file in needed):
            record = read_result(job.evaluated)
            if record.status == "ok":
                found.setdefault((record.run.dataset, record.run.name, record.run.backbone), job)
    return list(found.values())


def stale(job: Job) -> bool:
    """Whether the job has no list yet, or one of another training or test."""
    if not job.nearest.is_file():
        return True
    made, record = read_nearest(job.nearest), read_result(job.evaluated)
    return (made.key, made.scoring) != (record.key, record.scoring)


def nearest(job: Job, group: ProcessGroup, cache: Path) -> NearestRecord:
    """Rank a job's test split with the weights of its last epoch."""
    trained, tested = read_whole(job.trained), read_result(job.evaluated)
    manifest = read_manifest(data_folder(job.dataset))
    run, method = load_method(trained)
    weights = kept_weights(job.trained, trained)
    method.load_state_dict(torch.load(weights[max(weights)], map_location="cpu", weights_only=True))
    test = TestSplit(manifest, run, trained, group, cache)
    blocks = distance_blocks(method, *test.embed(method))
    lists, hits, asked = rank(blocks, *test.labels)
    rates = np.where(asked > 0, hits / np.maximum(asked, 1), np.nan)
    return NearestRecord(
        key=tested.key,
        scoring=tested.scoring,
        fingerprint=manifest.fingerprint,
        lists=tuple(map(tuple, lists.tolist())),
        cameras=tuple(np.unique(np.concatenate(test.labels[2:])).tolist()),
        rank1=tuple(tuple(None if np.isnan(rate) else rate for rate in row) for row in rates.tolist()),
        asked=tuple(map(tuple, asked.tolist())),
    )


def rank(
    blocks: DistanceBlock,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gallery rows (Q, NEAREST) nearest first, and (C, C) hits and queries by camera of query and of gallery.

    The lists hold the query's person under its own camera too, which no metric ranks. A query of one camera is asked of
    another whose images show its person; a hit is one whose nearest image of that camera shows it. Ties rank in
    gallery order. C: all cameras, ascending.
    """
    cameras = np.unique(np.concatenate([query_cameras, gallery_cameras]))
    lists, hits = [], np.zeros((len(cameras), len(cameras)), dtype=int)
    asked = np.zeros_like(hits)
    columns = [np.flatnonzero(gallery_cameras == camera) for camera in cameras]
    for start in range(0, len(query_ids), CHUNK):
        rows = slice(start, min(start + CHUNK, len(query_ids)))
        distance = checked_block(blocks(rows), range(rows.start, rows.stop), len(gallery_ids))
        lists.append(np.argsort(distance, axis=1, kind="stable")[:, :NEAREST])
        ids, place = query_ids[rows], np.searchsorted(cameras, query_cameras[rows])
        for seen, column in enumerate(columns):
            if len(column) == 0:
                continue
            same = ids[:, None] == gallery_ids[column]
            valid = same.any(axis=1) & (place != seen)
            hit = same[np.arange(len(ids)), distance[:, column].argmin(axis=1)]
            np.add.at(asked, (place[valid], seen), 1)
            np.add.at(hits, (place[valid & hit], seen), 1)
    return np.concatenate(lists), hits, asked


if __name__ == "__main__":
    cli.run_main(main)
