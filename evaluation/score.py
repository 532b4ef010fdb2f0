"""Scoring under a protocol: distances of any origin, or a file of features made by any system."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from core.rng import Streams
from evaluation.distances import DistanceBlock, EvaluationError, euclidean_blocks
from evaluation.protocol import Protocol
from evaluation.ranking import Scores, drop_junk, evaluate_ranking
from evaluation.single_shot import SingleShotScores, evaluate_single_shot
from evaluation.verification import PairCounter, Verification

SIDES = ("query", "gallery")
KEYS = tuple(f"{side}_{what}" for what in ("features", "ids", "cameras") for side in SIDES)


class Scored(NamedTuple):
    """What distances are worth: as a ranking, and for telling whether two images show one person."""

    ranking: Scores | SingleShotScores
    verification: Verification | None


def score(
    protocol: Protocol,
    distance_block: DistanceBlock,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    fold: int = 0,
) -> Scored:
    """Score distances under the protocol's rules; the gallery must be without its junk already (``drop_junk``).

    fold: which of the protocol's splits this is; it selects the random galleries and nothing else.
    """
    labels = (query_ids, gallery_ids, query_cameras, gallery_cameras)
    single_shot = protocol.gallery_shot == "one_per_person"
    pairs = PairCounter(*labels, across_cameras=single_shot)
    blocks = pairs.watch(distance_block)
    ranking: Scores | SingleShotScores
    if single_shot:
        rng = Streams(protocol.seed).numpy(f"{protocol.name}/gallery", epoch=fold)
        ranking = evaluate_single_shot(blocks, *labels, draws=protocol.draws, rng=rng)
    else:
        ranking = evaluate_ranking(blocks, *labels)
    return Scored(ranking, pairs.result())


def evaluate_feature_file(
    protocol: Protocol, path: Path, normalise: bool = False, fold: int = 0
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Rank the features in an .npz file; returns the summary (fractions, distances) and a row per valid query.

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
        scores, verified = score(protocol, blocks, arrays["query_ids"], ids, arrays["query_cameras"], cameras, fold)
    except EvaluationError as error:
        raise EvaluationError(f"{path}: {error}") from error
    record = {"protocol": protocol.name, "protocol_version": protocol.version, "normalised": normalise}
    figures = {**scores.summary(), **(verified.figures() if verified else {})}
    return {**figures, **record}, scores.per_query


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
    figures = {key: [summary.get(key) for summary in summaries] for key, value in first.items() if _is_figure(value)}
    means = {key: None if None in values else float(np.mean(values)) for key, values in figures.items()}
    counts = {key: sum(summary[key] for summary in summaries) for key in ("valid_queries", "skipped_queries")}
    if len(files) > 1:
        tables = tuple(table.assign(fold=fold) for fold, table in enumerate(tables))
    return {**first, **means, **counts, "folds": len(files)}, pd.concat(tables, ignore_index=True)


def _is_figure(value: Any) -> bool:
    """Whether a value of a summary is a figure: a fraction, a distance, or None where it is not defined."""
    return value is None or isinstance(value, float)


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
