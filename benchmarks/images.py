"""Images per second from memory and from a file that is not in memory: `python -m benchmarks.images --folder DIR`.

The same batches are taken from a store in memory, from a mapped file, and from a mapped file that is read ahead. Before
each of the last two, the system is told to forget the file. `--work`: how long another device computes in a step.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from core.images import ImageStore, reading_ahead

SIZE = (3, 256, 128)
CPU = torch.device("cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each store: images per second, and its share of the store in memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".cache/benchmark"), help="on the disk to be measured")
    parser.add_argument(
        "--images", type=int, default=40_000, help="of 256 x 128 pixels, 98 kB each; far more than all steps take"
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--work", type=float, nargs="+", default=[0, 100, 300], help="milliseconds of a step")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # a batch is copied by one
    file = options.folder / f"images-{options.images}.npy"
    write(file, options.images)
    try:
        for work in options.work:
            compare(file, options.images, options.batch, options.steps, work / 1000)
    finally:
        file.unlink()
    return 0


def write(file: Path, images: int) -> None:
    """A file of random pixels, written to its disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (images, *SIZE)})
        for _ in tqdm(range(images), "writing", leave=False):
            out.write(rng.bytes(int(np.prod(SIZE))))
        out.flush()
        os.fsync(out.fileno())


def compare(file: Path, images: int, batch: int, steps: int, work: float) -> None:
    """One line for each store, over the same batches."""
    drawn = np.random.default_rng(1).permutation(images)[: batch * steps]
    rows = list(torch.from_numpy(drawn.reshape(-1, batch)))
    in_memory = np.load(file, mmap_mode="r")[drawn]
    resident = rate(ImageStore(in_memory, CPU), list(torch.randperm(batch * steps).split(batch)), work, ahead=False)
    del in_memory
    print(f"{work * 1000:.0f} ms a step, {batch} images a batch: in memory {resident:,.0f} images/s", end="")
    for name, ahead in (("file", False), ("file, read ahead", True)):
        forget(file)
        found = rate(ImageStore(np.load(file, mmap_mode="c"), CPU), rows, work, ahead)
        print(f"; {name} {found:,.0f} ({found / resident:.2f})", end="")
    print(flush=True)


def forget(file: Path) -> None:
    """Have the system drop what it holds of the file; no process may have it mapped."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(store: ImageStore, rows: Sequence[torch.Tensor], work: float, ahead: bool) -> float:
    """Images per second of taking all batches, with ``work`` seconds of another device's time after each."""
    batches: Iterator[torch.Tensor] = reading_ahead(rows, store) if ahead else iter(rows)
    start = time.perf_counter()
    for wanted in batches:
        store.batch(wanted)
        time.sleep(work)
    return sum(len(wanted) for wanted in rows) / (time.perf_counter() - start)


if __name__ == "__main__":
    raise SystemExit(main())
