"""Embed a folder of crops with a trained model: one vector per image, into an .npz file.

It holds `files`, the names of the images relative to the folder, and `feature`, a row for each of them; a method that
measures distances in a way of its own leaves more arrays beside it. Nearer vectors are more alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.files import write_arrays
from pipeline import cli
from pipeline.crops import Crops, embed_folder, told
from pipeline.model import Model, load_model


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the file is written."""
    arguments = cli.parser("embed", __doc__ or "")
    arguments.add_argument("--images", type=Path, required=True, help="folder of crops, at any depth")
    arguments.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    cli.add_model_arguments(arguments)
    options = arguments.parse_args(argv)
    if options.out.suffix != ".npz":
        raise UserError(f"--out {options.out}: name an .npz file")
    model = load_model(options.model, options.device)
    shown(model)
    crops = embed_folder(model, options.images, options.batch, options.strict)
    tell_unreadable(crops)
    arrays = {name: value.numpy() for name, value in crops.embedded.items()}
    write_arrays(options.out, files=np.array(crops.files), **arrays)
    count, width = arrays["feature"].shape
    print(f"{count} images, {width} numbers each -> {options.out}")
    return 0


def shown(model: Model) -> None:
    """Say which model it is."""
    print(f"model: {model.name}")
    for note in model.notes:
        print(f"note: {note}")


def tell_unreadable(crops: Crops) -> None:
    """Say which images were left out."""
    if crops.unreadable:
        print(f"left out: {told(crops.folder, crops.unreadable)}")


if __name__ == "__main__":
    cli.run_main(main)
