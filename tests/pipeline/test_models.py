"""Trained models in the hands of others: loaded, embedding folders, searching, published, exported."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from core.distributed import start
from core.errors import UserError
from core.manifest import read_manifest
from evaluation.score import score
from pipeline import embed, evaluate, publish, search, train
from pipeline.cli import VERBS
from pipeline.jobs import ROOT, Job
from pipeline.model import Model, load_model
from pipeline.records import read_result, read_train
from pipeline.scoring import TestSplit, load_method
from tests.conftest import TinyWorld

NAMED = "cluster_contrast-rendered-0-resnet18_half-0"  # the run that docs/models.md names
DVC = (sys.executable, "-m", "dvc")
JOB = Job("selective_contrastive", "rendered-1", "resnet18_half", 0)
PLAIN = Job("cluster_contrast", "rendered-1", "resnet18_half", 0)


@pytest.fixture(scope="module")
def home(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tested runs where stages put them, one with a distance of its own; and two folders of crops."""
    place = tmp_path_factory.mktemp("models")
    for job in (PLAIN, JOB):
        arguments = world.train_arguments(job.run, place / job.trained, "--set", "schedule.epochs=1")
        assert train.main(arguments) == 0
        assert evaluate.main(world.evaluate_arguments(job.run, place / job.trained, place / job.evaluated)) == 0
    manifest = read_manifest(world.data)
    for side in ("query", "gallery"):
        (place / side / "sub").mkdir(parents=True)
        for path in manifest.paths(side):
            shutil.copy(path, place / side / "sub" / path.name)
    (place / "gallery/broken.jpg").write_bytes(b"no image")
    return place


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder as the working directory; tests write into folders of their own."""
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize("job", [PLAIN, JOB], ids=lambda job: job.run)
def test_a_loaded_model_gives_the_features_and_distances_that_its_test_scored(
    here: Path, world: TinyWorld, job: Job
) -> None:
    model, manifest = load_model(job.trained, "cpu"), read_manifest(world.data)
    record = read_train(job.trained)
    run, method = load_method(record)
    weights = job.trained / "weights/epoch_001.pt"
    method.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    test = TestSplit(manifest, run, record, start("cpu"), world.cache)
    for side, expected in zip(("query", "gallery"), test.embed(method), strict=True):
        assert torch.equal(model.embed(manifest.paths(side))["feature"], expected["feature"])
    query, gallery = (model.embed(manifest.paths(side)) for side in ("query", "gallery"))
    distance = model.distance(query, gallery)
    again = score(test.protocol, lambda rows: distance[rows], *test.labels)
    result = read_result(job.evaluated)
    assert again.ranking.summary()["rank1"] == result.selection.last.rank1
    assert again.verification is not None
    assert model.verification == result.verification
    assert again.verification.eer == pytest.approx(model.verification.eer, abs=0.01)
    assert again.verification.eer_threshold == pytest.approx(model.verification.eer_threshold, rel=1e-3)


def test_a_model_says_what_it_is_and_a_picture_is_embedded_like_its_file(here: Path) -> None:
    model = load_model(PLAIN.evaluated, "cpu")
    assert model.name == "cluster_contrast:sequential@resnet18_half on rendered-1, seed 0"
    assert model.size == (model.run.config.input.height, model.run.config.input.width)
    assert (len(model.mean), len(model.std)) == (3, 3)
    file = next((here / "query/sub").iterdir())
    with Image.open(file) as picture:
        both = model.embed([file, picture])["feature"]
    assert torch.equal(both[0], both[1])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("query", "holds no model; name a folder of `train`"),
        ("nowhere", "holds no model"),
        ("failed", "training failed"),
    ],
)
def test_what_is_no_model_is_refused_with_what_would_be_one(here: Path, tmp_path: Path, name: str, why: str) -> None:
    source = here / name
    if name == "failed":
        source = Path(shutil.copytree(PLAIN.trained, tmp_path / "failed"))
        text = (source / "train.json").read_text().replace('"status": "ok"', '"status": "failed"')
        (source / "train.json").write_text(text)
    with pytest.raises(UserError, match=why):
        load_model(source, "cpu")


def test_embed_writes_a_row_per_readable_image_and_names_the_others(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(PLAIN.trained), "--images", "gallery", "--device", "cpu", "--batch", "7"]
    assert embed.main([*arguments, "--out", str(tmp_path / "g.npz")]) == 0
    assert "1 image(s) of gallery cannot be read:\n  broken.jpg: UnidentifiedImageError" in capsys.readouterr().out
    with np.load(tmp_path / "g.npz") as found:
        files, features = found["files"].tolist(), found["feature"]
    assert files == sorted(f"sub/{path.name}" for path in (here / "gallery/sub").iterdir())
    whole = load_model(PLAIN.trained, "cpu").embed([here / "gallery" / name for name in files])["feature"]
    np.testing.assert_allclose(features, whole, atol=1e-6)
    with pytest.raises(UserError, match=r"(?s)broken\.jpg.*leave --strict out"):
        embed.main([*arguments, "--out", str(tmp_path / "h.npz"), "--strict"])
    assert not (tmp_path / "h.npz").exists()


def test_search_ranks_by_distance_and_marks_what_lies_below_the_thresholds(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--query", "query", "--gallery", "gallery", "--top", "4", "--device", "cpu", "--shown", "3"]
    files = ["--csv", str(tmp_path / "s.csv"), "--html", str(tmp_path / "s.html")]
    assert search.main(["--model", str(PLAIN.evaluated), *folders, *files]) == 0
    table, model = pd.read_csv(tmp_path / "s.csv"), load_model(PLAIN.trained, "cpu")
    queries, names = (sorted((here / side / "sub").iterdir()) for side in ("query", "gallery"))
    distance = model.distance(model.embed(queries), model.embed(names))
    assert len(table) == 4 * len(queries)
    for query, row in zip(queries, distance, strict=True):
        rows = table[table["query"] == f"sub/{query.name}"]
        assert rows["rank"].tolist() == [1, 2, 3, 4]
        np.testing.assert_allclose(rows["distance"], np.sort(row)[:4], atol=1e-4)
        order = [f"sub/{names[place].name}" for place in np.argsort(row, kind="stable")[:4]]
        assert rows["gallery"].tolist()[0] == order[0]
    limit = model.thresholds[0.01]
    assert (table["below_fpr_0.01"] == (table["distance"] <= limit)).all()
    assert 0 < table["below_fpr_0.01"].sum() < len(table)
    assert f"distance <= {limit:.4f}: 1 % of the pairs of different people" in capsys.readouterr().out
    page = (tmp_path / "s.html").read_text()
    assert page.count('<div class="strip">') == 3
    assert page.count("<img ") == 3 * 5 == page.count('src="data:image/jpeg;base64,')
    assert not re.search(r'(?:src|href)="(?!data:)', page), "the page needs no other file"
    everything = ["--shown", str(len(queries)), "--html", str(tmp_path / "all.html")]
    assert search.main(["--model", str(PLAIN.evaluated), *folders[:-2], *everything]) == 0
    page = (tmp_path / "all.html").read_text()
    assert page.count("(&le; 1 %)") + page.count("(&le; 0.1 %)") == table["below_fpr_0.01"].sum()
    assert page.count('"near1"') == page.count("(&le; 1 %)")


@pytest.fixture(scope="module")
def published(home: Path) -> Path:
    """The plain run as `publish` writes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert publish.main(["--run", str(PLAIN.trained), "--out", "published/plain"]) == 0
    return home / "published/plain"


def features(model: Model, folder: Path) -> torch.Tensor:
    return model.embed(sorted(folder.iterdir())[:6])["feature"]


def test_a_published_model_is_the_run_wherever_its_folder_lies(here: Path, published: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(published, tmp_path / "elsewhere"))
    run, model = load_model(PLAIN.trained, "cpu"), load_model(moved, "cpu")
    assert torch.equal(features(model, here / "query/sub"), features(run, here / "query/sub"))
    assert (model.name, model.size, model.mean, model.std) == (run.name, run.size, run.mean, run.std)
    assert model.thresholds == run.thresholds != {}
    assert torch.equal(
        features(load_model(moved / "model.safetensors", "cpu"), here / "query/sub"), features(run, here / "query/sub")
    )
    (moved / "model.safetensors").write_bytes((moved / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors is not the file that was recorded.*get it again"):
        load_model(moved, "cpu")


def test_a_card_holds_the_figures_of_the_run_and_says_what_it_is_not_for(here: Path, published: Path) -> None:
    text, result = (published / "README.md").read_text(), read_result(PLAIN.evaluated)
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert "cluster_contrast" in front["tags"]
    assert f"| mAP | {100 * result.selection.last.mAP:.1f} |" in text
    assert result.verification is not None
    assert (
        f"| equal error rate {100 * result.verification.eer:.2f} % | {result.verification.eer_threshold:.4f} |" in text
    )
    for title in ("Method", "Data", "How it was trained", "Limits", "Licence"):
        assert f"\n## {title}\n" in text
    assert "Training saw no person ids and camera labels (sampler)." in text
    assert result.data.fingerprint in text


def test_other_data_s_model_has_no_licence_that_nobody_stated(here: Path, tmp_path: Path) -> None:
    trained = Path(shutil.copytree(PLAIN.trained, tmp_path / "training/real"))
    text = (trained / "train.json").read_text().replace('"name": "rendered"', '"name": "market1501"')
    (trained / "train.json").write_text(text)
    record = publish.publish(trained, tmp_path / "out")
    assert record.licence is None
    assert record.scores is None
    card = (tmp_path / "out/README.md").read_text()
    assert "No licence of the weights is stated. The terms of market1501" in card
    assert "The run was not tested." in card
    assert publish.publish(trained, tmp_path / "out", licence="mit").licence == "mit"


def shell(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def follow(folder: Path, line: str) -> None:
    """Do what a line of a page says, in a folder."""
    words = shlex.split(line)
    if words[:3] == ["python", "-m", "pipeline"]:
        assert import_module(VERBS[words[3]].module).main(words[4:]) == 0
        return
    shell(folder, *(DVC if words[0] == "dvc" else words[:1]), *words[1:])


@pytest.mark.slow
def test_the_page_on_models_can_be_followed_to_a_model_got_from_a_remote(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of docs/models.md as it stands, in a repository with a local remote; ADDRESS is that repository."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for command in ("git init -q", "git config user.name t", "git config user.email t@t", "dvc init -q"):
        follow(theirs, command)
    follow(theirs, f"dvc remote add -d store '{tmp_path / 'store'}'")
    (theirs / ".gitignore").write_text("/results/\n*.npz\nstrips.*\n/people\n/crops\n")
    (theirs / "dvc.yaml").write_text("# a comment that stays\nstages: {}\n")
    for home in ("training", "runs"):
        shutil.copytree(here / "results" / home / PLAIN.name, theirs / "results" / home / NAMED)
    shutil.copytree(here / "gallery/sub", theirs / "crops")
    (theirs / "people").mkdir()
    for name, file in zip(("anna", "bert"), sorted((here / "query/sub").iterdir()), strict=False):
        shutil.copy(file, theirs / "people" / f"{name}.jpg")
    monkeypatch.chdir(theirs)
    done = []
    for kind, text in BLOCK.findall((ROOT / "docs/models.md").read_text()):
        if kind == "python":
            exec(text, {})
            continue
        for line in text.strip().splitlines():
            if line.startswith("dvc artifacts get"):
                elsewhere = tmp_path / "ours"
                elsewhere.mkdir()
                follow(elsewhere, line.replace("ADDRESS", str(theirs)))
            else:
                follow(theirs, line)
            done.append(line.split()[0])
    assert done.count("python") == 4
    assert "# a comment that stays" in (theirs / "dvc.yaml").read_text()
    assert "model.safetensors" not in shell(theirs, "git", "ls-files")
    model, run = load_model(tmp_path / "ours/published/baseline", "cpu"), load_model(here / PLAIN.trained, "cpu")
    assert torch.equal(features(model, here / "query/sub"), features(run, here / "query/sub"))
