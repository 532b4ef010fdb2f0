"""The figures of all runs in one file and their curves in another: what `dvc metrics` and `dvc plots` show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from evaluation import metrics
from reports.record import Result

FIGURES = tuple(judge.name for judge in metrics.JUDGES)
CURVES = (*FIGURES, "audit_ari", "clusters")


def summary(results: Sequence[Result]) -> dict[str, Mapping[str, Any]]:
    """FIGURES of each run's last epoch, as fractions; null for one that failed, was not run or is contradictory."""
    return {
        result.folder.name: {name: result.record.selection.last.figure(name) if result.ok else None for name in FIGURES}
        for result in results
    }


def curves(results: Sequence[Result]) -> pd.DataFrame:
    """(run, epoch, *CURVES) of every result, one row per epoch that was scored."""
    columns = ["run", "epoch", *CURVES]
    tables = [pd.DataFrame(columns=columns)]
    for result in results:
        scored = result.curves.assign(run=result.folder.name)
        tables.append(scored.reindex(columns=columns).dropna(how="all", subset=list(FIGURES)))
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
