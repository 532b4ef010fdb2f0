"""The published recipe of every method and dataset, resolved, as the committed file has it.

`python -m tests.recipes` compares; with `--record` it writes tests/golden/published_recipes.yaml anew and prints what
changed. Market-1501's recipe is written whole, every other dataset's as what differs from it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import datasets
import methods
from core.validation import read_mapping
from pipeline.layers import leaves
from pipeline.settings import resolve_run

FILE = Path(__file__).parent / "golden/published_recipes.yaml"
BASE = "market1501"
OWN = ("rendered", "csv", "folder", "cuhk01")  # no paper publishes a recipe for them


def recipe(method: str, dataset: str) -> dict[str, Any]:
    """Key -> value of the headline variant under `--profile published`, without any other layer.

    A method that pre-trains has its own here; that of its fine-tuning stands under the method that does it.
    """
    found = leaves(resolve_run(method, dataset, "published", pretrains=True).config.as_dict())
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found}


def recipes() -> dict[str, dict[str, dict[str, Any]]]:
    """Method -> dataset -> recipe: whole for BASE, else what differs."""
    made: dict[str, dict[str, dict[str, Any]]] = {}
    for method in methods.available():
        whole = recipe(method, BASE)
        made[method] = {BASE: whole}
        for dataset in datasets.available():
            if dataset not in (BASE, *OWN):
                differing = {key: v for key, v in recipe(method, dataset).items() if whole[key] != v}
                made[method][dataset] = differing
    return made


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where two records of recipes differ, a line each."""
    before, after = dict(leaves(old)), dict(leaves(new))
    keys = sorted(set(before) | set(after))
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def main(argv: list[str]) -> int:
    """Exit status 1 when a recipe is not the recorded one."""
    new = recipes()
    told = changes(read_mapping(FILE) if FILE.is_file() else {}, new)
    print("\n".join(told) or "every recipe is the recorded one")
    if argv == ["--record"]:
        FILE.write_text("# Written by `python -m tests.recipes --record`.\n" + yaml.safe_dump(new, sort_keys=False))
        return 0
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
