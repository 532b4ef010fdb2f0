"""Systems from outside are scored on the suite's own images and compared with its rows by the same models."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import ttest_1samp

from core.errors import UserError
from core.manifest import Manifest, read_manifest
from core.validation import RecordError
from evaluation import protocol as protocols
from evaluation.score import evaluate_feature_file
from pipeline import external
from pipeline.cli import VERBS
from pipeline.jobs import ROOT
from pipeline.params import read_params
from reports import leaderboard, report
from tests.conftest import TinyWorld
from tests.reports.synthetic import write_params, write_result

ROWS = ["cluster_contrast", "hhcl"]


def prepare(world: TinyWorld, place: str, fingerprint: str, number: int | None) -> None:
    """The tiny world's table as a prepared dataset of that name and number."""
    plain = read_manifest(world.data)
    info = {**plain.info, "world": number}
    Manifest(plain.table, plain.root.resolve(), "rendered", fingerprint, info).write(Path("data") / place)


def features(place: str, file: str, seed: int, person: float = 1.0) -> Path:
    """Random features that know a little of who is shown, saved as docs/external.md says."""
    rng, people = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(10_000, 8))

    def my_embedding(image: Path) -> np.ndarray:
        return person * people[int(image.name[:4])] + rng.normal(size=8)

    text = block("python").replace("data/rendered-0", f"data/{place}").replace("osnet-0.npz", file)
    exec(text, {"my_embedding": my_embedding})
    return Path(file)


def block(kind: str) -> str:
    """The code of that kind on the page."""
    found = re.search(rf"^```{kind}\n(.*?)^```$", (ROOT / "docs/external.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def list_systems(worlds: list[int], seeds: list[int], systems: list[dict[str, object]]) -> None:
    """params.yaml with these worlds, or with `rendered` without one, and these systems."""
    with write_params(Path(), ROWS, seeds, worlds).open("a") as out:
        out.write(f"external: {json.dumps(systems)}\n")


def table(capsys: pytest.CaptureFixture[str]) -> tuple[pd.DataFrame, str, str]:
    """external.csv, leaderboard.md and what was told beside."""
    assert leaderboard.main([]) == 0
    told = capsys.readouterr().err
    return pd.read_csv("results/external.csv"), Path("results/leaderboard.md").read_text(), told


def test_a_system_is_compared_with_every_row_world_by_world(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    protocol, rng = protocols.load("rendered"), np.random.default_rng(1)
    systems, theirs, ours = [], [], []
    for number in (0, 1, 2):
        prepare(world, f"rendered-{number}", f"world {number}", number)
        file = features(f"rendered-{number}", f"osnet-{number}.npz", number)
        first = yaml.safe_load(block("yaml"))["external"][0]
        systems.append({**first, "dataset": f"rendered-{number}", "features": str(file)})
        theirs.append(evaluate_feature_file(protocol, file, normalise=True)[0]["mAP"])
        people = np.repeat(np.arange(6), 2)
        aps = [rng.uniform(0.2, 0.9, size=12) for _ in ROWS]
        ours.append([ap.mean() for ap in aps])
        for name, ap in zip(ROWS, aps, strict=True):
            write_result(name, 0, ap, people, fingerprint=f"world {number}", world=number)
    list_systems([0, 1, 2], [0], systems)
    for line in block("console").splitlines():
        verb = line.removeprefix("python -m pipeline ")
        assert import_module(VERBS[verb].module).main([]) == 0
    found, text, told = table(capsys)
    assert "osnet" not in told
    assert "trained on MSMT17 with labels" in text
    assert found["b"].tolist() == ROWS
    for row, column in zip(found.to_dict("records"), np.array(ours).T, strict=True):
        differences = 100 * (np.array(theirs) - column)
        test = ttest_1samp(differences, 0)
        assert (row["a"], row["worlds"], row["family"]) == ("osnet", 3, "external")
        assert row["difference"] == pytest.approx(differences.mean())
        assert row["p"] == pytest.approx(test.pvalue)
        assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval()))
    assert (found["p_holm"] >= found["p"]).all()
    section = text[text.index("### Systems from outside: rendered") :]
    line = next(line for line in section.splitlines() if line.startswith("| osnet"))
    assert [cell.strip() for cell in line.split("|")][2:4] == ["3", f"{100 * np.mean(theirs):.1f}"]
    assert text.index("### Systems from outside") > text.index("## rendered, profile tiny")
    assert report.main([]) == 0
    panel = Path("results/report.html").read_text().partition('<section id="outside"')[2].partition("</section>")[0]
    assert "trained on MSMT17 with labels" in panel
    for row in found.to_dict("records"):
        assert f'<th scope="row">osnet</th><td>{row["b"]}, {row["backbone"]}</td><td>{row["difference"]:+.1f}' in panel
    assert "osnet" not in Path("results/leaderboard.csv").read_text(), "the suite's own rows stand for themselves"


def test_one_set_of_features_stands_beside_every_seed_of_a_row_query_by_query(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(world, "rendered", "one", None)
    file = features("rendered", "f.npz", 0, person=3.0)
    list_systems([], [0, 1, 2], [{"name": "osnet", "dataset": "rendered", "features": str(file)}])
    _, theirs = evaluate_feature_file(protocols.load("rendered"), file)
    people = theirs["person_id"].to_numpy()
    assert theirs["query"].tolist() == list(range(len(theirs)))
    rng, means = np.random.default_rng(2), []
    for seed in (0, 1, 2):
        ap = rng.uniform(0.1, 0.3, size=len(people))
        means.append(ap.mean())
        for name in ROWS:
            write_result(name, seed, ap, people, fingerprint="one")
    assert external.main(["--name", "osnet"]) == 0
    found, _, _ = table(capsys)
    expected = 100 * (theirs["ap"].mean() - np.mean(means))
    assert found["difference"].tolist() == pytest.approx([expected] * 2)
    assert found["seeds"].tolist() == [3, 3]
    assert ((found["low"] < expected) & (expected < found["high"])).all()
    assert found["verdict"].tolist() == ["better", "better"]


def test_features_of_other_images_are_refused_and_what_was_not_scored_or_was_changed_is_told(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(world, "rendered-1", "world 1", 1)
    file = features("rendered-1", "f.npz", 0)
    list_systems([1], [0], [{"name": "osnet", "dataset": "rendered-1", "features": str(file)}])
    assert "osnet on rendered-1: not run; `python -m pipeline external` scores it" in table(capsys)[2]
    with np.load(file) as arrays:
        changed = dict(arrays)
    changed["query_ids"] = changed["query_ids"][::-1]
    np.savez(file, **changed)
    with pytest.raises(UserError, match=r"query_ids are not those of rendered .*keep the order of the split 'query'"):
        external.main([])
    with pytest.raises(UserError, match="lists no such system"):
        external.main(["--name", "other"])
    features("rendered-1", "f.npz", 0)
    assert external.main([]) == 0
    queries = Path("results/runs/external-osnet-rendered-1/queries.csv")
    queries.write_text(queries.read_text() + "\n")
    found, text, told = table(capsys)
    assert "osnet on rendered-1: queries.csv is not the file that was recorded" in told
    assert found.empty
    assert "Systems from outside" not in text


@pytest.mark.parametrize(
    ("system", "why"),
    [
        ({"name": "hhcl"}, "no name of an outside system"),
        ({"name": "a/b"}, "no name of an outside system"),
        ({"normalise": True}, "did you mean 'external.0..normalize'"),
    ],
)
def test_a_system_that_cannot_be_a_row_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: dict[str, object], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    list_systems([1], [0], [{"name": "x", "dataset": "rendered-1", "features": "f.npz", **system}])
    with pytest.raises(RecordError, match=why):
        read_params(Path("params.yaml"))
