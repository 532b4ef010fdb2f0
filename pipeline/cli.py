"""What the entry points share: arguments, and errors that read as one sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.settings import read_yaml

USER_ERROR = 2


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help shows defaults."""
    return argparse.ArgumentParser(
        prog=f"python -m pipeline.{module}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def add_run_arguments(arguments: argparse.ArgumentParser) -> None:
    """Arguments that decide what a run computes."""
    arguments.add_argument("--dataset", required=True, help="name of a prepared dataset")
    arguments.add_argument("--seed", type=int, default=0, help="seed of every random stream")
    arguments.add_argument("--backbone", help="resnet50, resnet18_half, ...; default: the one of params.yaml")
    add_params_arguments(arguments)
    add_machine_arguments(arguments)


def add_params_arguments(arguments: argparse.ArgumentParser) -> None:
    """Arguments that say where settings come from."""
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file")
    arguments.add_argument("--profile", help="published, controlled, ...: a file of profiles/; default: params.yaml's")
    arguments.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="assignments",
        help="change one setting, as in clustering.eps=0.5; may be repeated",
    )


def add_machine_arguments(arguments: argparse.ArgumentParser) -> None:
    """Arguments that say what to compute on."""
    arguments.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: CUDA when present")
    arguments.add_argument("--threads", type=int, help="CPU threads of each process; default: params.yaml's")


def read_params(options: argparse.Namespace) -> dict[str, Any]:
    """params.yaml with the command line's profile on top."""
    params = read_yaml(options.params)
    if options.profile:
        params["profile"] = options.profile
    return params


def run_main(main: Callable[[Sequence[str] | None], int]) -> None:
    """Run an entry point; an error of the user's making is one message on stderr and exit status 2."""
    try:
        status = main(None)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = USER_ERROR
    sys.exit(status)
