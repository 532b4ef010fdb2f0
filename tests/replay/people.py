"""Drawn people: a dataset of some hundred tiny images in integers, with outliers, distractors, junk and cameras."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from core.manifest import Manifest, build_manifest
from tests.replay.draws import integers

HEIGHT, WIDTH = 64, 32
CAMERAS = 4
# Images per person of each split. Persons of fewer than four are outliers; the last large one has one camera.
TRAIN = (7, 7, 7, 7, 6, 6, 6, 5, 3, 3, 1)
SOURCE = (4, 4, 4, 4, 4, 4)
TEST = (2, 3, 4, 4, 3, 2, 4, 4)  # in the gallery; one query per camera of two


def write_dataset(folder: Path, seed: int) -> Manifest:
    """Write the images of all splits as PNG, which loses nothing, and return their manifest."""
    rows = []
    for split, person, camera, number in _images():
        path = f"{split}/{person:03d}_{camera}_{number}.png"
        (folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_image(path, abs(person), camera, seed)).save(folder / path)
        rows.append({"path": path, "split": split, "person_id": person, "camera_id": camera + 1})
    return build_manifest(pd.DataFrame(rows), folder, "rendered")


def draw_image(name: str, person: int, camera: int, seed: int) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: blocks of the person's colours, tinted by the camera, with noise of its own.

    Every second person is a near copy of the one before, so that a looser radius joins the two.
    """
    blocks = integers(f"person/{person // 2}", (8, 4, 3), 0, 256, seed)
    if person % 2:
        blocks = (5 * blocks + 3 * integers(f"person/{person}/own", (8, 4, 3), 0, 256, seed)) // 8
    tint = integers(f"camera/{camera}", (3,), -24, 25, seed)
    pixels = blocks.repeat(HEIGHT // 8, axis=0).repeat(WIDTH // 4, axis=1) + tint
    pixels += integers(f"image/{name}", (8, 4, 3), -40, 41, seed).repeat(8, axis=0).repeat(8, axis=1)
    pixels += integers(f"noise/{name}", (HEIGHT, WIDTH, 3), -20, 21, seed)
    return pixels.clip(0, 255).astype(np.uint8)


def _images() -> Iterator[tuple[str, int, int, int]]:
    """Split, person, camera and number of every image."""
    for split, first, counts in (("train", 100, TRAIN), ("source", 200, SOURCE)):
        for place, count in enumerate(counts):
            for number in range(count):
                yield split, first + place, 0 if place == 7 else (number + place) % CAMERAS, number
    for place, count in enumerate(TEST):
        person = 300 + place
        for number in range(2):
            yield "query", person, (number + place) % CAMERAS, number
        for number in range(count):
            yield "gallery", person, (number + place) % CAMERAS, number
    for number in range(5):
        yield "gallery", 0, number % CAMERAS, number
    for number in range(3):
        yield "junk", -1, number % CAMERAS, number
