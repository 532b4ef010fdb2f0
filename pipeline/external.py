"""Score systems from outside the suite: the features files that params.yaml lists under `external`.

Each is ranked under its dataset's protocol. The ids and cameras in the file must be those of the prepared dataset, in
the order of its manifest, so that a system is compared with the suite's runs on the very same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from core import distributed
from core.config import digest
from core.distributed import ProcessGroup
from core.errors import UserError
from core.files import forget, hash_file, hashes, write_csv
from core.lock import locked
from core.manifest import Manifest
from datasets import protocol_of, split_number
from evaluation.distances import EvaluationError, euclidean_blocks
from evaluation.protocol import Protocol
from evaluation.ranking import drop_junk
from evaluation.score import Scored, read_feature_file, score
from pipeline import cli, needed
from pipeline.jobs import ROOT, external_folder
from pipeline.params import External, Params
from pipeline.records import (
    SCORED,
    BestScores,
    EpochScores,
    ExternalRecord,
    RunRecord,
    Selection,
    data_record,
    protocol_record,
    provenance_record,
    write_record,
)
from pipeline.settings import scoring_hash

VARIANT = BACKBONE = "external"


def main(argv: Sequence[str] | None = None) -> int:
    """Write results/runs/external-NAME-DATASET of every system that is asked for."""
    arguments = cli.parser("external", __doc__ or "")
    arguments.add_argument("--name", help="one system; default: all of --params")
    arguments.add_argument("--dataset", help="one dataset; default: all of each system")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file")
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    torch.set_num_threads(params.threads)
    wanted = [
        system
        for system in params.external
        if options.name in (None, system.name) and options.dataset in (None, system.dataset)
    ]
    if not wanted:
        raise UserError(f"{options.params} lists no such system under `external`; docs/external.md shows how to")
    group = distributed.start("cpu")
    for system in wanted:
        record, queries = score_system(system, needed.prepared(system.dataset, None), params, group)
        write(external_folder(system.name, system.dataset), record, queries)
        judge = record.protocol.headline
        print(f"{system.name} on {system.dataset}: {judge} {100 * (record.selection.last.figure(judge) or 0):.1f}")
    return 0


def score_system(
    system: External, manifest: Manifest, params: Params, group: ProcessGroup
) -> tuple[ExternalRecord, pd.DataFrame]:
    """The record and the per-query table of one features file; raises UserError where it is not of these images."""
    protocol, file = protocol_of(manifest.name), Path(system.features)
    scored = ranked(file, manifest, protocol, system.normalize)
    last = EpochScores(epoch=None, **scored.ranking.summary())
    data = data_record(manifest)
    run = RunRecord(
        name=system.name,
        method=system.name,
        variant=VARIANT,
        backbone=BACKBONE,
        profile=params.profile,
        dataset=split_number(system.dataset)[0],
        config={},
        config_hash=digest({}),
    )
    record = ExternalRecord(
        status="ok",
        run=run,
        seed=0,
        fold=data.fold,
        world=data.world,
        about=system.about,
        features=hash_file(file),
        normalised=system.normalize,
        protocol=protocol_record(protocol),
        scoring=scoring_hash(protocol),
        tested_on=data,
        selection=Selection(last=last, best_on_test=BestScores(**last.model_dump(), chosen_by=protocol.headline)),
        verification=scored.verification,
        evaluated_with=provenance_record(group, ROOT),
        files={},  # by its writer
    )
    return record, scored.ranking.per_query


def ranked(file: Path, manifest: Manifest, protocol: Protocol, normalise: bool) -> Scored:
    """The features scored; raises EvaluationError where ids or cameras are not the manifest's, row by row."""
    arrays = read_feature_file(file)
    ids, features, cameras = drop_junk(arrays["gallery_ids"], arrays["gallery_features"], arrays["gallery_cameras"])
    given = {"query": (arrays["query_ids"], arrays["query_cameras"]), "gallery": (ids, cameras)}
    for side, split in (("query", protocol.query), ("gallery", protocol.gallery)):
        rows = manifest.split(split)
        for what, column, found in zip(("ids", "cameras"), ("person_id", "camera_id"), given[side], strict=True):
            if not np.array_equal(rows[column].to_numpy(), found):
                raise EvaluationError(
                    f"{file}: {side}_{what} are not those of {manifest.name} ({len(rows)} rows, {len(found)} given); "
                    f"keep the order of the split '{split}' in its manifest.csv"
                )
    try:
        blocks = euclidean_blocks(arrays["query_features"], features, normalise=normalise)
        labels = (arrays["query_ids"], ids, arrays["query_cameras"], cameras)
        return score(protocol, blocks, *labels, fold=manifest.info.get("fold") or 0)
    except EvaluationError as error:
        raise EvaluationError(f"{file}: {error}") from error


def write(out: Path, record: ExternalRecord, queries: pd.DataFrame) -> None:
    """``queries.csv``, and ``result.json`` with its hash."""
    with locked(out):
        forget(out / SCORED)
        write_csv(out / "queries.csv", queries)
        write_record(record.model_copy(update={"files": hashes(out, ["queries.csv"])}), out / SCORED)


if __name__ == "__main__":
    cli.run_main(main)
