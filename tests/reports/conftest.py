"""A working directory of a test's own, and a report with every panel, made once for all tests that look at it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.params import read_params
from reports import report
from reports.page.material import Material, gather
from reports.table import read_results
from tests.conftest import TinyWorld
from tests.reports.site import write_site


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory: stages find results below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Site:
    """The page, and what it was made of."""

    folder: Path
    page: Path
    material: Material


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, world: TinyWorld) -> Site:
    """results/report.html of synthetic results in three worlds, one run failed and one not run."""
    folder = tmp_path_factory.mktemp("report")
    with contextlib.chdir(folder):
        params = write_site(folder, world.data)
        assert report.main(["--params", str(params)]) == 0
        material = gather(read_results(read_params(params)))
    return Site(folder, folder / "results/report.html", material)
