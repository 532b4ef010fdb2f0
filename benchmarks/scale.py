"""Seconds and memory of labelling and scoring up to a million images: `python -m benchmarks.scale --images 10000`.

Every size, dimension and search is measured in a process of its own, and is a row of benchmarks/scale.csv once it is
done: a run may be interrupted, and the same command goes on. `--table` writes the rows into docs/scale.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_rand_score

from benchmarks.pseudo_labels import PeakMemory, features_of, private_bytes
from core.approximate import PROBES, SEARCHES, cells_of, neighbor_lists
from core.clustering import dbscan
from core.files import write_text
from core.jaccard import jaccard_distance
from evaluation.ranking import evaluate_features
from pipeline.jobs import ROOT
from reports.readme import replace_between
from reports.text import NONE, markdown_table, number

ROWS = Path(__file__).with_suffix(".csv")
PAGE, PLOT = ROOT / "docs/scale.md", ROOT / "docs/scale.svg"
LABELS = ROOT / ".cache/scale"  # of exact searches, to compare the others with
COMMAND = "python -m benchmarks.scale --table"
PHASES = ("knn", "jaccard", "dbscan", "evaluation")
PER_PERSON, SPREAD, CAMERAS = 20, 0.4, 6
K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.6, 4
KEY = ["images", "dimensions", "search", "threads"]
# What the page shows, measured or not: sizes by dimension and search.
PLAN = {
    (256, "exact"): (10_000, 30_000, 100_000, 300_000, 1_000_000),
    (256, "ivf"): (10_000, 30_000, 100_000, 300_000, 1_000_000),
    (256, "hnsw"): (10_000, 30_000, 100_000, 300_000, 1_000_000),
    (2048, "exact"): (10_000, 32_621, 100_000),
    (2048, "ivf"): (10_000, 32_621, 100_000, 300_000),
}
LARGER = (10_000_000, 100_000_000)
DAY, GIGABYTE = 86_400, 1e9
MEMORY = 256 * GIGABYTE  # of one machine of the extrapolation, whose cores are those that measured


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for and has no row yet, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000], help="numbers of images")
    parser.add_argument("--dim", type=int, nargs="+", default=[256], help="feature dimensions")
    parser.add_argument(
        "--search", nargs="+", choices=SEARCHES, default=["exact", "ivf"], help="how neighbours are found"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; start with OMP_NUM_THREADS set to as many")
    parser.add_argument(
        "--queries", type=int, default=2000, help="queries that evaluation ranks; the rest is the gallery"
    )
    parser.add_argument(
        "--mapped", type=Path, metavar="DIR", help="keep the features in a file there, mapped into memory"
    )
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file of rows")
    parser.add_argument("--table", action="store_true", help="write docs/scale.md and its plot; measure nothing")
    options = parser.parse_args(argv)
    if options.table:
        write_page(read_rows(options.rows))
        return 0
    for dimensions in options.dim:
        for images in sorted(options.images):
            for search in sorted(options.search, key=SEARCHES.index):  # the exact labels first
                key = (images, dimensions, search, options.threads)
                if key in read_rows(options.rows).set_index(KEY).index:
                    print(f"{key}: is in {options.rows}")
                    continue
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    row = pool.apply(measure, (*key, options.queries, options.mapped))
                pd.DataFrame([row]).to_csv(options.rows, mode="a", header=not options.rows.exists(), index=False)
                print(row, flush=True)
    return 0


def read_rows(path: Path) -> pd.DataFrame:
    """The rows measured so far."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEY)


def measure(
    images: int, dimensions: int, search: str, threads: int, queries: int, mapped: Path | None
) -> dict[str, Any]:
    """One row: seconds of each phase, the most bytes above the features up to its end, and what came out."""
    torch.set_num_threads(threads)
    person = np.random.default_rng(0).permutation(images) // PER_PERSON
    features = features_of(person, dimensions, SPREAD, np.random.default_rng(1))
    if mapped is not None:
        features = in_a_file(features, mapped / f"features-{images}-{dimensions}.npy")
    neighbor_lists(features[:2000], K1, search)  # loads libraries and starts their threads
    row: dict[str, Any] = dict(zip(KEY, (images, dimensions, search, threads), strict=True))
    start = private_bytes()
    with phase(row, "knn", start):
        lists, recall = neighbor_lists(features, K1, search)
    with phase(row, "jaccard", start):
        graph = jaccard_distance(features, K1, K2, neighbors=lists, limit=EPS)
    with phase(row, "dbscan", start):
        labels = dbscan(graph, EPS, MIN_SAMPLES)
    row |= {"recall": recall, "pairs_per_image": graph.nnz / images, "clusters": int(labels.max()) + 1}
    row |= {
        "ari_exact": agreement(labels, images, dimensions, search),
        "ari_people": adjusted_rand_score(person, labels),
    }
    del graph, lists
    cameras = np.random.default_rng(2).integers(0, CAMERAS, images)
    asked = min(queries, images // 2)
    with phase(row, "evaluation", start):
        scores = evaluate_features(
            features[:asked], features[asked:], person[:asked], person[asked:], cameras[:asked], cameras[asked:]
        )
    return row | {"queries": asked, "mAP": scores.mAP, "mapped": mapped is not None}


@contextmanager
def phase(row: dict[str, Any], name: str, start: int) -> Iterator[None]:
    """Note the block's seconds, and the most memory above ``start`` while it ran."""
    began = time.perf_counter()
    with PeakMemory(start) as peak:
        yield
    row[f"seconds_{name}"] = round(time.perf_counter() - began, 3)
    row[f"peak_{name}"] = peak.bytes


def in_a_file(features: np.ndarray, path: Path) -> np.ndarray:
    """The features mapped from a file, which is only read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, features)
    return np.load(path, mmap_mode="r")


def agreement(labels: np.ndarray, images: int, dimensions: int, search: str) -> float | None:
    """Adjusted Rand index with the labels of the exact search, which are kept; None where that was not run."""
    kept = LABELS / f"{images}-{dimensions}.npy"
    if search == "exact":
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, labels)
    return float(adjusted_rand_score(np.load(kept), labels)) if kept.exists() else None


def write_page(rows: pd.DataFrame) -> None:
    """The tables of docs/scale.md and its plot."""
    text = PAGE.read_text()
    for name, body in (("measured", measured(rows)), ("larger", larger(rows))):
        text = replace_between(text, name, body, COMMAND)
    write_text(PAGE, text)
    draw(rows)


def measured(rows: pd.DataFrame) -> str:
    """A line for every size that is planned, and for each other one that was measured."""
    planned = [(dim, search, images) for (dim, search), sizes in PLAN.items() for images in sizes]
    other = [key for key in zip(rows["dimensions"], rows["search"], rows["images"], strict=True) if key not in planned]
    lines = []
    for dimensions, search, images in sorted(
        {*planned, *other}, key=lambda key: (key[0], SEARCHES.index(key[1]), key[2])
    ):
        found = rows[(rows["dimensions"] == dimensions) & (rows["search"] == search) & (rows["images"] == images)]
        line = {"D": dimensions, "search": search, "images": f"{images:,}"}
        lines += [line | cells(row) for _, row in found.iterrows()] or [line | {"threads": "not run"}]
    return markdown_table(pd.DataFrame(lines).fillna(NONE))


def cells(row: pd.Series) -> dict[str, str]:
    """One measurement as the table prints it."""
    return {
        "threads": str(row["threads"]),
        **{f"{name} s": number(row[f"seconds_{name}"]) for name in PHASES},
        **{f"{name} GB": number(row[f"peak_{name}"] / GIGABYTE, ".2f") for name in PHASES},
        "recall": number(row["recall"], ".4f"),
        "ARI with exact": number(row["ari_exact"], ".4f"),
        "pairs per image": number(row["pairs_per_image"]),
        "queries": str(row["queries"]),
    }


def larger(rows: pd.DataFrame) -> str:
    """10 and 100 million images by the constants of the largest measured size of each search, D = 256."""
    lines = []
    for search in ("exact", "ivf"):
        found = rows[(rows["search"] == search) & (rows["dimensions"] == 256)].sort_values("images")
        lines += [extrapolated(found.iloc[-1], images) for images in LARGER if len(found)]
    return markdown_table(lines) if lines else "Not run."


def extrapolated(row: pd.Series, images: int) -> dict[str, str]:
    """What ``images`` would take where k-NN grows with its FLOP, and the rest, and memory, with the images.

    ``machines``: so many that, if the work is shared without loss, a day and the MEMORY of each are enough.
    """
    ratio, dimensions = images / row["images"], int(row["dimensions"])
    flop = knn_flop(images, dimensions, row["search"])
    rate = knn_flop(row["images"], dimensions, row["search"]) / row["seconds_knn"]
    seconds = flop / rate + ratio * (row["seconds_jaccard"] + row["seconds_dbscan"])
    held = 4 * images * dimensions
    beside = ratio * row[[f"peak_{name}" for name in PHASES[:3]]].max()
    return {
        "images": f"{images:,}",
        "search": row["search"],
        "constants from": f"{row['images']:,} images, {row['threads']} threads",
        "k-NN FLOP": f"{flop:.1e}",
        "GFLOP/s": number(rate / 1e9),
        "days": number(seconds / DAY, ".2f"),
        "features GB": number(held / GIGABYTE, ".0f"),
        "beside them GB": number(beside / GIGABYTE, ".0f"),
        "machines": str(max(int(np.ceil(seconds / DAY)), int(np.ceil((held + beside) / MEMORY)))),
    }


def knn_flop(images: int, dimensions: int, search: str) -> float:
    """Multiplications and additions of the search: all pairs; or all cells and the images of PROBES of them."""
    compared = images if search == "exact" else cells_of(images) + PROBES * images / cells_of(images)
    return 2.0 * images * compared * dimensions


def draw(rows: pd.DataFrame) -> None:
    """Seconds of labelling against images, both in powers of ten."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "scale"  # the same rows give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for (dimensions, search, threads), found in rows.groupby(["dimensions", "search", "threads"]):
        line = found.sort_values("images")
        seconds = line[[f"seconds_{name}" for name in PHASES[:3]]].sum(axis=1)
        axes.plot(line["images"], seconds, marker="o", label=f"{search}, D = {dimensions}, {threads} threads")
    axes.set(xscale="log", yscale="log", xlabel="images", ylabel="seconds of k-NN, Jaccard and DBSCAN", xlim=(5e3, 2e6))
    if len(rows):
        axes.legend()
    figure.savefig(PLOT, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
