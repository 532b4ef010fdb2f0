"""Train on A, test on B: the matrix over two tiny worlds."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import methods
from core.config import Config
from core.data import Needs
from core.errors import UserError
from core.manifest import Manifest, read_manifest
from pipeline import cross_domain, evaluate, prepare, train
from tests.conftest import TinyWorld

PARAMS = """
profile: tiny
backbones: {cnn: resnet18_half}
threads: 2
runs: {cnn: [warm_start, cluster_contrast]}
datasets: [first, second]
seeds: [0]
launch: python
data_root: nowhere
rendered: {size: tiny}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, world: TinyWorld) -> Path:
    """A folder with two worlds, `warm_start` trained on both and `cluster_contrast` on the first."""
    folder = tmp_path_factory.mktemp("domains")
    (folder / "params.yaml").write_text(PARAMS)
    manifest = read_manifest(world.data)
    first = Manifest(manifest.table, manifest.root.resolve(), manifest.name, manifest.fingerprint, manifest.info)
    first.write(folder / "data/first")
    arguments = ["--dataset", "rendered", "--size", "tiny", "--world", "2", "--out", str(folder / "data/second")]
    assert prepare.main(arguments) == 0
    for method, dataset in (("warm_start", "first"), ("warm_start", "second"), ("cluster_contrast", "first")):
        trained = folder / "results/training" / f"{method}-{dataset}-resnet18_half-0"
        more = ("--dataset", dataset, "--data", str(folder / "data" / dataset), "--params", str(folder / "params.yaml"))
        assert train.main(world.train_arguments(method, trained, *more)) == 0
    return folder


@pytest.fixture(scope="module")
def tested(made: Path, world: TinyWorld) -> tuple[pd.DataFrame, str]:
    """The whole matrix, once, and what was printed to stderr."""
    errors = io.StringIO()
    with contextlib.chdir(made), contextlib.redirect_stderr(errors):
        return run(world, "params.yaml"), errors.getvalue()


@pytest.fixture
def here(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder as the working directory, and `one.yaml` that lists one trained run."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    one = PARAMS.replace("[warm_start, cluster_contrast]", "[cluster_contrast]").replace("[first, second]", "[first]")
    Path("one.yaml").write_text(one)
    return tmp_path


def run(world: TinyWorld, params: str) -> pd.DataFrame:
    arguments = ["--params", params, "--cache", str(world.cache), "--device", "cpu", "--out", "out"]
    assert cross_domain.main(arguments) == 0
    return pd.read_csv("out/cross_domain.csv")


def test_every_trained_run_is_tested_on_every_prepared_dataset(made: Path, tested: tuple[pd.DataFrame, str]) -> None:
    cells, errors = tested
    assert len(cells) == 3 * 2
    assert set(cells["status"]) == {"ok"}
    assert set(cells["selection"]) == {"last"}
    assert cells["mAP"].between(0, 1, inclusive="neither").all()
    assert "left out, not trained: results/training/cluster_contrast-second-resnet18_half-0" in errors
    assert len(set(cells["tested_data"])) == 2


def test_the_matrix_has_a_row_per_training_and_a_column_per_test_dataset(
    made: Path, tested: tuple[pd.DataFrame, str]
) -> None:
    grid = pd.read_csv(made / "out/matrix.csv").set_index(["method", "trained_on"])
    assert list(grid.columns) == ["variant", "backbone", "profile", "selection", "first", "second"]
    assert len(grid) == 3
    warm = grid.loc["warm_start", ["first", "second"]].astype(float)
    assert warm.loc["first"].tolist() == warm.loc["second"].tolist(), "both start from the same weights"
    assert warm.loc["first", "first"] != warm.loc["first", "second"]
    assert "trained on" in (made / "out/matrix.md").read_text()


def test_cells_are_means_over_seeds_in_percent() -> None:
    rows = [("first", 0, 0.25), ("first", 1, 0.75), ("second", 0, 0.5), ("second", 1, None), ("third", 0, None)]
    run = {"method": "hhcl", "variant": "paper", "backbone": "resnet50", "profile": "tiny", "trained_on": "first"}
    figures = {"rank1": 0.9, "headline": "mAP", "selection": "last"}
    cells = pd.DataFrame([{**run, "tested_on": on, "seed": seed, **figures, "mAP": score} for on, seed, score in rows])
    grid = cross_domain.matrix(cells)
    assert grid.loc[0, ["first", "second"]].tolist() == [50, 50]
    assert cross_domain.markdown(grid).splitlines()[-1].endswith("| 50.0    | 50.0     | -       |")


def test_the_diagonal_is_what_evaluate_says(here: Path, world: TinyWorld, tested: tuple[pd.DataFrame, str]) -> None:
    cells, _ = tested
    trained = Path("results/training/cluster_contrast-first-resnet18_half-0")
    evaluate.main(world.evaluate_arguments("cluster_contrast", trained, here / "scored", "--params", "params.yaml"))
    last = json.loads((here / "scored/result.json").read_text())["selection"]["last"]
    cell = cells[(cells["method"] == "cluster_contrast") & (cells["tested_on"] == "first")].iloc[0]
    assert cell["mAP"] == pytest.approx(last["mAP"], abs=1e-12)
    assert cell["epoch"] == last["epoch"] == 2


def test_a_failed_run_is_a_row_that_says_so(here: Path, world: TinyWorld) -> None:
    file = Path("results/training/cluster_contrast-first-resnet18_half-0/train.json")
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "status": "failed", "reason": "loss is not finite"}))
    cells = run(world, "one.yaml")
    assert list(cells["status"]) == ["failed: loss is not finite"] * 2
    assert cells["mAP"].isna().all()


def test_a_method_that_tests_with_cameras_stays_on_its_own_dataset(
    here: Path, world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = methods.load("cluster_contrast")
    plain = kind.needs

    def seeing(config: Config) -> Needs:
        return dataclasses.replace(plain(config), cameras=frozenset({"test"}))

    monkeypatch.setattr(kind, "needs", seeing)
    cells = run(world, "one.yaml").set_index("tested_on")
    assert cells.loc["first", "status"] == "ok"
    assert cells.loc["second", "status"].startswith("not applicable")


def test_any_checkpoint_can_be_tested_once_and_epochs_stay_apart(here: Path, world: TinyWorld) -> None:
    moved = shutil.move("results/training/cluster_contrast-first-resnet18_half-0", "my run")
    arguments = ["--cache", str(world.cache), "--device", "cpu", "--out", "out"]
    weights = [f"{moved}/weights/epoch_001.pt", f"{moved}/weights/epoch_002.pt"]
    assert cross_domain.main([*arguments, "--trained", *weights, moved, moved]) == 0
    cells = pd.read_csv("out/cross_domain.csv")
    assert cells["selection"].tolist() == ["epoch_001", "epoch_001", "epoch_002", "epoch_002", "last", "last"]
    assert cells["epoch"].tolist() == [1, 1, 2, 2, 2, 2]
    assert cells["mAP"][2:4].tolist() == cells["mAP"][4:6].tolist()
    assert cells["mAP"][0] != cells["mAP"][2]
    assert pd.read_csv("out/matrix.csv")["selection"].tolist() == ["epoch_001", "epoch_002", "last"]
    with pytest.raises(UserError, match="nowhere holds no trained run"):
        cross_domain.main([*arguments, "--trained", "nowhere"])


def test_nothing_trained_or_nothing_prepared_says_what_to_run(here: Path) -> None:
    Path("empty.yaml").write_text(PARAMS.replace("seeds: [0]", "seeds: [7]"))
    with pytest.raises(UserError, match=r"no trained run.*pipeline\.train"):
        cross_domain.main(["--params", "empty.yaml"])
    with pytest.raises(UserError, match=r"no dataset with query and gallery in nowhere"):
        cross_domain.main(["--data", "nowhere"])
