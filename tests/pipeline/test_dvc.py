"""The real pipeline, as a user runs it: `dvc repro` in a fresh clone, on the tiny rendered dataset."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.jobs import ROOT
from reports.table import COLUMNS

PARAMS = {
    "profile": "tiny",
    "datasets": ["rendered-1"],
    "runs": {"cnn": ["warm_start", "cluster_contrast", "hhcl"], "vit": ["cluster_contrast"]},
    "seeds": [0],
    "rendered": {"size": "tiny"},
}


class Clone:
    """A clone of the working tree with small parameters, in which DVC runs as it does for a user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = self._git("ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and not name.startswith("results/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        self.set_params(**PARAMS)
        self._git("init", "-q")
        self._git("add", "-A")
        self._git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "clone")

    def _git(self, *arguments: str, cwd: Path | None = None) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=cwd or self.folder, check=True, capture_output=True, text=True)
        return done.stdout

    def set_params(self, **changes: object) -> None:
        params = yaml.safe_load((self.folder / "params.yaml").read_text())
        (self.folder / "params.yaml").write_text(yaml.safe_dump({**params, **changes}, sort_keys=False))

    def dvc(self, *arguments: str) -> str:
        return self.run("-m", "dvc", *arguments)

    def run(self, *arguments: str) -> str:
        # Byte code must be written as for any user: a __pycache__ that counted as a change would rerun everything.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self) -> set[str]:
        """Names of the stages that ran."""
        lines = self.dvc("repro").splitlines()
        return {line.split("'")[1] for line in lines if line.startswith("Running stage")}


STARTS = {"pretrain_cnn@rendered-1-0", "pretrain_vit@rendered-1-0"}


def run_stages(seed: int) -> set[str]:
    """Training and evaluation of every run of every backbone kind."""
    runs = [(kind, run) for kind, listed in PARAMS["runs"].items() for run in listed]
    return {f"{stage}_{kind}@{run}-rendered-1-{seed}" for stage in ("train", "evaluate") for kind, run in runs}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = Clone(tmp_path_factory.mktemp("clone"))
    made.ran_first = made.repro()
    return made


@pytest.mark.slow
def test_a_fresh_clone_really_trains_and_fills_the_leaderboard(clone: Clone) -> None:
    assert clone.ran_first == {"prepare@rendered-1", "configure", "leaderboard", "report"} | STARTS | run_stages(seed=0)
    table = pd.read_csv(clone.folder / "results/leaderboard.csv")
    assert list(table.columns[: len(COLUMNS)]) == COLUMNS
    assert list(zip(table["backbone"], table["method"], strict=True)) == [
        ("resnet18_half", "warm_start"),
        ("resnet18_half", "cluster_contrast"),
        ("resnet18_half", "hhcl"),
        ("vit_tiny6_ics", "cluster_contrast"),
    ]
    assert (table["status"] == "ok").all()
    assert table["published_mAP"].isna().all(), "no paper published a number on rendered people"
    assert (clone.folder / "data/rendered-1/contact_sheet.png").is_file()
    page = (clone.folder / "results/report.html").read_text()
    assert page.count("data-state") == 4
    assert page.count('class="missing"') == 3, "every panel but those of ablations, outside systems and real people"


@pytest.mark.slow
def test_a_result_says_what_produced_it(clone: Clone) -> None:
    result = json.loads((clone.folder / "results/runs/hhcl-rendered-1-resnet18_half-0/result.json").read_text())
    manifest = json.loads((clone.folder / "data/rendered-1/dataset.json").read_text())
    assert result["data"]["fingerprint"] == manifest["fingerprint"]
    assert result["initial"]["source"] == "rendered source, labelled"
    assert len(result["initial"]["sha256"]) == 64
    assert result["provenance"]["dirty"] is False
    assert len(result["provenance"]["commit"]) == 40
    assert result["provenance"]["threads"] == 1
    assert result["run"]["config"]["schedule"]["epochs"] == 2
    assert {"extract", "jaccard", "cluster", "train"} <= set(result["cost"]["seconds"])
    assert result["cost"]["images_seen"] == 96
    assert result["cost"]["peak_host_bytes"] > 0


@pytest.mark.slow
def test_a_second_repro_runs_nothing(clone: Clone) -> None:
    assert any(clone.folder.rglob("__pycache__")), "byte code is there to be ignored"
    assert clone.repro() == set()


@pytest.mark.slow
def test_dvc_shows_two_figures_of_every_run_and_one_chart_of_all(clone: Clone) -> None:
    shown = json.loads(clone.dvc("metrics", "show", "--json"))[""]["data"]
    assert list(shown) == ["results/summary.json"]
    figures = shown["results/summary.json"]["data"]
    assert len(figures) == 4
    assert all(set(run) == {"mAP", "rank1"} and 0 < run["mAP"] <= 1 for run in figures.values())
    clone.dvc("plots", "show", "-o", "plots_page")
    page = (clone.folder / "plots_page/index.html").read_text()
    assert page.count("vega.github.io/schema") == 1
    assert all(f'"run": "{name}"' in page for name in figures)


@pytest.mark.slow
def test_weights_lie_on_disk_once_and_a_run_by_hand_leaves_dvcs_copy_alone(clone: Clone) -> None:
    trained = clone.folder / "results/training/hhcl-rendered-1-resnet18_half-0"
    kept = sorted((trained / "weights").glob("*.pt"))
    assert kept
    assert all(file.stat().st_nlink == 2 or file.is_symlink() for file in kept), "the other link is DVC's cache"
    environment = {**os.environ, "PYTHONPATH": ""}
    for verb in ("prepare --dataset rendered-1 --size tiny", "train --method hhcl --dataset rendered-1 --seed 0"):
        command = [sys.executable, "-m", "pipeline", *verb.split()]
        subprocess.run(command, cwd=clone.folder, env=environment, check=True, capture_output=True)
    cached = [path for path in (clone.folder / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert len(cached) > len(kept)
    for path in cached:
        found = hashlib.md5(path.read_bytes()).hexdigest()
        assert path.parent.name + path.name.removesuffix(".dir") == found, path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("touched", "stale"),
    [
        ("reports/statistics.py", {"leaderboard", "report"}),
        ("evaluation/ranking.py", {name for name in run_stages(seed=0) if name.startswith("evaluate")}),
        ("pipeline/assemble.py", {name for name in run_stages(seed=0) if name.startswith("train")} | STARTS),
        ("methods/hhcl/method.py", {"train_cnn@hhcl-rendered-1-0", "leaderboard", "report"}),
    ],
)
def test_a_change_makes_the_stages_of_its_room_stale(touched: str, stale: set[str], clone: Clone) -> None:
    clone.repro()  # a run by hand, in a test above, is no longer what the stage wrote
    file = clone.folder / touched
    text = file.read_text()
    file.write_text(text + "\n# one comment more\n")
    clone.dvc("repro", "configure")
    assert set(json.loads(clone.dvc("status", "--json"))) == stale
    file.write_text(text)
    clone.dvc("repro", "configure")


@pytest.mark.slow
def test_changing_one_method_reruns_that_method_alone(clone: Clone) -> None:
    config = clone.folder / "methods/hhcl/config.yaml"
    config.write_text(config.read_text().replace("temperature: 0.05", "temperature: 0.06"))
    hhcl = {"train_cnn@hhcl-rendered-1-0", "evaluate_cnn@hhcl-rendered-1-0"}
    assert clone.repro() == {"configure", *hhcl, "leaderboard", "report"}


@pytest.mark.slow
def test_adding_a_seed_leaves_finished_runs_alone_and_dvc_finds_those_of_a_sweep_done(clone: Clone) -> None:
    clone.set_params(seeds=[0, 1])
    starts = {name.removesuffix("-0") + "-1" for name in STARTS}  # a replicate has a warm start of its own
    new = run_stages(seed=1) | starts
    assert new <= set(json.loads(clone.dvc("status", "--json"))) <= new | {"leaderboard", "report"}
    finished = list((clone.folder / "results").glob("*/*-0/*.json"))
    before = {file: file.stat().st_mtime_ns for file in finished}
    clone.run("-m", "pipeline", "sweep", "--jobs", "2", "--dvc")
    assert len(before) > 10
    assert {file: file.stat().st_mtime_ns for file in finished} == before
    assert clone.repro() == {"leaderboard", "report"}
    kept = list(clone.folder.glob("results/training/hhcl-rendered-1-resnet18_half-1/weights/*.pt"))
    assert kept
    assert all(file.stat().st_nlink == 2 or file.is_symlink() for file in kept), "the other link is DVC's cache"
    table = pd.read_csv(clone.folder / "results/leaderboard.csv")
    assert set(table["seeds"]) == {2}
    assert table["mAP_sd"].isna().all(), "seeds of one world do not say what other worlds would do"


@pytest.mark.slow
def test_the_experiment_of_the_page_how_to_reaches_the_settings_of_every_run(clone: Clone) -> None:
    change = re.search(r"`dvc exp run -S (\S+)`", (ROOT / "docs/how_to.md").read_text())
    assert change
    assert change[1].startswith("+overrides.clustering.eps=")
    clone.dvc("exp", "run", "-S", change[1], "configure")
    written = json.loads((clone.folder / "results/configs/hhcl-rendered-1-resnet18_half.json").read_text())
    assert written["config"]["clustering"]["eps"] == float(change[1].split("=")[1])


def test_a_listed_translator_is_a_stage_whose_output_holds_generator_and_sheet(clone: Clone) -> None:
    clone.set_params(translators=["rendered-1"])
    try:
        told = clone.dvc("repro", "--dry", "translate@rendered-1")
    finally:
        clone.set_params(translators=[])
    command = next(line for line in told.splitlines() if "pipeline.translate" in line)
    assert "--dataset 'rendered-1'" in command
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["translate"]["do"]
    assert stage["outs"] == [(Path("styles") / "${item}").as_posix()]


def test_what_params_yaml_names_reaches_the_shell_as_one_word() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert len(stages) > 5
    for stage in stages.values():
        commands = stage.get("do", stage)["cmd"]
        written = " ; ".join([commands] if isinstance(commands, str) else commands).replace("${launch}", "python")
        used = re.findall(r"\$\{[^}]+\}", written)
        hostile = re.sub(r"\$\{[^}]+\}", "a b; $(touch x)", written)
        words = shlex.split(hostile, comments=False)
        assert sum(word.count("a b; $(touch x)") for word in words) == len(used), written
