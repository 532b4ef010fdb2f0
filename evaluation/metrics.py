"""The one table of the metrics; whoever scores, checks, stores or prints them reads it.

To add a metric, add its row here and its per-query column to ``ranking.query_figures`` (a rank of the CMC needs no
column). Result files then hold it, their checks cover it, and with a ``board`` it has a column of leaderboard.csv.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

FIRST_MATCH = "first_match_rank"


@dataclass(frozen=True)
class Metric:
    """One figure of a ranking, a mean over the queries that have a match.

    name: key of results files and start of column names; title: in tables; short: where columns are narrow.
    column: of the per-query table, whose mean the metric is; for the ``rank`` k of a CMC, whose share of values up to
        k it is.
    defined_by: the ``metric`` values of protocols that define it; under any other it is null.
    judges: whether epochs and runs may be judged by it. The first such metric that a protocol defines is its headline.
    board: where leaderboard.csv has its mean: ``front``, ``end`` (new ones, so that columns keep their places) or
        nowhere; shown: whether leaderboard.md prints it.
    published: whether methods/*/published.yaml holds papers' values of it.
    low, high: what it can be; scale: what multiplies it in tables, ``digits`` being those printed.
    """

    name: str
    title: str
    short: str
    column: str
    rank: int | None = None
    defined_by: tuple[str, ...] = ("cmc_and_map",)
    judges: bool = False
    board: str | None = None
    shown: bool = False
    published: bool = False
    higher_is_better: bool = True
    low: float = 0.0
    high: float = 1.0
    scale: float = 100.0
    digits: int = 1

    @property
    def form(self) -> str:
        """How tables print it."""
        return f".{self.digits}f"

    def better(self, a: float, b: float) -> bool:
        """Whether ``a`` is strictly better than ``b``."""
        return a > b if self.higher_is_better else a < b

    def of(self, queries: pd.DataFrame, metric: str = "cmc_and_map") -> float:
        """The figure of a per-query table, written under a protocol of that ``metric``."""
        if self.rank is None:
            return float(queries[self.column].mean())
        if metric == "cmc":  # the table holds each query's share of random galleries
            return float(queries[self.name].mean())
        return float((queries[self.column] <= self.rank).mean())

    def columns(self, metric: str) -> tuple[str, ...]:
        """Columns of a per-query table that ``of`` reads."""
        return (self.name,) if metric == "cmc" else (self.column,)


def _cmc(rank: int, **more: Any) -> Metric:
    return Metric(f"rank{rank}", f"rank-{rank}", f"R{rank}", FIRST_MATCH, rank, ("cmc_and_map", "cmc"), **more)


METRICS = (
    Metric("mAP", "mAP", "mAP", "ap", judges=True, board="front", shown=True, published=True),
    _cmc(1, judges=True, board="front", shown=True, published=True),
    _cmc(5, board="front", shown=True, published=True),
    _cmc(10, board="front", published=True),
    Metric("mINP", "mINP", "mINP", "inp", board="front", shown=True),
    Metric("mAP_trapezoid", "mAP (trapezoid)", "mAP-t", "ap_trapezoid"),
    _cmc(20),
)
BY_NAME = {metric.name: metric for metric in METRICS}
CMC = tuple(metric for metric in METRICS if metric.rank is not None)
BOARD = tuple(metric for metric in METRICS if metric.board)
JUDGES = tuple(metric for metric in METRICS if metric.judges)
PUBLISHED = tuple(metric for metric in METRICS if metric.published)


def defined(metric: str) -> tuple[Metric, ...]:
    """The metrics that a protocol of that ``metric`` (``cmc_and_map`` or ``cmc``) defines."""
    return tuple(entry for entry in METRICS if metric in entry.defined_by)


def headline(metric: str) -> str:
    """What a protocol of that ``metric`` judges epochs and runs by."""
    return next(entry.name for entry in defined(metric) if entry.judges)
