"""Which room may import which: what trains knows nothing of what scores, and nothing depends on what tables."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import VERBS
from pipeline.jobs import ROOT

# Room -> the rooms that it may import, itself included.
ALLOWED = {
    "core": {"core"},
    "evaluation": {"evaluation", "core"},
    "datasets": {"datasets", "evaluation", "core"},
    "methods": {"methods", "core"},
    "pipeline": {"pipeline", "methods", "datasets", "evaluation", "core"},
    "reports": {"reports", "pipeline", "methods", "datasets", "evaluation", "core"},
}
# What tables reads settings, jobs and records; it trains and scores nothing.
READ_BY_REPORTS = {
    "pipeline.cli",
    "pipeline.settings",
    "pipeline.layers",
    "pipeline.params",
    "pipeline.jobs",
    "pipeline.records",
}


def imports(file: Path) -> set[str]:
    """Modules that a file imports, those inside of functions too; `from pipeline import cli` is `pipeline.cli`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ALLOWED:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        rooms = {name.partition(".")[0] for name in imports(file)} & set(ALLOWED)
        assert rooms <= ALLOWED[room], file


def test_reports_read_settings_jobs_and_records_of_the_pipeline_and_nothing_else() -> None:
    for file in sorted((ROOT / "reports").rglob("*.py")):
        used = {name for name in imports(file) if name.startswith("pipeline.")}
        assert used <= READ_BY_REPORTS, file


def test_a_method_imports_no_other_method() -> None:
    for file in sorted((ROOT / "methods").glob("*/*.py")):
        others = {name for name in imports(file) if name.startswith("methods.")}
        assert all(name.split(".")[1] == file.parent.name for name in others), file


def test_no_command_loads_torchvision_before_it_makes_a_network() -> None:
    modules = sorted({verb.module for verb in VERBS.values()})
    code = f"import sys, {', '.join(modules)}; print([name for name in sys.modules if name.startswith('torchvision')])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
