"""What a stage reads of earlier ones; where it is missing, the full command that makes it, and where to run it."""

from __future__ import annotations

import shlex
from pathlib import Path

import datasets
from core.errors import UserError
from core.manifest import NAME, Manifest, read_manifest
from pipeline.initial import Initial, read_initial
from pipeline.jobs import data_folder, initial_folder
from pipeline.params import DRAWN, elsewhere


def prepared(dataset: str, data: Path | None) -> Manifest:
    """The manifest of a dataset, below ``data`` or where ``prepare`` puts it."""
    if not NAME.fullmatch(dataset):
        raise UserError(f"a dataset cannot be called {dataset!r}: use letters, digits, '.', '_' and '-'")
    folder = data or data_folder(dataset)
    if not (folder / "manifest.csv").is_file():
        raise UserError(f"{folder} holds no prepared dataset; {prepare_hint(dataset, data)}{elsewhere()}")
    return read_manifest(folder)


def initial_weights(
    dataset: str,
    backbone: str,
    seed: int,
    profile: str | None,
    data: Path | None,
    place: Path | None,
    pretrained_by: str | None = None,
) -> Initial:
    """The weights that training on a dataset starts from, at ``place`` or where ``pretrain`` puts them.

    ``pretrained_by``: the run of a method that makes them, None for the warm start.
    """
    folder = place or initial_folder(dataset, backbone, seed, pretrained_by)
    given = {"method": pretrained_by} if pretrained_by else {}
    given |= {"dataset": dataset, "backbone": backbone, "seed": seed or None, "profile": profile}
    made_by = command("pretrain", **given, data=data, out=place)
    need(folder / "initial.json", "initial weights", made_by)
    return read_initial(folder)


def need(file: Path, what: str, made_by: str) -> None:
    """Raise UserError with the command unless the file is there; ``what`` its folder should hold."""
    if not file.is_file():
        raise UserError(f"{file.parent} holds no {what}; run `{made_by}` first{elsewhere()}")


def prepare_hint(dataset: str, data: Path | None) -> str:
    """The command that prepares a dataset; for a name that none has, how images of one's own get it."""
    name, _ = datasets.split_number(datasets.split_pair(dataset)[0])
    if name == DRAWN:
        return f"run `{command('prepare', dataset=dataset, out=data)}` first"
    if name in datasets.available():
        made_by = command("prepare", dataset=dataset, root="DIR", out=data)
        return f"run `{made_by}` first, DIR being the folder that holds the dataset"
    own = command("prepare", dataset="folder", root="DIR", out=data or data_folder(dataset))
    return f"no dataset is called '{dataset}' (known: {', '.join(datasets.available())}); images of your own: `{own}`"


def command(verb: str, **options: object) -> str:
    """``python -m pipeline VERB --NAME VALUE ...``, without the options that are None."""
    given = [part for name, value in options.items() if value is not None for part in (f"--{name}", str(value))]
    return shlex.join(["python", "-m", "pipeline", verb, *given])
