"""A rendered world on disk: two trees in the exact layout and naming of Market-1501, and a record of what they are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from core.files import write_json
from datasets.rendered.renderer import Renderer
from datasets.rendered.settings import RENDERER_VERSION
from datasets.rendered.table import SPLITS, World, draw_world

MARKET = "Market-1501-v15.09.15"
SOURCE_TREE = f"source/{MARKET}"
RECORD = "rendered.json"
JPEG_QUALITY = 92
_FOLDERS = {
    "source": f"{SOURCE_TREE}/bounding_box_train",
    "train": f"{MARKET}/bounding_box_train",
    "query": f"{MARKET}/query",
    "gallery": f"{MARKET}/bounding_box_test",
    "distractor": f"{MARKET}/bounding_box_test",
    "junk": f"{MARKET}/bounding_box_test",
}
# Pixels drawn at a time: 64 images of 128x64 for a CPU thread; a GPU waits for kernels to be launched with so few.
_CHUNK = {"cpu": 2**19, "cuda": 2**22}


def image_paths(world: World) -> list[str]:
    """Path of every image below the output folder, in table order: its split's folder, ``0002_c1s1_000451_03.jpg``."""
    number = world.cameras["number"].to_numpy()[world.images["camera"]]
    columns = (world.images[name].to_numpy() for name in ("split", "pid", "sequence", "frame", "box"))
    return [
        f"{_FOLDERS[SPLITS[split]]}/{_person(pid)}_c{camera}s{sequence}_{frame:06d}_{box:02d}.jpg"
        for camera, split, pid, sequence, frame, box in zip(number, *columns, strict=True)
    ]


def _person(pid: int) -> str:
    return "-1" if pid < 0 else f"{pid:04d}"


def write(out: Path, size: str = "small", world: int = 0, device: str = "cpu", progress: bool = True) -> dict[str, Any]:
    """Draw world number `world` and write it under `out`; the same arguments write the same bytes again.

    Returns (and writes to ``rendered.json``) size, world, fingerprint of the table, renderer version, image size and
    counts, and the names of both trees relative to `out`. A file of another world in the way is an error.
    """
    drawn = draw_world(size, world)
    record = describe(drawn, size)
    _refuse_other_files(out, drawn)
    paths = [out / path for path in image_paths(drawn)]
    for folder in sorted({path.parent for path in paths}):
        folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(paths), desc=f"rendering {size} world {world}", unit="image", disable=not progress)
    with bar, ThreadPoolExecutor() as encoders:
        for rows, images in render_all(Renderer(drawn, device)):
            for _ in encoders.map(_write_jpeg, [paths[row] for row in rows], images):
                bar.update()
    write_json(out / RECORD, record)
    return record


def render_all(renderer: Renderer, count: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, images) chunk by chunk in table order; on a CPU several chunks at a time, each on one thread.

    Many small tensors are drawn: a chunk per thread is faster than threads inside every operation.
    """
    size = renderer.world.size
    step = max(1, _CHUNK[renderer.device.type] // (size.height * size.width))
    total = len(renderer.world.images) if count is None else count
    chunks = [np.arange(start, min(start + step, total)) for start in range(0, total, step)]

    def one(rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return renderer.render(rows).cpu().numpy()

    if renderer.device.type != "cpu":
        yield from ((rows, one(rows)) for rows in chunks)
        return
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from zip(chunks, pool.map(one, chunks), strict=True)
    finally:
        torch.set_num_threads(threads)


def describe(world: World, size: str) -> dict[str, Any]:
    """What provenance needs to know of a world."""
    counts = world.images["split"].value_counts()
    return {
        "size": size,
        "world": world.seed,
        "fingerprint": world.fingerprint,
        "renderer_version": RENDERER_VERSION,
        "height": world.size.height,
        "width": world.size.width,
        "images": {name: int(counts.get(code, 0)) for code, name in enumerate(SPLITS)},
        "target": MARKET,
        "source": SOURCE_TREE,
    }


def _refuse_other_files(out: Path, world: World) -> None:
    """Images that this world does not have would silently join its splits."""
    expected = set(image_paths(world))
    found = {path.relative_to(out).as_posix() for path in out.glob("**/*.jpg")}
    if found - expected:
        raise FileExistsError(
            f"{out} holds {len(found - expected)} images that are not of this world, such as {min(found - expected)}; "
            f"empty the folder or choose another one"
        )


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    path.write_bytes(buffer.getvalue())
