"""What two runs differ in: their settings, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.records import ResultRecord
from reports.page.material import Material
from reports.page.panel import Panel


def panel(material: Material) -> Panel:
    """The settings and the provenance of each row's first run, of which the page's script shows what differs."""
    held = {row.number: described(row.results[0].record) for row in material.rows if row.results}
    return Panel("settings", "Settings and provenance", data={"settings": held})


def described(record: Any) -> dict[str, dict[str, Any]]:
    """Flat settings and provenance of a run; of one that has no result, its settings alone."""
    run = record.run
    provenance = {"run": run.name, "config_hash": run.config_hash, "profile": run.profile, "dataset": run.dataset}
    if isinstance(record, ResultRecord):
        provenance |= {"seed": record.seed, "code": record.code, "key": record.key, "scoring": record.scoring}
        provenance |= flat(record.initial.model_dump(), "initial.")
        provenance |= {"trained_on": record.data.fingerprint, "tested_on": record.tested_on.fingerprint}
        provenance |= flat(record.provenance.model_dump(), "trained.")
        provenance |= flat(record.evaluated_with.model_dump(), "tested.")
    return {"settings": flat(run.config), "provenance": provenance}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; a list is its text."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            made |= flat(value, f"{prefix}{key}.")
        else:
            made[f"{prefix}{key}"] = value if isinstance(value, str | int | float | bool | None) else str(value)
    return made
