"""Runs are scored by the protocol of their dataset: CUHK03's single-shot one on its folds, Market-1501's as before."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import datasets
from core.distributed import start
from core.images import ImageStore, load_images
from core.manifest import Manifest, read_manifest
from core.method import embed_all
from evaluation.ranking import evaluate_features
from pipeline import cross_domain, evaluate, prepare, records, train
from pipeline.params import read_params
from pipeline.records import read_train
from pipeline.scoring import load_method
from reports import exports, leaderboard, reference, verify
from reports.compare import compare
from reports.published import Row
from reports.record import Result, read_result
from reports.table import read_results
from tests import trees
from tests.conftest import TinyWorld

NAME = "cuhk03_classic_detected"
FOLDS = (f"{NAME}-0", f"{NAME}-1")
PEOPLE = (9, 6, 1, 1, 1)
PARAMS = f"""
profile: tiny
backbones: {{cnn: resnet18_half}}
threads: 2
runs: {{cnn: [supervised]}}
datasets: [{", ".join(FOLDS)}]
seeds: [0]
launch: python
data_root: nowhere
rendered: {{size: tiny}}
"""


def seven_tested(fold: int) -> list[tuple[int, int]]:
    """Five people of the first pair and two of the second; the next fold shares most of them."""
    return [(1, 1 + (fold + k) % 9) for k in range(5)] + [(2, 1 + (fold + k) % 6) for k in range(2)]


def folder(dataset: str) -> Path:
    """Where results of the run on it lie."""
    return Path(f"results/runs/supervised-{dataset}-resnet18_half-0")


def trained(dataset: str) -> Path:
    """Where its weights lie."""
    return Path(f"results/training/supervised-{dataset}-resnet18_half-0")


def command(world: TinyWorld, dataset: str, *more: str) -> list[str]:
    """Arguments that train, evaluate and cross_domain share."""
    return ["--method", "supervised", "--dataset", dataset, "--cache", str(world.cache), "--device", "cpu", *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, world: TinyWorld) -> Path:
    """Two folds of a small CUHK03, prepared, trained on for an epoch and scored, by the entry points."""
    place = tmp_path_factory.mktemp("classic")
    (place / "params.yaml").write_text(PARAMS)
    trees.cuhk_matrix(place / "CUHK03", ["detected"], PEOPLE, seven_tested)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for dataset in FOLDS:
            assert prepare.main(["--dataset", dataset, "--root", ".", "--allow-unknown-fingerprint"]) == 0
            more = ["--profile", "tiny", "--initial", str(world.initial), "--set", "schedule.epochs=1"]
            assert train.main(command(world, dataset, *more)) == 0
            assert evaluate.main(command(world, dataset)) == 0
    return place


@pytest.fixture
def here(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder as the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result(dataset: str) -> dict[str, Any]:
    return dict(json.loads((folder(dataset) / "result.json").read_text()))


def features(dataset: str, file: Path) -> dict[str, np.ndarray]:
    """What the trained run sees of query and gallery, as a feature file that any system might write."""
    record, manifest = read_train(trained(dataset)), read_manifest(Path("data") / dataset)
    run, method = load_method(record)
    method.load_state_dict(torch.load(trained(dataset) / "weights/epoch_001.pt", weights_only=True))
    method.eval().to(memory_format=torch.channels_last)
    arrays = {}
    for side in ("query", "gallery"):
        rows, size = manifest.split(side), run.config.input
        store = ImageStore(load_images(manifest, side, size.height, size.width), torch.device("cpu"))
        seen = embed_all(method, store, run.config, (record.input.mean, record.input.std), start("cpu"))
        arrays[f"{side}_features"] = seen["feature"].float().numpy()
        arrays[f"{side}_ids"] = rows["person_id"].to_numpy()
        arrays[f"{side}_cameras"] = rows["camera_id"].to_numpy()
    np.savez(file, **arrays)
    return arrays


def test_a_classic_run_is_scored_single_shot_and_has_no_map(here: Path) -> None:
    record = result(FOLDS[1])
    assert record["status"] == "ok", record["reason"]
    assert record["protocol"] == {**{"name": NAME, "version": 1, "metric": "cmc", "headline": "rank1", "folds": 20}}
    assert (record["run"]["dataset"], record["fold"], record["tested_on"]["fold"]) == (NAME, 1, 1)
    last = record["selection"]["last"]
    assert last["mAP"] is last["mAP_trapezoid"] is last["mINP"] is None
    assert 0 < last["rank1"] < last["rank5"] <= last["rank10"] == 1, "seven people are in a gallery"
    queries = pd.read_csv(folder(FOLDS[1]) / "queries.csv")
    assert len(queries) == last["valid_queries"] == 7 * 10 - 1, "one cell of the tested people is empty"
    assert queries["rank1"].mean() == pytest.approx(last["rank1"])
    np.testing.assert_allclose(100 * queries["rank1"], (100 * queries["rank1"]).round(), err_msg="100 draws")
    metrics = json.loads((folder(FOLDS[1]) / "metrics.json").read_text())
    assert (metrics["mAP"], metrics["rank1"]) == (None, last["rank1"])
    assert metrics["best_on_test"]["chosen_by"] == "rank1"
    assert read_result(folder(FOLDS[1])).ok


def test_feature_files_of_the_same_runs_get_the_same_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = [features(dataset, Path(f"{dataset}.npz")) for dataset in FOLDS]
    arguments = ["--protocol", NAME, "--out", "m.json"]
    assert evaluate.main([*arguments, "--features", f"{FOLDS[0]}.npz"]) == 0
    first, last = json.loads(Path("m.json").read_text()), result(FOLDS[0])["selection"]["last"]
    assert {key: first[key] for key in last if key != "epoch"} == {key: last[key] for key in last if key != "epoch"}
    verified = records.read_result(folder(FOLDS[0])).verification
    assert verified is not None
    same, across = (seen[0][f"query_{what}"][:, None] for what in ("ids", "cameras"))
    same, across = same == seen[0]["gallery_ids"], across != seen[0]["gallery_cameras"]
    assert (verified.same_pairs, verified.other_pairs) == ((same & across).sum(), (~same & across).sum())
    shown = json.loads((folder(FOLDS[0]) / "metrics.json").read_text())
    assert (
        {key: first[key] for key in verified.figures()}
        == verified.figures()
        == {key: shown[key] for key in verified.figures()}
    )
    assert evaluate.main([*arguments, "--features", *(f"{dataset}.npz" for dataset in FOLDS)]) == 0
    assert "2 of 20 folds: give a file for each" in capsys.readouterr().out
    both, other = json.loads(Path("m.json").read_text()), result(FOLDS[1])["selection"]["last"]
    assert both["folds"] == 2
    assert both["mAP"] is None
    assert both["rank1"] == pytest.approx((last["rank1"] + other["rank1"]) / 2)
    assert both["valid_queries"] == last["valid_queries"] + other["valid_queries"]
    table = pd.read_csv("m.queries.csv")
    assert table.groupby("fold")["rank1"].mean().tolist() == pytest.approx([last["rank1"], other["rank1"]])


def test_scoring_again_draws_the_same_galleries(
    here: Path, world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [(folder(FOLDS[0]) / name).read_bytes() for name in ("metrics.json", "queries.csv")]
    assert evaluate.main(command(world, FOLDS[0])) == 0
    assert before == [(folder(FOLDS[0]) / name).read_bytes() for name in ("metrics.json", "queries.csv")]
    assert f"supervised on {FOLDS[0]}, seed 0: no mAP under its protocol, rank-1 " in capsys.readouterr().out


def test_a_market_run_is_scored_by_the_market_rules_as_before(here: Path, world: TinyWorld) -> None:
    plain = read_manifest(world.data)
    market = Manifest(plain.table, plain.root.resolve(), "market1501", plain.fingerprint, plain.info)
    market.write(Path("data/market1501"))
    more = ["--profile", "tiny", "--initial", str(world.initial), "--set", "schedule.epochs=1"]
    assert train.main(command(world, "market1501", *more)) == 0
    assert evaluate.main(command(world, "market1501")) == 0
    record = result("market1501")
    assert record["protocol"] == {
        **{"name": "market1501", "version": 1, "metric": "cmc_and_map", "headline": "mAP", "folds": 1}
    }
    assert record["fold"] is None
    assert record["run"]["dataset"] == "market1501"
    seen = features("market1501", Path("m.npz"))
    sides = [seen[f"{side}_{what}"] for what in ("features", "ids", "cameras") for side in ("query", "gallery")]
    expected, last = evaluate_features(*sides).summary(), record["selection"]["last"]
    assert last == {"epoch": 1, **expected}
    assert record["selection"]["best_on_test"] == {**last, "chosen_by": "mAP"}


def change(dataset: str, last: dict[str, Any] | None = None, **fields: Any) -> str:
    """Alter a result and return why it is quarantined."""
    record = result(dataset)
    record["selection"]["last"] |= last or {}
    (folder(dataset) / "result.json").write_text(json.dumps({**record, **fields}))
    read = read_result(folder(dataset))
    assert read.record.status == "quarantined"
    assert read.queries is None
    return str(read.record.reason)


def test_a_missing_map_is_acceptable_under_the_single_shot_protocol_only(here: Path) -> None:
    market = {**{"name": "market1501", "version": 1, "metric": "cmc_and_map", "headline": "mAP", "folds": 1}}
    lacking = "queries.csv lacks the columns ['ap', 'first_match_rank', 'inp', 'ap_trapezoid']"
    assert lacking in change(FOLDS[0], protocol=market)
    queries = pd.read_csv(folder(FOLDS[0]) / "queries.csv").assign(
        ap=0.5, ap_trapezoid=0.5, inp=0.5, first_match_rank=1
    )
    queries.to_csv(folder(FOLDS[0]) / "queries.csv", index=False)
    assert "mAP is None, not a number from 0 to 1" in change(FOLDS[0], protocol=market)


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ({"mAP": 0.5}, "mAP is 0.5, but the protocol defines none"),
        ({"rank1": None}, "rank1 is None, not a number from 0 to 1"),
        ({"rank5": 0.0}, "rank-k does not rise with k"),
        ({"rank1": 0.001}, "rank1 is 0.001000, but queries.csv gives 0."),
        ({"valid_queries": 3}, "69 rows in queries.csv, but valid_queries is 3"),
    ],
)
def test_single_shot_results_that_contradict_themselves_are_quarantined(
    here: Path, figures: dict[str, Any], reason: str
) -> None:
    assert reason in change(FOLDS[1], figures)


def test_a_best_epoch_below_the_last_one_is_quarantined_by_rank1(here: Path) -> None:
    best = result(FOLDS[0])["selection"]["best_on_test"]
    selection = {**result(FOLDS[0])["selection"], "best_on_test": {**best, "rank1": 0.0}}
    assert "rank1 of the best epoch on test, 0.0, is worse" in change(FOLDS[0], selection=selection)


def params() -> dict[str, Any]:
    return read_params(Path("params.yaml"))


def test_the_leaderboard_averages_folds_and_says_how_many_there_were(here: Path) -> None:
    assert leaderboard.main([]) == 0
    table = pd.read_csv("results/leaderboard.csv")
    assert table["dataset"].tolist() == [NAME]
    row, records = table.iloc[0], [result(dataset)["selection"] for dataset in FOLDS]
    for name in ("rank1", "rank5", "rank10"):
        assert row[f"{name}_mean"] == pytest.approx(50 * sum(record["last"][name] for record in records))
    assert row["rank1_best_on_test_mean"] == pytest.approx(row["rank1_mean"])
    assert row["seeds"] == 1
    assert np.isnan(row["mAP_mean"])
    assert np.isnan(row["mAP_best_on_test_mean"])
    assert row["status"] == "2 of 20 folds"


def test_seeds_are_averaged_after_folds_and_a_failed_fold_is_told(here: Path) -> None:
    for dataset in FOLDS:
        record = {**result(dataset), "seed": 1}
        if dataset == FOLDS[1]:
            record |= {"status": "failed", "reason": "loss is not finite"}
        target = Path(str(folder(dataset)).removesuffix("0") + "1")
        shutil.copytree(folder(dataset), target)
        (target / "result.json").write_text(json.dumps(record))
    Path("params.yaml").write_text(PARAMS.replace("seeds: [0]", "seeds: [0, 1]"))
    leaderboard.main([])
    row = pd.read_csv("results/leaderboard.csv").iloc[0]
    first, second = (100 * result(dataset)["selection"]["last"]["rank1"] for dataset in FOLDS)
    assert row["rank1_mean"] == pytest.approx(((first + second) / 2 + first) / 2)
    assert row["seeds"] == 2
    assert row["status"] == "failed (1 of 4 runs): loss is not finite; 2 of 20 folds"


def test_all_folds_are_the_protocols_number(here: Path) -> None:
    datasets = [f"{NAME}-{fold}" for fold in range(20)]
    for fold, dataset in enumerate(datasets):
        if dataset not in FOLDS:
            shutil.copytree(folder(FOLDS[0]), folder(dataset))
            record = {**result(dataset), "fold": fold}
            (folder(dataset) / "result.json").write_text(json.dumps(record))
    Path("params.yaml").write_text(PARAMS.replace(", ".join(FOLDS), ", ".join(datasets)))
    leaderboard.main([])
    assert pd.read_csv("results/leaderboard.csv")["status"].tolist() == ["ok"]


def test_exports_print_the_ranks_and_a_dash_for_the_map(here: Path) -> None:
    leaderboard.main([])
    rank = f"{pd.read_csv('results/leaderboard.csv')['rank1_mean'][0]:.1f}"
    for rule, name in (("last", "leaderboard"), ("best_on_test", "leaderboard_best_on_test")):
        assert exports.main(["--out", "out", "--selection", rule]) == 0
        line = next(line for line in Path(f"out/{name}.tex").read_text().splitlines() if line.startswith("supervised"))
        assert line.split(" & ")[2:4] == ["--", rank]
        assert json.loads(Path(f"out/{name}.json").read_text())["rows"][0]["mAP_mean"] is None


def test_the_gate_holds_rank1_against_the_reference(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, dataset in itertools.product((1, 2), FOLDS):
        copied = folder(dataset).with_name(f"{folder(dataset).name.removesuffix('-0')}-{seed}")
        shutil.copytree(folder(dataset), copied)
        (copied / "result.json").write_text(json.dumps(result(dataset) | {"seed": seed}))
    Path("params.yaml").write_text(PARAMS.replace("seeds: [0]", "seeds: [0, 1, 2]"))
    assert verify.main(["--update"]) == 0
    assert verify.main([]) == 0
    results, expected = verify.present_results(params()), reference.read(Path("results/reference"))
    row = verify.verify(results, expected).iloc[0]
    mean = 50 * sum(result(dataset)["selection"]["last"]["rank1"] for dataset in FOLDS)
    assert (row["state"], row["note"]) == ("match", "rank-1: its protocol has no mAP")
    assert row["expected"] == row["measured"] == pytest.approx(mean)
    assert verify.verify(results, [better(one) for one in expected]).iloc[0]["state"] == "below"
    Path("params.yaml").write_text(PARAMS.replace(", ".join(FOLDS), FOLDS[0]))
    assert verify.main([]) == 0
    assert "of other data than the reference" in capsys.readouterr().out


def better(one: Result) -> Result:
    """The same result, one point of rank-1 better."""
    selection, last = one.record.selection, one.record.selection.last
    last = last.model_copy(update={"rank1": last.rank1 + 0.01})
    record = one.record.model_copy(update={"selection": selection.model_copy(update={"last": last})})
    return Result(record, one.queries, one.folder)


def test_a_published_rank1_is_compared_where_the_protocol_has_no_map(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"mAP": None, "rank1": 99.5, "rank5": None, "rank10": None, "verified": "paper", "source": "a table"}
    row = Row(dataset=NAME, variant="bound", backbone="resnet18_half", **figures)
    market = row.model_copy(update={"dataset": "market1501"})
    monkeypatch.setattr(verify, "published_rows", lambda method: (row, market) if method == "supervised" else ())
    monkeypatch.setattr(verify, "PUBLISHED_PROFILE", "tiny")
    table = verify.verify(verify.present_results(params()), [])
    assert table[["dataset", "state"]].to_numpy().tolist() == [[NAME, "below"]]


def test_runs_without_ap_are_not_compared_and_say_why(here: Path) -> None:
    results = read_results(params())
    renamed = []
    for one in results:
        names = {"method": "cluster_contrast", "variant": "sequential", "name": "cluster_contrast"}
        run = one.record.run.model_copy(update=names)
        renamed.append(type(one)(one.record.model_copy(update={"run": run}), one.queries, one.folder))
    table = compare([*results, *renamed])
    assert table["verdict"].tolist() == ["not comparable: their protocol gives a query no AP"]
    assert table["seeds"].tolist() == [1]


def test_cross_domain_averages_folds_and_leaves_out_people_that_were_trained_on(here: Path, world: TinyWorld) -> None:
    plain = read_manifest(world.data)
    Manifest(plain.table, plain.root.resolve(), "rendered", plain.fingerprint, plain.info).write(Path("data/rendered"))
    arguments = ["--cache", str(world.cache), "--device", "cpu", "--out", "out"]
    assert cross_domain.main(arguments) == 0
    cells = pd.read_csv("out/cross_domain.csv")
    other = cells[(cells["tested_on"] == NAME) & (cells["trained_fold"] != cells["tested_fold"])]
    assert len(other) == 2
    assert other["status"].str.startswith("not applicable: CUHK03's partitions divide the same people").all()
    own = cells[(cells["tested_on"] == NAME) & (cells["status"] == "ok")]
    assert own["rank1"].tolist() == pytest.approx([result(dataset)["selection"]["last"]["rank1"] for dataset in FOLDS])
    grid = pd.read_csv("out/matrix.csv")
    assert grid["trained_on"].tolist() == [NAME]
    assert grid[f"{NAME} (rank-1)"][0] == pytest.approx(100 * own["rank1"].mean())
    assert grid["rendered"][0] == pytest.approx(100 * cells[cells["tested_on"] == "rendered"]["mAP"].mean())


def test_a_run_is_not_tested_on_a_fold_whose_people_it_was_trained_on(here: Path, world: TinyWorld) -> None:
    with pytest.raises(ValueError, match="cannot be tested on cuhk03_classic_detected: CUHK03's partitions"):
        evaluate.main(command(world, FOLDS[0], "--data", f"data/{FOLDS[1]}", "--out", "elsewhere"))
    assert not Path("elsewhere").exists()


def test_results_on_other_data_do_not_overwrite_the_runs_own(here: Path, world: TinyWorld) -> None:
    before = (folder(FOLDS[0]) / "result.json").read_bytes()
    with pytest.raises(ValueError, match=r"is not what .* was trained on; pass --out"):
        evaluate.main(command(world, FOLDS[0], "--data", str(world.data)))
    assert (folder(FOLDS[0]) / "result.json").read_bytes() == before
    assert evaluate.main(command(world, FOLDS[0], "--data", str(world.data), "--out", "elsewhere")) == 0
    record = json.loads(Path("elsewhere/result.json").read_text())
    assert record["protocol"]["name"] == "rendered"
    assert record["selection"]["last"]["mAP"] > 0
    assert "audit_ari" not in pd.read_csv("elsewhere/curves.csv"), "pseudo-labels are of the training data"


def test_reranking_is_refused_where_the_gallery_is_drawn(here: Path, world: TinyWorld) -> None:
    with pytest.raises(ValueError, match="--rerank needs the whole gallery"):
        evaluate.main(command(world, FOLDS[0], "--rerank"))


def test_more_feature_files_than_folds_are_an_error(tmp_path: Path) -> None:
    arguments = ["--protocol", "market1501", "--out", str(tmp_path / "m.json")]
    with pytest.raises(ValueError, match=r"market1501 has 1 fold\(s\), 2 feature files were given"):
        evaluate.main([*arguments, "--features", "a.npz", "b.npz"])


def test_a_feature_files_fault_names_the_file_and_a_folder_is_no_output(tmp_path: Path) -> None:
    arrays = {f"{side}_{what}": np.ones(2, int) for side in ("query", "gallery") for what in ("ids", "cameras")}
    arrays |= {"query_features": np.full((2, 3), np.nan), "gallery_features": np.ones((2, 3))}
    np.savez(tmp_path / "f.npz", **arrays)
    arguments = ["--protocol", "market1501", "--features", str(tmp_path / "f.npz")]
    with pytest.raises(ValueError, match=r"f\.npz: query_features holds NaN"):
        evaluate.main([*arguments, "--out", str(tmp_path / "m.json")])
    with pytest.raises(ValueError, match="is a folder"):
        evaluate.main([*arguments, "--out", str(tmp_path)])


def test_a_dataset_of_no_known_name_has_no_protocol() -> None:
    with pytest.raises(datasets.DatasetError, match=r"unknown dataset 'marked1501'; did you mean 'market1501'"):
        datasets.protocol_of("marked1501")
