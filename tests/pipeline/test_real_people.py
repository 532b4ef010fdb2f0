"""params.cuhk03.yaml: every run of it resolves and builds, and its settings were chosen without test people."""

from __future__ import annotations

import pandas as pd
import pytest

import methods
from benchmarks.real_people import held_out
from core.manifest import Manifest
from core.rng import Streams
from pipeline.assemble import Sizes, build_method
from pipeline.jobs import ROOT, jobs
from pipeline.params import read_params
from pipeline.settings import resolve_run

PARAMS = read_params(ROOT / "params.cuhk03.yaml")


@pytest.mark.parametrize("name", PARAMS.runs["cnn"])
def test_every_run_builds_on_its_network_under_the_one_recipe(name: str) -> None:
    run = resolve_run(name, PARAMS.datasets[0], PARAMS.profile, PARAMS.overrides, backbone=PARAMS.backbones["cnn"])
    needs = methods.load(run.trains).needs(run.config)
    build_method(run, Sizes(6, 5) if needs.source else Sizes(6), Streams(0), None)
    assert (run.config.input.height, run.config.input.width, run.config.sampler.batch) == (128, 64, 64)
    assert run.config.schedule.epochs == (0 if name == "warm_start" else 10)


def test_runs_that_need_a_labelled_source_are_asked_for_only_where_there_is_one() -> None:
    for job in jobs(PARAMS):
        run = resolve_run(job.run, job.dataset, PARAMS.profile, backbone=job.backbone)
        needs = methods.load(run.trains).needs(run.config)
        assert "-from-" in job.dataset or not (needs.source or needs.trains_on != "train"), job.name


def test_settings_are_chosen_on_training_people_of_whom_none_is_trained_and_tested() -> None:
    rows = [("train", person, camera) for person in (1, 2, 3) for camera in (1, 1, 2)]
    rows += [("query", 8, 1), ("gallery", 8, 2), ("source", 9, 3)]
    table = pd.DataFrame(rows, columns=["split", "person_id", "camera_id"]).assign(path="x.jpg")
    chosen = held_out(Manifest(table, ROOT, "cuhk03np_detected", "0" * 64), 1).table
    people = {split: sorted(set(part["person_id"])) for split, part in chosen.groupby("split")}
    assert people == {"train": [1, 2], "query": [3], "gallery": [3], "source": [9]}
    assert (chosen["split"] == "query").sum() == 2
