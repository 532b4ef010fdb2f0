"""What the entry points share: arguments, and errors that read as one sentence."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch

import datasets
import methods
from core.backbones.net import BACKBONES
from core.errors import UserError
from core.lock import FolderInUse
from core.tracking import TRACKERS
from evaluation import protocol as protocols
from pipeline.layers import profiles
from pipeline.params import MOST_THREADS, Params
from pipeline.params import read_params as read_params_file

USER_ERROR = 2
IN_USE = 75  # EX_TEMPFAIL of sysexits.h: another process writes the folder, and the same command may work later
INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended


class Verb(NamedTuple):
    """An entry point: the module whose ``main`` it is, what it does, and arguments that work."""

    module: str
    summary: str
    example: str


VERBS = {
    "prepare": Verb("pipeline.prepare", "write the manifest of a dataset", "--dataset rendered-0"),
    "configure": Verb("pipeline.configure", "resolve every run's configuration into a file", ""),
    "pretrain": Verb("pipeline.pretrain", "make the weights that training starts from", "--dataset rendered-0"),
    "translate": Verb("pipeline.translate", "train a generator of camera styles", "--dataset rendered-0"),
    "train": Verb("pipeline.train", "train one method", "--method hhcl-paper --dataset rendered-0 --seed 0"),
    "evaluate": Verb("pipeline.evaluate", "test a trained run", "--method hhcl-paper --dataset rendered-0 --seed 0"),
    "external": Verb("pipeline.external", "score systems from outside by their features", "--name osnet"),
    "cross_domain": Verb("pipeline.cross_domain", "test every run on every prepared dataset", ""),
    "sweep": Verb("pipeline.sweep", "run all jobs of params.yaml without DVC", "--jobs 2"),
    "ablation": Verb("pipeline.ablation", "train and table a method's ablation rows", "--method hhcl --seeds 0 1 2"),
    "new_method": Verb("pipeline.new_method", "begin a method of your own from a template", "my_method"),
    "embed": Verb("pipeline.embed", "embed a folder of crops", "--model published/hhcl --images crops --out crops.npz"),
    "search": Verb(
        "pipeline.search",
        "find the most alike images of a folder of crops",
        "--model published/hhcl --query people --gallery crops --top 10 --html strips.html",
    ),
    "publish": Verb(
        "pipeline.publish",
        "write a trained run as a model that others can load",
        "--run results/training/hhcl-rendered-0-resnet18_half-0 --out published/hhcl",
    ),
    "leaderboard": Verb("reports.leaderboard", "write the table of all runs", ""),
    "compare": Verb("reports.compare", "differences of every two runs, with intervals", ""),
    "real_people": Verb("reports.real_people", "the table of real people, beside drawn ones", ""),
    "exports": Verb("reports.exports", "the table as CSV, Markdown, LaTeX and JSON", "--selection last"),
    "nearest": Verb("pipeline.nearest", "rank once more the images that the report shows", ""),
    "report": Verb("reports.report", "write a page of all results that needs no network", ""),
    "verify": Verb("reports.verify", "results against the reference and the papers", ""),
    "readme": Verb("reports.readme", "write the generated parts of the READMEs", ""),
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the default of an argument that has one, and keeps the lines of description and example."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.option_strings and action.default not in (None, False, [], argparse.SUPPRESS)
        shown = has_default and "default" not in (action.help or "")
        return f"{action.help or ''} (default: %(default)s)" if shown else action.help


class Parser(argparse.ArgumentParser):
    """Its help ends with the known names of what its arguments name, and with an example."""

    def format_help(self) -> str:
        known = {
            "--method": ("methods", methods.available()),
            "--dataset": ("datasets", datasets.available()),
            "--backbone": ("backbones", list(BACKBONES)),
            "--profile": ("profiles", profiles()),
            "--protocol": ("protocols", protocols.available()),
        }
        lines = [
            textwrap.fill(f"{kind}: {', '.join(names)}", 100, subsequent_indent="  ")
            for option, (kind, names) in known.items()
            if option in self._option_string_actions
        ]
        return "\n".join([super().format_help(), *lines, ""])


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help shows defaults where there are any, an example, and the known names."""
    example = f"python -m pipeline {verb} {VERBS[verb].example}".rstrip()
    return Parser(
        prog=f"python -m pipeline {verb}",
        description=description,
        epilog=f"example: {example}",
        formatter_class=HelpFormatter,
    )


def run_verb(verb: str, argv: Sequence[str] | None = None) -> None:
    """Run an entry point by its name; the module is imported only now."""
    run_main(lambda given: int(import_module(VERBS[verb].module).main(given)), argv)


def add_run_arguments(arguments: argparse.ArgumentParser) -> None:
    """Arguments that decide what a run computes."""
    arguments.add_argument("--dataset", required=True, help="name of a prepared dataset")
    arguments.add_argument("--seed", type=int, default=0, help="seed of every random stream")
    arguments.add_argument("--backbone", help="what embeds images; default: the method's kind in params.yaml")
    add_params_arguments(arguments)
    add_machine_arguments(arguments)


def add_track_argument(arguments: argparse.ArgumentParser) -> None:
    """The argument that says where a training can be watched beside its history.csv."""
    arguments.add_argument("--track", choices=TRACKERS, help="show every epoch there too; files are in CACHE/progress")


def add_params_arguments(arguments: argparse.ArgumentParser) -> None:
    """Arguments that say where settings come from."""
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file")
    arguments.add_argument("--profile", help="a file of profiles/; default: params.yaml's")
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
    arguments.add_argument("--threads", type=thread_count, help="CPU threads of each process; default: params.yaml's")


def add_model_arguments(arguments: argparse.ArgumentParser) -> None:
    """Arguments of who uses a trained model on a folder of images."""
    arguments.add_argument(
        "--model", type=Path, required=True, help="a run's folder, its weights or a published folder"
    )
    arguments.add_argument("--batch", type=positive, default=512, help="images in memory at a time")
    arguments.add_argument(
        "--strict", action="store_true", help="refuse images that cannot be read; default: leave out"
    )
    arguments.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: CUDA when present")


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text}")
    return int(text)


def read_params(options: argparse.Namespace) -> Params:
    """params.yaml with the command line's profile and worlds, where it takes them, on top."""
    profile, worlds = (getattr(options, name, None) for name in ("profile", "worlds"))
    params = read_params_file(options.params, {"profile": profile} if profile else None)
    return params if worlds is None else params.with_worlds(worlds)


def add_worlds_argument(arguments: argparse.ArgumentParser) -> None:
    """The argument that says over how many worlds of drawn people runs are repeated."""
    arguments.add_argument(
        "--worlds",
        type=int,
        metavar="N",
        help="run on rendered-0 to rendered-(N-1) in place of the worlds of --params",
    )


def thread_count(text: str) -> int:
    """A number of threads that a machine can have."""
    if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"must be 1 to {MOST_THREADS}, not {text}")
    return int(text)


def threads(options: argparse.Namespace, params: Params) -> int:
    """CPU threads of a process: the command line's, or params.yaml's."""
    return options.threads or params.threads


def refused(error: OSError) -> str:
    """What the system refused, about which file."""
    files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{files}: {error.strerror}" if files else str(error)


def run_main(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> None:
    """Run an entry point; an error of the user's making is one message on stderr and exit status 2.

    A folder that another process writes is one with exit status 75, at which a sweep on a cluster tries again.
    What the system refuses (a full disk, a missing permission, memory) is such an error; any other exception is a
    fault of the program and keeps its traceback. Ctrl-C is one line that says what can be resumed, and status 130.
    """
    try:
        status = main(argv)
    except FolderInUse as error:
        print(f"error: {error}", file=sys.stderr)
        status = IN_USE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = USER_ERROR
    except OSError as error:
        print(f"error: {refused(error)}", file=sys.stderr)
        status = USER_ERROR
    except (MemoryError, torch.OutOfMemoryError) as error:
        print(f"error: out of memory: {error}; use fewer --jobs or a smaller batch", file=sys.stderr)
        status = USER_ERROR
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on: what is finished stays, training resumes at its epoch",
            file=sys.stderr,
        )
        status = INTERRUPTED
    sys.exit(status)
