"""How entry points speak: one line for what the user can mend, a traceback for a fault of the program."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import pytest

from core.errors import UserError
from pipeline import cli
from pipeline.__main__ import main as pipeline_main
from pipeline.jobs import ROOT


def outcome(error: BaseException) -> Callable[[Sequence[str] | None], int]:
    def main(argv: Sequence[str] | None) -> int:
        raise error

    return main


def test_a_users_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run_main(outcome(UserError("no such dataset")))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no such dataset\n"


def test_what_the_system_refuses_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run_main(outcome(OSError(errno.ENOSPC, "No space left on device", "data/x.bin")))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: data/x.bin: No space left on device\n"


def test_a_value_error_of_a_library_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="shapes do not match"):
        cli.run_main(outcome(ValueError("shapes do not match")))


def test_the_listing_names_every_verb_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline_main([]) == 0
    shown = capsys.readouterr().out
    for name, verb in cli.VERBS.items():
        assert f"  {name} " in shown
        assert f"python -m pipeline {name} {verb.example}".rstrip() in shown


def test_an_unknown_verb_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline_main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_of_a_verb_shows_defaults_only_where_there_are_any_and_its_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        import_module(cli.VERBS[verb].module).main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "default: None" not in shown
    assert "default: False" not in shown
    assert f"example: python -m pipeline {verb}" in shown
    for option, name in (("--method", "hhcl"), ("--profile", "controlled"), ("--backbone", "resnet18_half")):
        assert option not in shown.split("\n\n")[0] or name in shown


@pytest.mark.parametrize(
    "start", [["pipeline", "compare"], ["pipeline.compare"], ["pipeline", "train"], ["pipeline.train"]]
)
def test_both_names_of_a_verb_start_it(start: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *start, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m pipeline" in done.stdout
