"""Publish a trained run: its last weights as safetensors, a model card, and all that `load_model` needs to use them.

The folder is complete in itself beside the suite's code. `--artifact NAME` tracks it with DVC and lists it in dvc.yaml,
so that after `git commit`, `dvc push` and a tag NAME@v1.0.0 others get it by `dvc artifacts get URL NAME`. `--onnx`
writes the network as ONNX too, checked against this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from dvc.annotations import Artifact
from dvc.exceptions import DvcException
from dvc.repo import Repo
from safetensors.torch import save

from core.errors import UserError
from core.files import forget, hashes, replacing, write_text
from core.lock import locked
from pipeline import cli
from pipeline.card import card
from pipeline.export_onnx import NETWORK, export
from pipeline.model import WEIGHTS, find, load_model, read_run, result_of
from pipeline.records import PUBLISHED, PublishedRecord, TrainRecord, write_record

CARD = "README.md"
# People of this dataset are drawn, so that the suite's own licence covers what was learned from them.
DRAWN, DRAWN_LICENCE = "rendered", "apache-2.0"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the folder is written."""
    arguments = cli.parser("publish", __doc__ or "")
    arguments.add_argument("--run", type=Path, required=True, help="folder of `train`, or of its results")
    arguments.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments.add_argument("--licence", help="of the weights; default: apache-2.0 of drawn people, else none is stated")
    arguments.add_argument("--onnx", action="store_true", help="write the network as ONNX too")
    arguments.add_argument("--artifact", metavar="NAME", help="track the folder with DVC, as this artifact of dvc.yaml")
    options = arguments.parse_args(argv)
    place = find(options.run)
    if place.weights or (place.folder / PUBLISHED).is_file():
        raise UserError(f"{options.run} is not a run; name a folder of `train` or of its results")
    record = publish(place.folder, options.out, options.licence, options.onnx)
    print(f"{record.name}, epoch {record.epoch} -> {options.out}")
    if record.scores is None:
        print("note: the run was not tested, so that card and record hold no figures; evaluate it and publish again")
    if options.artifact:
        track(options.out, options.artifact, record.name)
        print(f"artifact {options.artifact}: commit, `dvc push`, and tag the commit {options.artifact}@v1.0.0")
    return 0


def publish(trained: Path, out: Path, licence: str | None = None, onnx: bool = False) -> PublishedRecord:
    """Write a run's last weights, card and record into ``out``; the record last, with the hashes of the others."""
    record, weights = read_run(trained)
    result = result_of(trained, record)
    licence = licence or (DRAWN_LICENCE if record.data.name == DRAWN else None)
    model = load_model(trained, "cpu")
    published = PublishedRecord(
        **{name: getattr(record, name) for name in TrainRecord.model_fields if name != "files"},
        files={},  # below
        name=model.name,
        epoch=record.cost.epochs,
        licence=licence,
        protocol=result.protocol if result else None,
        scores=result.selection.last if result else None,
        verification=result.verification if result else None,
    )
    with locked(out):
        forget(out / PUBLISHED)
        write_weights(out / WEIGHTS, torch.load(weights, map_location="cpu", weights_only=True))
        names = [WEIGHTS, CARD]
        if onnx:
            export(model, out / NETWORK)
            names.append(NETWORK)
        write_text(out / CARD, card(published, model.size, onnx))
        published = published.model_copy(update={"files": hashes(out, names)})
        write_record(published, out / PUBLISHED)
    return published


def write_weights(file: Path, weights: dict[str, torch.Tensor]) -> None:
    """Weights by name, whole or not at all; no two share memory."""
    plain = {name: value.contiguous().clone() for name, value in weights.items()}
    with replacing(file) as out:
        out.write(save(plain))


def track(out: Path, name: str, description: str) -> None:
    """Track the folder with DVC and list it as an artifact of the dvc.yaml in the working directory."""
    try:
        with Repo() as repo:
            repo.add(str(out))
            repo.artifacts.add(name, Artifact(path=out.as_posix(), type="model", desc=description))
    except DvcException as error:
        raise UserError(f"DVC cannot track {out}: {error}") from error


if __name__ == "__main__":
    cli.run_main(main)
