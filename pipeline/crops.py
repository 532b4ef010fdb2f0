"""Folders of crops that nobody labelled: listed, read in batches and embedded, with what cannot be read set aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from core.errors import UserError
from core.images import LISTED
from datasets.base import EXTENSIONS, images_below
from pipeline.model import Embedded, Model

READ_AT_ONCE = 512  # images in memory
WORKERS = 8

Fault = tuple[Path, str]


class Crops(NamedTuple):
    """The readable images of a folder: names relative to it, what the model made of them, and what was set aside."""

    folder: Path
    files: list[str]
    embedded: Embedded
    unreadable: list[Fault]


def embed_folder(model: Model, folder: Path, batch: int = READ_AT_ONCE, strict: bool = False) -> Crops:
    """Embed every image at any depth of a folder, in the order of their names.

    strict: an image that cannot be read is an error that lists all; otherwise it is set aside. Raises UserError where
    no image is left.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of images")
    names = list(images_below(folder))
    if not names:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}), at no depth")
    files: list[str] = []
    parts: list[Embedded] = []
    faults: list[Fault] = []
    with tqdm(total=len(names), desc=f"embed {folder}", unit="image", leave=False) as bar:
        for read, pixels, bad in batches(model, folder, names, batch):
            if read:
                files += read
                parts.append(model.embed(pixels))
            faults += bad
            bar.update(len(read) + len(bad))
    if faults and strict:
        raise UserError(f"{told(folder, faults)}\nmend or remove them, or leave --strict out to go on without them")
    if not files:
        raise UserError(told(folder, faults))
    embedded = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Crops(folder, files, embedded, faults)


def batches(
    model: Model, folder: Path, names: Sequence[Path], size: int
) -> Iterator[tuple[list[str], Tensor, list[Fault]]]:
    """Names and pixels (b, 3, H, W) of readable images, and the faults of the others, ``size`` images at a time."""

    def read(name: Path) -> Tensor | str:
        try:
            return model.pixels(folder / name) if (folder / name).is_file() else "it is not a regular file"
        except MemoryError:
            raise
        except Exception as error:  # decoders raise unrelated types on damaged files
            return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(WORKERS) as pool:  # Pillow releases the interpreter lock
        for start in range(0, len(names), size):
            found = list(zip(names[start : start + size], pool.map(read, names[start : start + size]), strict=True))
            good = [(name.as_posix(), image) for name, image in found if isinstance(image, Tensor)]
            bad = [(name, fault) for name, fault in found if isinstance(fault, str)]
            pixels = torch.stack([image for _, image in good]) if good else torch.empty(0)
            yield [name for name, _ in good], pixels, bad


def told(folder: Path, faults: Sequence[Fault]) -> str:
    """Which images of a folder cannot be read, and why."""
    lines = [f"  {name}: {reason}" for name, reason in faults[:LISTED]]
    if len(faults) > LISTED:
        lines.append(f"  and {len(faults) - LISTED} more")
    return "\n".join([f"{len(faults)} image(s) of {folder} cannot be read:", *lines])
