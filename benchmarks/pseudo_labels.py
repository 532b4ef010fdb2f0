"""Seconds and memory of pseudo-labelling: `python -m benchmarks.pseudo_labels --n 12936`."""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from types import TracebackType

import numpy as np
import psutil
import torch

from core.clustering import dbscan
from core.jaccard import jaccard_distance
from core.neighbors import knn

PEOPLE_PER_IMAGE = 751 / 12936  # as in Market-1501
TIE = 1e-6  # a pair so near to eps is within it or not by rounding


def private_bytes() -> int:
    """Resident memory of this process, less the files that are mapped into it."""
    used = psutil.Process().memory_info()
    return int(used.rss - used.shared)


class PeakMemory:
    """Largest private memory, in bytes above ``start`` (by default that at entry), while the block runs."""

    def __init__(self, start: int | None = None) -> None:
        self._start = start

    def __enter__(self) -> PeakMemory:
        self._above = private_bytes() if self._start is None else self._start
        self._stop = threading.Event()
        self.bytes = 0
        self._look()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, private_bytes() - self._above)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._look()
        self._stop.set()
        self._thread.join()


def people_features(n: int, d: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Unit features (N, D) float32 of people in uneven numbers, blurred by ``spread``.

    The variation lies in few directions of falling strength and differs between images, as it does
    in trained features: neighbourhoods overlap and some images are near to very many.
    """
    people = max(2, round(n * PEOPLE_PER_IMAGE))
    share = rng.exponential(size=people) + 0.15
    return features_of(rng.choice(people, size=n, p=share / share.sum()), d, spread, rng)


def features_of(person: np.ndarray, d: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Unit features (N, D) float32 of ``person`` (N,), as ``people_features`` says."""
    n, people = len(person), int(person.max()) + 1
    strength = np.linspace(1, 0.1, 24, dtype=np.float32)
    centres = rng.standard_normal((people, 24), dtype=np.float32)
    noise = rng.standard_normal((n, 24), dtype=np.float32)
    latent = (centres[person] + spread * np.exp(0.3 * rng.standard_normal((n, 1))) * noise) * strength
    mixing = rng.standard_normal((24, d), dtype=np.float32) / np.sqrt(24, dtype=np.float32)
    features = np.empty((n, d), dtype=np.float32)
    for start in range(0, n, 256):
        rows = slice(start, start + 256)
        block = latent[rows].astype(np.float32) @ mixing
        block += 0.1 * rng.standard_normal(block.shape, dtype=np.float32)
        np.maximum(block + 0.3, 0, out=block)
        features[rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return features


def measure(n: int, d: int, spread: float, k1: int, k2: int, eps: float, backend: str) -> str:
    """One line of the report: k-NN alone, then what Jaccard and DBSCAN add to it, and the peak."""
    features = torch.from_numpy(people_features(n, d, spread, np.random.default_rng(0)))
    knn(features[:2000], k1, backend=backend)  # loads libraries and starts their threads
    with PeakMemory() as peak:
        start = time.perf_counter()
        neighbors = knn(features, k1, backend=backend)[1]
        searched = time.perf_counter()
        graph = jaccard_distance(features, k1, k2, neighbors=neighbors, limit=eps)
        weighed = time.perf_counter()
        labels = dbscan(graph, eps, min_samples=4)
        ended = time.perf_counter()
    ratio = (ended - start) / (searched - start)
    ties = np.count_nonzero(graph.data > eps - TIE) // 2  # those beyond eps by rounding are not stored
    return (
        f"n {n:6d}  d {d}  spread {spread:.1f}  knn {searched - start:6.2f} s  "
        f"jaccard {weighed - searched:6.2f} s  dbscan {ended - weighed:5.2f} s  "
        f"total {ended - start:6.2f} s = {ratio:.2f} x knn  "
        f"peak {peak.bytes / 1e6:6.0f} MB above features = {peak.bytes / n / 1e3:.1f} kB/image  "
        f"pairs/image {graph.nnz / n:.0f}  at eps {ties}  clusters {labels.max() + 1}"
    )


def main() -> None:
    """Each size and spread is measured in a process of its own, so that peaks do not mix."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[12936], help="images, one or more sizes")
    parser.add_argument("--d", type=int, default=2048, help="feature dimensions")
    parser.add_argument(
        "--spread",
        type=float,
        nargs="+",
        default=[0.4, 1.4],
        help="variation of a person: 0.4 is well clustered, 1.4 hardly",
    )
    parser.add_argument("--k1", type=int, default=30)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--eps", type=float, default=0.6)
    parser.add_argument("--backend", default="auto", choices=["auto", "faiss", "torch"])
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, backend {options.backend}", flush=True)
    context = multiprocessing.get_context("spawn")
    for n in options.n:
        for spread in options.spread:
            arguments = (n, options.d, spread, options.k1, options.k2, options.eps, options.backend)
            with context.Pool(1) as pool:
                print(pool.apply(measure, arguments), flush=True)


if __name__ == "__main__":
    main()
