"""How the small benchmark's settings were chosen: `python -m benchmarks.calibration --jobs 2` runs and tables it.

Each setting of calibration.yaml is a sweep in a folder of its own below results/calibration, on worlds that no
leaderboard shows. What is there is not run again. What came out joins results/reference/calibration.csv, of which
docs/calibration.md has the tables; `--table` does that alone. Runs are compared if they started from the same weights:
another machine's are further lines of the file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from core.config import merge
from core.errors import UserError
from core.files import write_csv, write_text
from core.validation import read_mapping
from pipeline.jobs import ROOT, Job
from pipeline.params import DRAWN
from pipeline.records import read_result
from reports.readme import replace_between
from reports.text import markdown_table, number, signed

SETTINGS = Path(__file__).with_suffix(".yaml")
PAGE = ROOT / "docs/calibration.md"
FOLDER = ROOT / "results/calibration"
FIGURES = ROOT / "results/reference/calibration.csv"
KEY = ["place", "run", "world", "start"]  # of a figure; `place` names size and overrides, `start` the weights
STARTED = ["world", "start"]
MEASURED = ["mAP", "seconds"]
NONE_YET = "Not run."
PARTS = ("sizes", "lengths", "search")
FLOOR = "warm_start"
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
    figures = known(written)
    if len(figures):
        write_csv(FIGURES, figures)
    text = PAGE.read_text()
    for name in PARTS:
        told = TABLES[name](figures, written)
        if told != NONE_YET:  # what the page says of a part without figures stays
            text = replace_between(text, name, told, "python -m benchmarks.calibration --table")
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


def known(written: Mapping[str, Any]) -> pd.DataFrame:
    """The figures of the file and of the runs here, which replace the file's where both have one.

    mAP in percent, seconds of the whole run.
    """
    backbone = read_mapping(ROOT / "params.yaml")["backbones"]["cnn"]
    rows = []
    for part in (written[name] for name in PARTS):
        for setting, run, world in product(part["settings"].values(), part["runs"], part["worlds"]):
            made = placed(setting, run)
            folder = made / Job(run, f"{DRAWN}-{world}", backbone, 0).evaluated
            if (folder / "result.json").is_file():
                rows.append(figure(folder, {"place": made.name, "run": run, "world": world}))
    there = [pd.read_csv(FIGURES, dtype={"start": str})] if FIGURES.is_file() else []
    here = [pd.DataFrame(rows)] if rows else []
    both = pd.concat([*there, *here]) if there or here else pd.DataFrame(columns=[*KEY, *MEASURED])
    return both.drop_duplicates(KEY, keep="last").sort_values(KEY, ignore_index=True)


def figure(folder: Path, named: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a run's result; no mAP where the run failed."""
    record = read_result(folder)
    score = record.selection.last.figure("mAP")
    return {
        **named,
        "start": str(record.initial.sha256)[:8],
        "mAP": np.nan if score is None else round(100 * score, 3),
        "seconds": round(record.cost.seconds_total),
    }


def placed(setting: Mapping[str, Any], run: str) -> Path:
    """The folder that holds a run of a setting: the warm start's is that of its own setting."""
    return place(start_of(setting) if run == FLOOR else setting)


def of_setting(figures: pd.DataFrame, part: Mapping[str, Any], title: str) -> pd.DataFrame:
    """The figures of one setting, over the runs and worlds of its part."""
    setting = part["settings"][title]
    places = {run: placed(setting, run).name for run in part["runs"]}
    return figures[(figures["place"] == figures["run"].map(places)) & figures["world"].isin(part["worlds"])]


def grid(figures: pd.DataFrame, part: Mapping[str, Any], title: str) -> pd.DataFrame:
    """mAP of one setting: a row per world and start, a column per run."""
    found = of_setting(figures, part, title).pivot_table(index=STARTED, columns="run", values="mAP")
    return found.reindex(columns=part["runs"])


def sizes_table(figures: pd.DataFrame, written: Mapping[str, Any]) -> str:
    """What each size and length costs, and how far worlds scatter under it; each cell over the worlds that it has."""
    base, part = written["baseline"], written["sizes"]
    lines = []
    for title in part["settings"]:
        maps = grid(figures, part, title)
        if maps[base].isna().all():
            continue
        found = of_setting(figures, part, title)
        line = {"setting": title, **{run: cell(maps[run]) for run in part["runs"]}}
        line["start from .. to"] = f"{maps[FLOOR].min():.1f} .. {maps[FLOOR].max():.1f}"
        line |= differences(maps, base)
        line[f"s per {base}"] = number(found[found["run"] == base]["seconds"].median(), ".0f")
        lines.append(line)
    return markdown_table(lines) if lines else NONE_YET


def differences(maps: pd.DataFrame, base: str) -> dict[str, str]:
    """Per method its mean difference to the baseline, and the standard deviation between worlds."""
    told = {}
    for run in maps.columns.drop([FLOOR, base], errors="ignore"):
        values = (maps[run] - maps[base]).dropna()
        told[f"{run} - {base}: mean, sd"] = f"{signed(values.mean())}, {number(values.std(ddof=1))}"
    return told


def cell(values: pd.Series) -> str:
    """A mean and over how many worlds; a dash for none."""
    return f"{values.mean():.1f} ({values.count()})" if values.count() else "-"


def lengths_table(figures: pd.DataFrame, written: Mapping[str, Any]) -> str:
    """mAP and rank of each method at each length, over the worlds that have all methods."""
    part = written["lengths"]
    lines = []
    for title in part["settings"]:
        maps = grid(figures, part, title).drop(columns=FLOOR).dropna()
        if maps.empty:
            continue
        ranks = maps.mean().rank(ascending=False, method="min").astype(int)
        cells = {run: f"{maps[run].mean():.1f} ({ranks[run]})" for run in maps}
        same = maps.rank(axis=1, ascending=False, method="min").eq(ranks).all(axis=1).sum()
        line = {"length": title, "worlds": len(maps), **cells, "worlds with these ranks": int(same)}
        lines.append(line | differences(maps, written["baseline"]))
    return markdown_table(lines) if len(lines) > 1 else NONE_YET


def search_table(figures: pd.DataFrame, written: Mapping[str, Any]) -> str:
    """What each method would gain by the best of three learning rates, over the worlds that have all three."""
    part = written["search"]
    shared = next(title for title, setting in part["settings"].items() if not setting)
    grids = {title: grid(figures, part, title) for title in part["settings"]}
    lines = []
    for run in part["runs"]:
        maps = pd.DataFrame({title: maps[run] for title, maps in grids.items()}).dropna()
        if maps.empty:
            continue
        means = maps.mean()
        best = means.idxmax()
        shown = {title: number(value) for title, value in means.items()}
        above = signed(means[best] - means[shared])
        lines.append({"run": run, "worlds": len(maps), **shown, "best": best, "above shared": above})
    return markdown_table(lines) if lines else NONE_YET


TABLES = {"sizes": sizes_table, "lengths": lengths_table, "search": search_table}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
