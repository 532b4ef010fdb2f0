"""Protocols as data, and the evaluator of feature files that any system may have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datasets
from evaluation import protocol as protocols
from evaluation.distances import EvaluationError
from evaluation.protocol import Protocol, ProtocolError
from evaluation.score import KEYS, evaluate_feature_file
from tests import reference_metrics

MARKET = protocols.load("market1501")
CLASSIC = protocols.load("cuhk03_classic_detected")


def test_every_dataset_has_a_protocol_and_every_protocol_a_dataset() -> None:
    for name in datasets.available():
        assert datasets.protocol_of(name).name in (name, datasets.load(name).protocol, datasets.USUAL_PROTOCOL)
    for name in protocols.available():
        protocol = protocols.load(name)
        assert protocol.name == name
        assert name in datasets.available()
        assert protocol.version >= 1


def test_only_classic_cuhk03_draws_its_gallery() -> None:
    drawn = {name for name in protocols.available() if protocols.load(name).gallery_shot == "one_per_person"}
    assert drawn == {"cuhk03_classic_detected", "cuhk03_classic_labeled"}
    assert (CLASSIC.draws, CLASSIC.folds, CLASSIC.metric) == (100, datasets.load(CLASSIC.name).folds, "cmc")


def test_an_unknown_protocol_suggests_the_nearest() -> None:
    with pytest.raises(ProtocolError, match=r"unknown protocol 'marked1501'; did you mean 'market1501'\?"):
        protocols.load("marked1501")


def test_a_name_that_two_files_state_is_refused(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(ProtocolError, match=r"b\.yaml: another file .* states the protocol 'market1501' already"):
        protocols.known(tmp_path)


GOOD = (protocols.HERE / "market.yaml").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gallery_shots: all\n" + GOOD, r"unknown key 'gallery_shots'; did you mean 'gallery_shot'\?"),
        (GOOD.replace("metric: cmc_and_map\n", ""), "'metric' is missing"),
        (GOOD.replace("version: 1", "version: one"), "'version' must be a valid integer, not 'one'"),
        (GOOD.replace("junk: drop", "junk: keep"), "'junk' must be 'drop', not 'keep'"),
        (GOOD.replace("csv: {}", "csv: {notice: [a]}"), r"'names\.csv\.notice'; did you mean 'names\.csv\.notices'"),
        (GOOD.replace("csv: {}", "csv: {notices: none}"), r"'names\.csv\.notices' must be a valid array, not 'none'"),
    ],
)
def test_a_malformed_protocol_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "market.yaml"
    path.write_text(text)
    with pytest.raises(ProtocolError, match=message):
        protocols.read(path)


def people(seed: int = 0, queries: int = 25, gallery: int = 160, dimensions: int = 12) -> dict[str, np.ndarray]:
    """A feature file's arrays, with junk, distractors and repeated gallery vectors."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for side, count in (("query", queries), ("gallery", gallery)):
        ids = rng.integers(1 if side == "query" else -1, 12, count)
        centres = np.random.default_rng(99).normal(size=(14, dimensions))
        arrays[f"{side}_features"] = (centres[ids] + 2 * rng.normal(size=(count, dimensions))).astype(np.float32)
        arrays[f"{side}_ids"] = ids
        arrays[f"{side}_cameras"] = rng.integers(1, 5, count)
    arrays["gallery_features"][40:60] = arrays["gallery_features"][80:100]
    return arrays


def save(folder: Path, **arrays: Any) -> Path:
    path = folder / "features.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_feature_file_scores_as_the_literal_rules_say(tmp_path: Path, seed: int, normalise: bool) -> None:
    arrays = people(seed)
    summary, per_query = evaluate_feature_file(MARKET, save(tmp_path, **arrays), normalise)
    keep = arrays["gallery_ids"] != -1
    query, gallery = arrays["query_features"].astype(float), arrays["gallery_features"][keep].astype(float)
    if normalise:
        query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    distance = ((query[:, None] - gallery[None]) ** 2).sum(axis=2)
    expected = reference_metrics.scores(
        distance,
        arrays["query_ids"],
        arrays["gallery_ids"][keep],
        arrays["query_cameras"],
        arrays["gallery_cameras"][keep],
    )
    for key in ("mAP", "mAP_trapezoid", "mINP"):
        assert summary[key] == pytest.approx(expected[key], abs=1e-9)
    for rank in (1, 5, 10, 20):
        assert summary[f"rank{rank}"] == pytest.approx(expected["cmc"][rank - 1])
    assert summary["valid_queries"] == len(per_query) == len(expected["rows"])
    np.testing.assert_allclose(per_query["ap"], [row["ap"] for row in expected["rows"]], atol=1e-9)
    assert (summary["protocol"], summary["protocol_version"], summary["normalised"]) == ("market1501", 1, normalise)


def test_junk_never_reaches_the_ranking(tmp_path: Path) -> None:
    arrays = people()
    first, _ = evaluate_feature_file(MARKET, save(tmp_path, **arrays))
    junk = arrays["gallery_ids"] == -1
    arrays["gallery_features"][junk] = arrays["query_features"][0]
    assert evaluate_feature_file(MARKET, save(tmp_path, **arrays))[0] == first
    assert junk.any()


def classic(seed: int = 0) -> dict[str, np.ndarray]:
    """20 people, three images in each of two views, every image both query and gallery."""
    rng = np.random.default_rng(seed)
    ids, cameras = np.repeat(np.arange(1, 21), 6), np.tile([1, 1, 1, 2, 2, 2], 20)
    features = rng.normal(size=(20, 8))[ids - 1] + rng.normal(size=(120, 8))
    columns = {"features": features, "ids": ids, "cameras": cameras}
    return {f"{side}_{what}": value for side in ("query", "gallery") for what, value in columns.items()}


def test_the_classic_protocol_has_no_map_and_is_seeded(tmp_path: Path) -> None:
    path = save(tmp_path, **classic())
    summary, per_query = evaluate_feature_file(CLASSIC, path)
    assert summary["mAP"] is summary["mAP_trapezoid"] is summary["mINP"] is None
    assert 0 < summary["rank1"] < summary["rank5"] < summary["rank10"] <= 1
    assert summary["valid_queries"] == len(per_query) == 120
    assert summary["rank1"] == pytest.approx(per_query["rank1"].mean())
    assert evaluate_feature_file(CLASSIC, path)[0] == summary
    reseeded = CLASSIC.model_copy(update={"seed": 1})
    assert evaluate_feature_file(reseeded, path)[0]["rank1"] != summary["rank1"]
    assert evaluate_feature_file(CLASSIC, path, fold=1)[0]["rank1"] != summary["rank1"]


@pytest.mark.parametrize("protocol", [MARKET, CLASSIC], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_ids": None}, "lacks query_ids; it holds"),
        ({"gallery_cameras": np.ones(7, int)}, "gallery_features has 160 rows but gallery_cameras has 7 entries"),
        ({"query_ids": np.ones(7, int)}, "query_features has 25 rows but query_ids has 7 entries"),
        ({"query_features": np.ones((25, 3))}, "query_features has 3 columns but gallery_features has 12"),
        ({"query_features": np.ones(25)}, r"query_features must have 2 dimension\(s\), its shape is \(25,\)"),
        ({"gallery_ids": np.ones((160, 1), int)}, r"gallery_ids must have 1 dimension\(s\)"),
        ({"query_features": np.full((25, 12), np.nan)}, "query_features holds NaN or infinite values in 25 rows"),
        ({"gallery_features": np.full((160, 12), np.inf)}, "gallery_features holds NaN or infinite"),
        ({"query_cameras": np.full(25, 0.5)}, "query_cameras must hold integers, it holds float64"),
        ({"gallery_ids": np.array(["0002"] * 160)}, "gallery_ids must hold numbers, it holds <U4"),
        ({"gallery_ids": np.full(160, -1)}, r"gallery_ids holds nothing but junk \(-1\)"),
        ({"gallery_ids": np.full(160, 77)}, "none of the 25 queries has a"),
        ({"query_ids": np.array([None] * 25)}, "cannot be read as an .npz file of numbers"),
    ],
)
def test_a_bad_feature_file_is_an_error_that_says_which_array_and_why(
    tmp_path: Path, protocol: Protocol, change: dict[str, Any], message: str
) -> None:
    arrays = {key: value for key, value in (people() | change).items() if value is not None}
    with pytest.raises(EvaluationError, match=message):
        evaluate_feature_file(protocol, save(tmp_path, **arrays))


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none.npz does not exist"):
        evaluate_feature_file(MARKET, tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(EvaluationError, match=r"text.npz cannot be read as an .npz file"):
        evaluate_feature_file(MARKET, tmp_path / "text.npz")
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(EvaluationError, match="holds a single array"):
        evaluate_feature_file(MARKET, tmp_path / "single.npy")
    assert all(key in KEYS for key in people())
