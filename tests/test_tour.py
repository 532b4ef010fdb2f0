"""The first hour as a newcomer has it: `make quick`, and docs/add_a_method.md followed to the letter."""

from __future__ import annotations

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

import methods
from core.errors import UserError
from pipeline.jobs import ROOT
from pipeline.new_method import PLACES, TEMPLATE, new_method
from tests.conftest import TinyWorld

PAGE = ROOT / "docs/add_a_method.md"
BLOCK = re.compile(r"^```(console|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_NEEDED = ("results/", "tests/golden/", "tests/replay/records/")


@pytest.fixture
def checkout(tmp_path: Path, world: TinyWorld) -> Path:
    """A copy of the working tree in which the tour has drawn its world and made the warm start: the session's."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith(NOT_NEEDED):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    for place, made in (("data/rendered", world.data), ("initial/rendered-resnet18_half-0", world.initial)):
        (tmp_path / "quick" / place).parent.mkdir(parents=True)
        (tmp_path / "quick" / place).symlink_to(made)
    return tmp_path


def follow(checkout: Path, line: str) -> str:
    """Run a line of the page there; `make` finds the environment of these tests ready."""
    words = shlex.split(line)
    if words[0] == "make":
        words += ["READY=", f"BIN={Path(sys.executable).parent}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(words, cwd=checkout, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def set_runs(checkout: Path, asked: str) -> None:
    """The page's `runs`, of which the tour's other methods are left out: here, only the baseline and the new one."""
    file = checkout / "params.quick.yaml"
    params = {**yaml.safe_load(file.read_text()), **yaml.safe_load(asked)}
    assert set(params["runs"]["cnn"]) == {"warm_start", "cluster_contrast", "spcl", "hhcl", "my_method"}
    params |= {"runs": {"cnn": ["cluster_contrast", "my_method"]}, "datasets": ["rendered"]}
    file.write_text(yaml.safe_dump(params))


@pytest.mark.slow
def test_the_page_on_adding_a_method_leads_to_a_row_of_the_tours_table_and_page(checkout: Path) -> None:
    for kind, text in BLOCK.findall(PAGE.read_text()):
        if kind == "yaml":
            set_runs(checkout, text)
            continue
        for line in text.strip().splitlines():
            follow(checkout, line)
    table = pd.read_csv(checkout / "quick/results/leaderboard.csv").set_index("method")
    assert table.loc["my_method", "status"] == "ok"
    assert table.loc["my_method", "mAP_mean"] > 0
    assert "my_method" in (checkout / "quick/results/report.html").read_text()
    assert not (checkout / "results").exists(), "the tour leaves results/ alone"
    history = pd.read_csv(next((checkout / "quick/results/training").glob("my_method-*/history.csv")))
    assert history["loss_pull"].notna().all()


def test_the_template_is_no_method_and_a_copy_of_it_names_itself_alone(tmp_path: Path) -> None:
    assert not [name for name in methods.available() if name.startswith("_")]
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/README.md", tmp_path / "docs/README.md")
    new_method("new_idea", tmp_path)
    for place in PLACES.values():
        text = (tmp_path / place.replace("NAME", "new_idea")).read_text()
        assert not re.search(r"NAME|_template|ClassName", text), place
    assert "class NewIdea(Method)" in (tmp_path / "methods/new_idea/method.py").read_text()
    index = (tmp_path / "docs/README.md").read_text().splitlines()
    added = next(number for number, line in enumerate(index) if "new_idea" in line)
    assert index[added - 1].startswith("| [methods/")
    assert index[added + 1] == ""


@pytest.mark.parametrize(("name", "told"), [("hhcl", "already"), ("New", "small letters"), ("a-b", "small letters")])
def test_a_name_that_is_taken_or_that_python_cannot_import_is_refused(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        new_method(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_file_of_the_template_has_a_place() -> None:
    assert {file.name for file in TEMPLATE.iterdir() if file.is_file()} == set(PLACES)
