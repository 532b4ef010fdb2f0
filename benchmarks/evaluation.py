"""Seconds and memory of scoring a Market-1501-sized ranking: `python -m benchmarks.evaluation`."""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from benchmarks.pseudo_labels import PeakMemory
from evaluation.ranking import block_rows, evaluate_features


def random_people(
    images: int, people: int, dimensions: int, noise: float, rng: np.random.Generator, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit features (N, D), ids (N,) and cameras (N,) of noisy copies of the people's centres."""
    ids = rng.integers(1, people + 1, images)
    features = centres[ids - 1] + noise * rng.standard_normal((images, dimensions), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, ids, rng.integers(0, 6, images)


def product_seconds(query: np.ndarray, gallery: np.ndarray, repeats: int) -> float:
    """Best of ``repeats`` of what no ranking can do without: query x gallery, in the blocks of the evaluation."""
    step = block_rows(len(gallery))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for first in range(0, len(query), step):
            np.matmul(query[first : first + step], gallery.T)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Print one line: sizes, seconds, the peak memory above what the features take, seconds of the product alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=15913)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--people", type=int, default=750)
    parser.add_argument(
        "--noise", type=float, default=3.6, help="of an image against its person: 3.6 gives a mAP near 0.5"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((options.people, options.dimensions), dtype=np.float32)
    drawn = (options.people, options.dimensions, options.noise, rng, centres)
    query, query_ids, query_cameras = random_people(options.queries, *drawn)
    gallery, gallery_ids, gallery_cameras = random_people(options.gallery, *drawn)
    seconds = []
    product = product_seconds(query, gallery, options.repeats)
    with PeakMemory() as peak:
        for _ in range(options.repeats):
            start = time.perf_counter()
            scores = evaluate_features(query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras)
            seconds.append(time.perf_counter() - start)
    print(
        f"{options.queries} x {options.gallery} x {options.dimensions}, "
        f"{torch.get_num_threads()} threads: "
        f"{min(seconds):.2f} s best of {options.repeats} (all {[round(s, 2) for s in seconds]}), "
        f"{peak.bytes / 1e9:.2f} GB above the features, mAP {scores.mAP:.3f}; "
        f"the product alone {product:.2f} s"
    )


if __name__ == "__main__":
    main()
