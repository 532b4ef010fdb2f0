"""Train the ablation rows of a method, and table each row's difference to the full method.

Rows are the `ablations` of the method's config.yaml; the full method is its headline variant. A row that has a current
result is not trained again, so that the full method is shared with the leaderboard.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from datasets import split_number
from pipeline import cli, sweep
from pipeline.jobs import Job
from pipeline.layers import HiddenSetting
from pipeline.params import Params
from pipeline.settings import ablation_rows, resolve_run, row_name, run_backbone


def main(argv: Sequence[str] | None = None) -> int:
    """Write OUT/METHOD.csv and .md, and print the latter; exit status 1 when a row has no result."""
    arguments = cli.parser("ablation", __doc__ or "")
    arguments.add_argument("--method", required=True, help="a folder of methods/")
    arguments.add_argument("--dataset", help="name of a dataset; default: the first of params.yaml, in all its worlds")
    arguments.add_argument("--backbone", help="default: the one under which params.yaml lists the method")
    arguments.add_argument("--seeds", type=int, nargs="+", help="default: params.yaml's")
    arguments.add_argument("--rows", nargs="+", help="some rows only; default: all")
    arguments.add_argument("--out", type=Path, default=Path("results/ablations"), help="folder to write")
    sweep.add_arguments(arguments)
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    chosen = [options.dataset] if options.dataset else alike(params.datasets)
    backbone = run_backbone(options.method, chosen[0], params, options.backbone)
    rows = ablation_rows(options.method, options.rows)
    for row in () if options.rows else tuple(rows):
        if reason := hidden(row_name(options.method, row), chosen[0], params, backbone):
            print(f"left out: {reason}", file=sys.stderr)
            del rows[row]
    seeds = options.seeds or params.seeds
    places = [(dataset, seed) for dataset in chosen for seed in seeds]
    wanted = {
        row: [Job(row_name(options.method, row), dataset, backbone, seed) for dataset, seed in places] for row in rows
    }
    try:
        sweep.run_missing([job for row in wanted.values() for job in row], params, sweep.machine(options, params))
    except sweep.JobsFailed as error:  # the other rows are worth a table
        print(f"error: {error}", file=sys.stderr)
    # By name: what trains does not import what tables.
    table = import_module("reports.ablation").write(options.method, rows, wanted, options.out)
    return int(len(table) < len(rows))


def alike(listed: Sequence[str]) -> list[str]:
    """The first dataset of a list, and its other worlds or folds."""
    first = split_number(listed[0])[0]
    return [name for name in listed if split_number(name)[0] == first]


def hidden(name: str, dataset: str, params: Params, backbone: str) -> str | None:
    """Why a row cannot be what it is called under these settings, or None."""
    try:
        resolve_run(name, dataset, params.profile, params.overrides, backbone=backbone)
    except HiddenSetting as error:
        return str(error)
    return None


if __name__ == "__main__":
    cli.run_main(main)
