"""How the profile `controlled_real` was set without a test label of CUHK03: `python -m benchmarks.real_people --table`.

Run it from a folder where `python -m pipeline sweep --params params.cuhk03.yaml` has made data and warm starts.
`--table` tables what there is into docs/calibration.md; the table of a part that was not run here stays. The settings
are in real_people.yaml.

labels: no label at all. The training images are clustered twice, from the images and from their mirror images. A good
    setting clusters many of them, and the same way both times.
heldout: the training people are split; methods train on the images of some, without ids, and are tested on the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor

from core import distributed
from core.clustering import dbscan
from core.errors import UserError
from core.files import write_csv, write_text
from core.images import ImageStore, load_images
from core.jaccard import jaccard_distance
from core.manifest import Manifest, read_manifest
from core.method import embed_all
from core.rng import Streams
from core.validation import read_mapping
from evaluation.audit import audit
from pipeline.assemble import Sizes, build_method
from pipeline.initial import read_initial
from pipeline.jobs import CACHE, ROOT, Job, data_folder, initial_folder
from pipeline.records import read_result
from pipeline.settings import resolve_run
from reports.readme import replace_between
from reports.text import NONE, markdown_table, number

SETTINGS = Path(__file__).with_suffix(".yaml")
PAGE = ROOT / "docs/calibration.md"
FOLDER = ROOT / "results/calibration/real_people"
FLOOR = "warm_start"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when a sweep failed; its jobs' logs are below its folder."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--part", choices=("labels", "heldout"), nargs="+", default=[], help="what to run")
    arguments.add_argument("--setting", nargs="+", help="some settings of `heldout` only, by their titles")
    arguments.add_argument("--table", action="store_true", help="table what there is")
    options = arguments.parse_args(argv)
    written = read_mapping(SETTINGS)
    torch.set_num_threads(written["threads"])
    if "labels" in options.part:
        for start in written["labels"]["starts"]:
            write_csv(FOLDER / f"labels-{start}.csv", agreement(start, written))
    well = True
    if "heldout" in options.part:
        for title in options.setting or written["heldout"]["settings"]:
            well &= train_on_some(title, written)
    if options.table:
        text = PAGE.read_text()
        for name, body in (("labels", labels_table(written)), ("heldout", heldout_table(written))):
            if body:
                text = replace_between(text, f"real-{name}", body, "python -m benchmarks.real_people --table")
        write_text(PAGE, text)
    return int(not well)


def agreement(start: str, written: Mapping[str, Any]) -> pd.DataFrame:
    """(k1, eps, share of clustered images, clusters, largest, agreement) of the first labels from a start."""
    views = [embedded(start, written, mirrored) for mirrored in (False, True)]
    rows = []
    for k1, k2 in written["labels"]["k1_k2"]:
        graphs = [jaccard_distance(view, k1, k2) for view in views]
        for eps in written["labels"]["eps"]:
            labels, again = (dbscan(graph, eps, written["labels"]["min_samples"]) for graph in graphs)
            clustered = labels[labels >= 0]
            same = audit(labels, np.zeros(len(labels), int), previous=again)["churn"]
            rows.append(
                {
                    "k1": k1,
                    "k2": k2,
                    "eps": eps,
                    "clustered": len(clustered) / len(labels),
                    "clusters": labels.max(initial=-1) + 1,
                    "largest": np.bincount(clustered, minlength=1).max() / len(labels),
                    "agreement": 1 - same if len(clustered) else np.nan,
                }
            )
    return pd.DataFrame(rows)


def embedded(start: str, written: Mapping[str, Any], mirrored: bool) -> Tensor:
    """Features (N, D) of the training images, or of their mirror images, by the weights of a start."""
    run = resolve_run(FLOOR, start, written["profile"], backbone=written["backbone"])
    initial = read_initial(initial_folder(start, run.backbone, 0))
    method = build_method(run, Sizes(1), Streams(0), initial).eval()
    size = run.config.input
    pixels = torch.from_numpy(load_images(read_manifest(data_folder(start)), "train", size.height, size.width, CACHE))
    group = distributed.start("cpu")
    store = ImageStore(pixels.flip(-1) if mirrored else pixels, group.device)
    return embed_all(method, store, run.config, (initial.mean, initial.std), group)["feature"]


def train_on_some(title: str, written: Mapping[str, Any]) -> bool:
    """Run what is missing of one setting of `heldout`; True when all of it ended well."""
    part = written["heldout"]
    start, place = part["start"], FOLDER / title.replace(" ", "_")
    held_out(read_manifest(data_folder(start)), part["people"]).write(place / "data" / start)
    if not (place / "initial").exists():
        (place / "initial").symlink_to(Path("initial").resolve())
    params = {
        "profile": written["profile"],
        "datasets": [start],
        "backbones": {"cnn": written["backbone"]},
        "runs": {"cnn": part["runs"]},
        "seeds": [0],
        "threads": written["threads"],
        "launch": "python",
        "data_root": "nowhere",
        "rendered": {"size": "medium"},
        "overrides": part["settings"][title],
    }
    write_text(place / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    print(f"{title}: {', '.join(part['runs'])} in {place}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline", "sweep", "--device", "cpu"]
    return subprocess.run(command, cwd=place, env=environment, check=False).returncode == 0


def held_out(manifest: Manifest, people: int) -> Manifest:
    """The training people alone: the last ``people`` of them are tested, the others train.

    One image of a tested person under each camera is a query. The dataset's own test images are not in it.
    """
    table = manifest.table[manifest.table["split"].isin(("train", "source"))].copy()
    train = table["split"] == "train"
    tested = train & table["person_id"].isin(sorted(table["person_id"][train].unique())[-people:])
    first = ~table[tested].duplicated(["person_id", "camera_id"])
    table.loc[tested, "split"] = np.where(first, "query", "gallery")
    return replace(manifest, table=table, fingerprint=f"{manifest.fingerprint[:48]}-held-out-{people}")


def labels_table(written: Mapping[str, Any]) -> str:
    """The first labels of every start that was looked at."""
    lines = []
    for start in written["labels"]["starts"]:
        if (FOLDER / f"labels-{start}.csv").is_file():
            for row in pd.read_csv(FOLDER / f"labels-{start}.csv").to_dict("records"):
                shares = {name: number(100 * row[name]) for name in ("clustered", "largest", "agreement")}
                first = {name: f"{row[name]:g}" for name in ("k1", "k2", "eps")}
                lines.append({"start": start, **first, "clusters": f"{row['clusters']:.0f}", **shares})
    return markdown_table(lines) if lines else ""


def heldout_table(written: Mapping[str, Any]) -> str:
    """mAP on the held-out people in percent, and the last labels, of every setting that was run.

    Links across cameras: the share of pairs of images in one cluster whose two are of different cameras.
    """
    part, lines = written["heldout"], []
    for title in part["settings"]:
        line = {"setting": title, **dict.fromkeys(part["runs"], NONE)}
        ran = False
        for run in part["runs"]:
            job = Job(run, part["start"], written["backbone"], 0)
            folder = FOLDER / title.replace(" ", "_") / job.evaluated
            if (folder / "result.json").is_file():
                ran = True
                score = read_result(folder).selection.last.figure("mAP")
                line[run] = number(np.nan if score is None else 100 * score)
                last = pd.read_csv(folder / "curves.csv").iloc[-1]
                if run != FLOOR:
                    line |= {"clusters": f"{last['clusters']:.0f}", "outliers": f"{last['outliers']:.0f}"}
                    line["links across cameras"] = number(100 * last["audit_cross_camera_link_share"])
        lines += [line] if ran else []
    return markdown_table(lines) if lines else ""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
