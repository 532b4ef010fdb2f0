"""Scoring under a protocol: distances of any origin, or a file of features made by any system."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.rng import Streams
from evaluation.distances import DistanceBlock, EvaluationError, euclidean_blocks
from evaluation.protocol import Protocol
from evaluation.ranking import Scores, drop_junk, evaluate_ranking
from evaluation.single_shot import SingleShotScores, evaluate_single_shot

SIDES = ("query", "gallery")
KEYS = tuple(f"{side}_{what}" for what in ("features", "ids", "cameras") for side in SIDES)


def score(
    protocol: Protocol,
    distance_block: DistanceBlock,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    fold: int = 0,
) -> Scores | SingleShotScores:
    """Score distances under the protocol's rules; the gallery must be without its junk already (``drop_junk``).

    fold: which of the protocol's splits this is; it selects the random galleries and nothing else.
    """
    labels = (query_ids, gallery_ids, query_cameras, gallery_cameras)
    if protocol.gallery_shot == "all":
        return evaluate_ranking(distance_block, *labels)
    rng = Streams(protocol.seed).numpy(f"{protocol.name}/gallery", epoch=fold)
    return evaluate_single_shot(distance_block, *labels, draws=protocol.draws, rng=rng)


def evaluate_feature_file(
    protocol: Protocol, path: Path, normalise: bool = False, fold: int = 0
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Rank the features in an .npz file; returns the summary (fractions) and a row per valid query.

    Keys: ``query_features`` (Q, D), ``gallery_features`` (G, D), ``query_ids``, ``gallery_ids`` (-1
    = junk, removed), ``query_cameras``, ``gallery_cameras`` (-1 = unknown). Distances are Euclidean
    on the features as given, or after L2 if ``normalise``. Raises EvaluationError that names the
    array and says what is wrong with it.
    """
    arrays = read_feature_file(path)
    ids, features, cameras = drop_junk(arrays["gallery_ids"], arrays["gallery_features"], arrays["gallery_cameras"])
    if len(ids) == 0:
        raise EvaluationError(f"{path}: gallery_ids holds nothing but junk (-1)")
    try:
        blocks = euclidean_blocks(arrays["query_features"], features, normalise=normalise)
        scores = score(protocol, blocks, arrays["query_ids"], ids, arrays["query_cameras"], cameras, fold)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error
    record = {"protocol": protocol.name, "protocol_version": protocol.version, "normalised": normalise}
    return {**scores.summary(), **record}, scores.per_query


def evaluate_feature_files(
    protocol: Protocol, files: Sequence[Path], normalise: bool = False
) -> tuple[dict[str, Any], pd.DataFrame]:
    """One feature file for each fold of the protocol, in their order (``evaluate_feature_file`` says what they hold).

    Figures are means over the folds, query counts are sums; rows of several folds name theirs (column ``fold``).
    ``folds`` says how many there were: fewer than the protocol's are scored, and are not its result.
    """
    if len(files) > protocol.folds:
        raise EvaluationError(f"{protocol.name} has {protocol.folds} fold(s), {len(files)} feature files were given")
    scored = [evaluate_feature_file(protocol, file, normalise, fold) for fold, file in enumerate(files)]
    summaries, tables = zip(*scored, strict=True)
    first = summaries[0]
    figures = {key: value for key, value in first.items() if isinstance(value, float)}
    means = {key: float(np.mean([summary[key] for summary in summaries])) for key in figures}
    counts = {key: sum(summary[key] for summary in summaries) for key in ("valid_queries", "skipped_queries")}
    if len(files) > 1:
        tables = tuple(table.assign(fold=fold) for fold, table in enumerate(tables))
    return {**first, **means, **counts, "folds": len(files)}, pd.concat(tables, ignore_index=True)


def read_feature_file(path: Path) -> dict[str, np.ndarray]:
    """The six arrays of a feature file, all numeric and of lengths that agree."""
    if not path.is_file():
        raise EvaluationError(f"{path} does not exist")
    try:
        arrays = _load(path)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path} cannot be read as an .npz file of numbers: {error}") from error
    absent = [key for key in KEYS if key not in arrays]
    if absent:
        raise EvaluationError(f"{path} lacks {', '.join(absent)}; it holds {', '.join(arrays) or 'nothing'}")
    for side in SIDES:
        _check_lengths(path, side, arrays)
    return arrays


def _load(path: Path) -> dict[str, np.ndarray]:
    file = np.load(path, allow_pickle=False)
    if isinstance(file, np.ndarray):
        raise ValueError("it holds a single array; save several with numpy.savez")
    with file:
        return dict(file.items())


def _check_lengths(path: Path, side: str, arrays: dict[str, np.ndarray]) -> None:
    """Stop unless features (N, D), ids (N,) and cameras (N,) of one side belong together."""
    for what, dimensions in (("features", 2), ("ids", 1), ("cameras", 1)):
        array = arrays[f"{side}_{what}"]
        if array.dtype.kind not in "iuf":
            raise EvaluationError(f"{path}: {side}_{what} must hold numbers, it holds {array.dtype}")
        if array.ndim != dimensions:
            raise EvaluationError(
                f"{path}: {side}_{what} must have {dimensions} dimension(s), its shape is {array.shape}"
            )
    images = len(arrays[f"{side}_features"])
    for key in (f"{side}_ids", f"{side}_cameras"):
        if len(arrays[key]) != images:
            raise EvaluationError(f"{path}: {side}_features has {images} rows but {key} has {len(arrays[key])} entries")
