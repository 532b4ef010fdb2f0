"""How the small benchmark's settings were chosen: `python -m benchmarks.calibration --jobs 2` runs and tables it.

Each setting of calibration.yaml is a sweep in a folder of its own below results/calibration, on worlds that no
leaderboard shows. What is there is not run again. `--table` tables what there is into docs/calibration.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from core.config import merge
from core.errors import UserError
from core.files import write_text
from core.validation import read_mapping
from pipeline.jobs import ROOT, Job
from pipeline.params import DRAWN
from pipeline.records import read_result
from reports.readme import replace_between
from reports.text import markdown_table, number, signed

SETTINGS = Path(__file__).with_suffix(".yaml")
PAGE = ROOT / "docs/calibration.md"
FOLDER = ROOT / "results/calibration"
PARTS = ("sizes", "lengths", "search")
FLOOR, CEILING = "warm_start", "supervised"
SHAPES = ("input", "augment")  # what a warm start shares with its training


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when a sweep failed; its jobs' logs are below its folder."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what to run")
    arguments.add_argument(
        "--jobs", type=int, default=2, help="runs at once, each with the threads of calibration.yaml"
    )
    arguments.add_argument("--worlds", type=int, nargs="+", help="some of a part's worlds only")
    arguments.add_argument("--setting", nargs="+", help="some of a part's settings only, by their titles")
    arguments.add_argument("--table", action="store_true", help="table what there is; run nothing")
    options = arguments.parse_args(argv)
    written = read_mapping(SETTINGS)
    failed = False
    if not options.table:
        for name in options.part:
            part = written[name]
            for title in options.setting or part["settings"]:
                failed |= not sweep(written, part, title, options.worlds or part["worlds"], options.jobs)
    text = PAGE.read_text()
    for name in PARTS:
        found = collected(written, written[name])
        if len(found):  # a clone without runs keeps what the page says
            text = replace_between(text, name, TABLES[name](found, written), "python -m benchmarks.calibration --table")
    write_text(PAGE, text)
    return int(failed)


def sweep(written: Mapping[str, Any], part: Mapping[str, Any], title: str, worlds: Sequence[int], jobs: int) -> bool:
    """Run what is missing of one setting; True when all of it ended well.

    Worlds, and the warm start of a size of image, are made once for all settings: a length is the training's alone.
    """
    setting = part["settings"][title]
    others = [run for run in part["runs"] if run != FLOOR]
    well = True
    for at, runs in ((start_of(setting), [FLOOR]), (setting, others)):
        folder, params = place(at), changed(at)
        folder.mkdir(parents=True, exist_ok=True)
        params |= {"datasets": [f"{DRAWN}-{world}" for world in worlds], "runs": {"cnn": runs, "vit": []}}
        params |= {"seeds": [0], "threads": written["threads"]}
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        share(folder, at)
        print(f"{title}: {', '.join(runs)} in {folder.relative_to(ROOT)}", flush=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pipeline", "sweep", "--device", "cpu", "--jobs", str(jobs)]
        well &= subprocess.run(command, cwd=folder, env=environment, check=False).returncode == 0
    return well


def start_of(setting: Mapping[str, Any]) -> dict[str, Any]:
    """The setting whose warm start this one uses: the same without its schedule and rate."""
    overrides = {key: value for key, value in (setting.get("overrides") or {}).items() if key in SHAPES}
    return {**setting, "overrides": overrides}


def changed(setting: Mapping[str, Any]) -> dict[str, Any]:
    """params.yaml with a setting's size and overrides."""
    params = read_mapping(ROOT / "params.yaml")
    size = setting.get("size", params["rendered"]["size"])
    overrides = merge([params["overrides"], setting.get("overrides") or {}])
    return {**params, "rendered": {"size": size}, "overrides": overrides}


def place(setting: Mapping[str, Any]) -> Path:
    """The folder of a setting's runs: parts share the runs of equal settings."""
    params = changed(setting)
    flat = pd.json_normalize(params["overrides"]).to_dict("records")
    told = [f"{key}={value}" for key, value in (flat[0] if flat else {}).items()]
    return FOLDER / "-".join([params["rendered"]["size"], *told])


def share(folder: Path, setting: Mapping[str, Any]) -> None:
    """Link what settings share into a setting's folder: the worlds of its size, and the warm starts of its images."""
    start = place(start_of(setting)).name
    for name, shared in (("data", f"data-{changed(setting)['rendered']['size']}"), ("initial", f"initial-{start}")):
        (FOLDER / shared).mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            (folder / name).symlink_to(FOLDER / shared)


def collected(written: Mapping[str, Any], part: Mapping[str, Any]) -> pd.DataFrame:
    """(setting, run, world, mAP in percent, seconds) of the results that there are."""
    backbone = read_mapping(ROOT / "params.yaml")["backbones"]["cnn"]
    rows = []
    for title, setting in part["settings"].items():
        for run in part["runs"]:
            for world in part["worlds"]:
                job = Job(run, f"{DRAWN}-{world}", backbone, 0)
                folder = place(start_of(setting) if run == FLOOR else setting) / job.evaluated
                if (folder / "result.json").is_file():
                    record = read_result(folder)
                    score = record.selection.last.figure("mAP")
                    value = np.nan if score is None else 100 * score
                    rows.append((title, run, world, value, record.cost.seconds_total))
    return pd.DataFrame(rows, columns=["setting", "run", "world", "mAP", "seconds"])


def grid(found: pd.DataFrame, title: str) -> pd.DataFrame:
    """mAP of one setting: a row per world, a column per run."""
    return found[found["setting"] == title].pivot_table(index="world", columns="run", values="mAP")


def sizes_table(found: pd.DataFrame, written: Mapping[str, Any]) -> str:
    """What each size and length costs, and how far worlds scatter under it; each cell over the worlds that it has."""
    base, runs = written["baseline"], written["sizes"]["runs"]
    lines = []
    for title in written["sizes"]["settings"]:
        maps = grid(found, title).reindex(columns=runs)
        if maps[base].isna().all():
            continue
        seconds = found[(found["setting"] == title) & (found["run"] == base)]["seconds"]
        line = {"setting": title, **{run: cell(maps[run]) for run in runs}}
        line["start from .. to"] = f"{maps[FLOOR].min():.1f} .. {maps[FLOOR].max():.1f}"
        for run in runs:
            difference = (maps[run] - maps[base]).dropna()
            if run not in (FLOOR, CEILING, base):
                line[f"{run} - {base}: mean, sd"] = f"{signed(difference.mean())}, {number(difference.std(ddof=1))}"
        line[f"s per {base}"] = number(seconds.median(), ".0f")
        lines.append(line)
    return markdown_table(lines) if lines else "Not run."


def cell(values: pd.Series) -> str:
    """A mean and over how many worlds; a dash for none."""
    return f"{values.mean():.1f} ({values.count()})" if values.count() else "-"


def lengths_table(found: pd.DataFrame, written: Mapping[str, Any]) -> str:
    """mAP and rank of each method at each length."""
    lines = []
    for title in written["lengths"]["settings"]:
        maps = grid(found, title).drop(columns=FLOOR, errors="ignore").dropna()
        if maps.empty:
            continue
        ranks = maps.mean().rank(ascending=False).astype(int)
        cells = {run: f"{maps[run].mean():.1f} ({ranks[run]})" for run in written["lengths"]["runs"] if run in maps}
        same = maps.rank(axis=1, ascending=False).eq(ranks).all(axis=1).sum()
        lines.append({"length": title, "worlds": len(maps), **cells, "worlds with these ranks": int(same)})
    return markdown_table(lines) if len(lines) > 1 else "Not run."


def search_table(found: pd.DataFrame, written: Mapping[str, Any]) -> str:
    """What each method would gain by the best of three learning rates, where all three were run."""
    lines = []
    titles = list(written["search"]["settings"])
    shared = next(title for title, setting in written["search"]["settings"].items() if not setting)
    for run in written["search"]["runs"]:
        means = {title: grid(found, title).get(run, pd.Series(dtype=float)).mean() for title in titles}
        if np.isnan(list(means.values())).any():
            continue
        best = max(means, key=lambda title: means[title])
        shown = {title: number(value) for title, value in means.items()}
        lines.append({"run": run, **shown, "best": best, "above shared": signed(means[best] - means[shared])})
    return markdown_table(lines) if lines else "Not run."


TABLES = {"sizes": sizes_table, "lengths": lengths_table, "search": search_table}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
