"""The lists that the report shows are the ranking that was scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.manifest import read_manifest
from pipeline import evaluate, nearest, train
from pipeline.jobs import Job
from pipeline.records import read_nearest
from tests.conftest import TinyWorld

PARAMS = """
profile: tiny
backbones: {cnn: resnet18_half}
threads: 2
runs: {cnn: [warm_start]}
datasets: [rendered]
seeds: [0]
launch: python
data_root: nowhere
rendered: {size: tiny}
"""
JOB = Job("warm_start", "rendered", "resnet18_half", 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: TinyWorld) -> Path:
    """A working directory with one job trained and tested."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS)
    Path("data").mkdir()
    Path("data/rendered").symlink_to(world.data)
    assert train.main(world.train_arguments(JOB.run, JOB.trained)) == 0
    assert evaluate.main(world.evaluate_arguments(JOB.run, JOB.trained, JOB.evaluated)) == 0
    return tmp_path


def test_lists_hold_each_query_s_first_match_where_the_scores_put_it_and_are_made_once(
    here: Path, world: TinyWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--cache", str(world.cache), "--device", "cpu"]
    assert nearest.main(command) == 0
    made = read_nearest(JOB.nearest)
    manifest = read_manifest(world.data)
    query, gallery = manifest.split("query"), manifest.split("gallery")
    assert len(made.lists) == len(query)
    scored = pd.read_csv(JOB.evaluated / "queries.csv").set_index("query")
    for row, listed in enumerate(made.lists):
        person, camera = query.loc[row, ["person_id", "camera_id"]]
        shown = gallery.loc[list(listed)]
        counted = shown[~((shown["person_id"] == person) & (shown["camera_id"] == camera))]
        right = (counted["person_id"] == person).to_numpy()
        first = scored.loc[row, "first_match_rank"]
        assert (right.argmax() + 1 == first) if right.any() else first > len(right)
    capsys.readouterr()
    assert nearest.main(command) == 0
    assert "0 runs" in capsys.readouterr().out


def test_camera_pairs_count_the_queries_whose_nearest_image_of_the_other_camera_is_right() -> None:
    rng = np.random.default_rng(0)
    people, cameras = (
        [rng.integers(1, 6, count) for count in (30, 80)],
        [rng.integers(1, 4, count) for count in (30, 80)],
    )
    distance = rng.random((30, 80))
    lists, hits, asked = nearest.rank(lambda rows: distance[rows], people[0], people[1], cameras[0], cameras[1])
    assert (lists == np.argsort(distance, axis=1)[:, : nearest.NEAREST]).all()
    for a in (1, 2, 3):
        for b in (1, 2, 3):
            found, told = 0, 0
            for q in range(30):
                there = [g for g in range(80) if cameras[1][g] == b]
                if cameras[0][q] != a or a == b or people[0][q] not in people[1][there]:
                    continue
                told += 1
                found += people[1][min(there, key=lambda g: distance[q, g])] == people[0][q]
            assert (hits[a - 1, b - 1], asked[a - 1, b - 1]) == (found, told)
