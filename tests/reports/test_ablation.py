"""Ablations and sweeps: every row of every method really trains on tiny, and what is current is not trained again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import methods
from core.config import ConfigError
from core.validation import read
from pipeline import ablation, sweep
from pipeline.jobs import Job, jobs
from pipeline.layers import method_config
from pipeline.params import Params
from pipeline.processes import Step
from pipeline.settings import ablation_rows, row_name
from pipeline.worker import run_steps
from reports import ablation as tables
from tests.conftest import TinyWorld
from tests.reports.synthetic import write_result

ABLATED = [name for name in methods.available() if method_config(name).get("ablations")]
PARAMS = {
    "profile": "tiny",
    "datasets": ["rendered"],
    "backbones": {"cnn": "resnet18_half", "vit": "vit_tiny6_ics"},
    "runs": {"cnn": ["warm_start", "hhcl"], "vit": ["vitc_ureid", "sdft"]},
    "seeds": [0],
    "threads": 1,
    "rendered": {"size": "tiny"},
    "data_root": "nowhere",
    "launch": "python",
}


# Rows that images of 64 x 32 or batches of 16 cannot hold; the commands say so.
TOO_LARGE = {"sdft": ("stripes_8",), "selective_contrastive": ("batch32",)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, world: TinyWorld) -> Path:
    """A working directory with the tiny dataset, its warm start and a params.yaml."""
    folder = tmp_path_factory.mktemp("ablations")
    (folder / "data").mkdir()
    (folder / "initial").mkdir()
    (folder / "data/rendered").symlink_to(world.data)
    for backbone in PARAMS["backbones"].values():
        (folder / f"initial/rendered-{backbone}-0").symlink_to(world.initial_of(backbone))
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return folder


def in_this_process(work: Mapping[str, Sequence[Step]], parallel: int, device: str) -> dict[str, str]:
    """What the sweep's processes do, without importing torch for every second of work."""
    failed = {name: run_steps(steps) for name, steps in work.items()}
    return {name: f"exit status {code}" for name, code in failed.items() if code}


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory as the working one; jobs run in this process (those of processes: tests/pipeline/test_sweep.py)."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sweep, "run_all", in_this_process)
    yield place
    # The weights of all rows are gigabytes; whether a result is current does not depend on them.
    shutil.rmtree(place / "results/training", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ABLATED)
def test_every_ablation_row_of_a_method_trains_and_is_tabled_against_the_full_method(method: str, here: Path) -> None:
    """Two or three rows of each method; all with WHOLE_ABLATIONS set, as `make torture` has it."""
    rows = [row for row in method_config(method)["ablations"] if row not in TOO_LARGE.get(method, ())]
    rows = rows if os.environ.get("WHOLE_ABLATIONS") else rows[:: max(1, len(rows) // 2)]
    assert ablation.main(["--method", method, "--rows", *rows, "--jobs", "2", "--device", "cpu"]) == 0
    table = pd.read_csv(here / f"results/ablations/{method}.csv").set_index("row")
    assert list(table.index) == ["full", *rows]
    assert (table["status"] == "ok").all()
    assert table["mAP_mean"].between(0, 100, inclusive="neither").all()
    others = table.drop("full")
    expected = others["mAP_mean"] - table.loc["full", "mAP_mean"]
    np.testing.assert_allclose(others["difference"], expected, atol=1e-9)
    assert set(others["verdict"]) == {"one world"}


@pytest.mark.slow
def test_a_job_is_trained_again_only_when_what_made_it_changes(here: Path) -> None:
    arguments = ["--method", "hhcl", "--rows", "hard_only", "--device", "cpu"]
    job = Job("hhcl-hard_only", "rendered", "resnet18_half", 0)
    train, evaluate = here / job.trained / "train.json", here / job.evaluated / "result.json"
    shutil.rmtree(evaluate.parent, ignore_errors=True)  # a test above may have left it, without its weights
    assert ablation.main(arguments) == 0
    trained, scored = train.stat().st_mtime_ns, evaluate.stat().st_mtime_ns
    assert ablation.main(arguments) == 0
    assert (train.stat().st_mtime_ns, evaluate.stat().st_mtime_ns) == (trained, scored)
    alter(evaluate, scoring="another evaluation")
    assert ablation.main(arguments) == 0
    assert json.loads(evaluate.read_text())["scoring"] != "another evaluation"
    assert train.stat().st_mtime_ns == trained, "a change of what scores trains nothing"
    alter(evaluate, key="another run")
    alter(train, key="another run")
    assert ablation.main(arguments) == 0
    assert train.stat().st_mtime_ns != trained


def alter(file: Path, **changes: str) -> None:
    """Change what a record says of how it was made."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_difference_is_paired_by_query_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    people = np.repeat(np.arange(20), 8)
    ap = np.random.default_rng(0).uniform(0.3, 0.7, len(people))
    for seed in (0, 1, 2):
        write_result("hhcl", seed, ap + 0.01 * seed, people)
        write_result("hhcl-hard_only", seed, ap + 0.01 * seed - 0.1, people)
    rows = ablation_rows("hhcl", ["hard_only"])
    wanted = {row: [Job(row_name("hhcl", row), "rendered", "resnet18_half", s) for s in range(3)] for row in rows}
    table = tables.ablation("hhcl", rows, tables.read_rows(wanted)).set_index("row")
    only = table.loc["hard_only"]
    assert only["difference"] == pytest.approx(-10)
    assert only["verdict"] == "worse"
    assert only["changes"] == "settings.w_hard=1.0, settings.w_mean=0.0"
    assert pd.isna(table.loc["full", "difference"])


def test_jobs_are_every_run_of_every_kind_with_every_seed() -> None:
    listed = jobs(read(Params, {**PARAMS, "seeds": [0, 1]}, "params.yaml"))
    assert len(listed) == 4 * 2
    assert Job("sdft", "rendered", "vit_tiny6_ics", 1) in listed
    assert listed[0].evaluated == Path("results/runs/warm_start-rendered-resnet18_half-0")


def test_an_unknown_row_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown ablation row 'hardonly'; did you mean 'hard_only'"):
        ablation_rows("hhcl", ["hardonly"])


def test_a_row_that_the_profile_hides_says_by_which_key() -> None:
    params = read(Params, PARAMS, "params.yaml")
    reason = ablation.hidden("selective_contrastive-batch32", "rendered", params, "resnet18_half")
    assert reason is not None
    assert "sets sampler.identities to 32, but profiles/tiny.yaml sets it to 4" in reason
    assert ablation.hidden("selective_contrastive", "rendered", params, "resnet18_half") is None
