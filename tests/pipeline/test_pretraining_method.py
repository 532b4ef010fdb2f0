"""Pre-training by a method: what it hands on, and the run that goes on from there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import methods
from core.backbones.net import BACKBONES
from core.errors import UserError
from pipeline import configure, evaluate, pretrain, sweep, train
from pipeline.cli import read_params_file
from pipeline.jobs import Job
from reports import leaderboard
from tests.replay.networks import NETWORKS
from tests.replay.people import write_dataset

CODE = """
from dataclasses import dataclass

import numpy as np

from core.data import Labels, Needs
from core.method import Method
from core.teacher import Teacher


@dataclass(frozen=True)
class Settings:
    scratch: bool = False


class Averaging(Method):
    Settings = Settings
    exports = "teacher.network."

    def __init__(self, config, embedder, capacity):
        super().__init__(config, embedder, capacity)
        self.teacher = Teacher(embedder, only_evaluates=True)

    def weights_loaded(self):
        self.teacher.reset(self.embedder)

    @classmethod
    def needs(cls, config):
        return Needs(trains_on="train+source", initial=not config.settings.scratch)

    def label(self, epoch, data):
        return Labels(np.arange(len(data)))

    def batches(self, labels, data, rng):
        return rng.permutation(len(data))[:80].reshape(5, 16)

    def loss(self, output, batch):
        return {"apart": (output["feature"] @ output["feature"].T).square().mean()}

    def after_step(self, output, batch):
        self.teacher.follow(self.embedder, 0.5)
"""
CONFIG = {
    "finetune": "cluster_contrast-no_cam",
    "sampler": {"uses_camera": False},
    "variants": {"continued": {}, "scratch": {"settings": {"scratch": True}}},
}
PARAMS = {
    "profile": "tiny",
    "datasets": ["rendered-0"],
    "backbones": {"cnn": "replay_cnn"},
    "runs": {"cnn": ["warm_start"]},
    "pretrainings": {"cnn": ["averaging-continued", "averaging-scratch"]},
    "seeds": [0],
    "threads": 1,
    "rendered": {"size": "tiny"},
    "launch": "python",
    "data_root": "nowhere",
    "overrides": {"input": {"height": 32, "width": 16}, "clustering": {"k1": 6, "eps": 0.7, "min_samples": 2}},
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawn people and their warm start, and among the suite's methods one that pre-trains."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        mine = folder / "methods/averaging"
        mine.mkdir(parents=True)
        (mine / "method.py").write_text(CODE)
        (mine / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        for name in ("warm_start", "supervised", "cluster_contrast", "oriented_kd_ssl"):  # the profile names the last
            (folder / "methods" / name).symlink_to(methods.HERE / name)
        patch.setattr(methods, "__path__", [*methods.__path__, str(folder / "methods")])
        patch.setattr(methods, "HERE", folder / "methods")
        patch.delitem(sys.modules, "methods.averaging.method", raising=False)
        for name, make in NETWORKS.items():
            patch.setitem(BACKBONES, name, make)
        patch.chdir(folder)
        write_dataset(folder / "data/rendered-0", seed=0).write(folder / "data/rendered-0")
        (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
        assert pretrain.main(where()) == 0
        yield folder


def where(run: str | None = None) -> list[str]:
    named = ["--method", run] if run else []
    return [*named, "--dataset", "rendered-0", "--backbone", "replay_cnn", "--device", "cpu", "--threads", "1"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "weights.pt", weights_only=True)
    return found


def test_a_method_hands_on_what_it_exports_and_its_row_is_the_fine_tuning_from_there(here: Path) -> None:
    warm = here / "initial/rendered-0-replay_cnn-0"
    for variant in ("continued", "scratch"):
        run = f"averaging-{variant}"
        with pytest.raises(UserError, match=f"run `python -m pipeline pretrain --method {run}"):
            train.main(where(run))
        assert pretrain.main(where(run)) == 0
        made = warm.with_name(f"{warm.name}-{run}")
        record = json.loads((made / "initial.json").read_text())
        assert record["images_seen"] == 2 * 3 * 16
        start = "rendered source, labelled" if variant == "continued" else "random"
        assert record["source"] == f"{run} on rendered train+source (from {start})"
        trained = json.loads((made / "pretraining/train.json").read_text())
        assert trained["capacity"] == 58 + 24, "images of both splits"
        assert weights(made).keys() == weights(warm).keys()
        assert not torch.equal(weights(made)["backbone.conv1.weight"], weights(warm)["backbone.conv1.weight"])
        assert train.main(where(run)) == 0
        assert evaluate.main([*where(run)[:6], "--device", "cpu", "--threads", "1"]) == 0
        result = json.loads((here / f"results/runs/{run}-rendered-0-replay_cnn-0/result.json").read_text())
        assert result["run"]["finetuned_by"] == "cluster_contrast"
        assert result["needs"]["cameras"] == [], "the fine-tuning's variant"
        assert result["initial"] == {"source": record["source"], "sha256": record["sha256"], "images_seen": 96}
    params = read_params_file(here / "params.yaml")
    jobs = [Job(run, "rendered-0", "replay_cnn", 0) for run in PARAMS["pretrainings"]["cnn"]]
    machine = sweep.Machine(1, "cpu", 1, here / "params.yaml", "tiny")
    assert [sweep.job_steps(job, params, machine) for job in jobs] == [[], []], "a sweep finds what the verbs left"
    assert sweep.pretrainings(jobs, machine) == {}
    (here / "initial/rendered-0-replay_cnn-0-averaging-scratch/initial.json").unlink()
    assert list(sweep.pretrainings(jobs, machine)) == ["pretrain-averaging-scratch-rendered-0-replay_cnn-0"]
    assert configure.main([]) == 0
    own, tuned = (
        json.loads((here / f"results/configs/{name}averaging-scratch-rendered-0-replay_cnn.json").read_text())
        for name in ("pretrain-", "")
    )
    assert (own["config"]["settings"], own["finetuned_by"]) == ({"scratch": True}, None)
    assert "momentum" in tuned["config"]["settings"]
    assert leaderboard.main([]) == 0
    table = pd.read_csv(here / "results/leaderboard.csv").set_index("variant")
    assert table["method"].eq("averaging").sum() == 2
    assert table.loc["continued", "pretraining_images_seen"] == 96
    assert table.loc["continued", "images_seen"] == 96
    assert table.loc["continued", "mAP_mean"] > 0
    assert "pre-training images seen" in (here / "results/leaderboard.md").read_text()


def test_a_method_that_names_no_fine_tuning_is_refused(here: Path) -> None:
    with pytest.raises(UserError, match=r"cluster_contrast pre-trains nothing.*no `finetune`"):
        pretrain.main(where("cluster_contrast"))
