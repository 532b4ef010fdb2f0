"""The report is one page that needs nothing else, and its numbers are the table's."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import datasets
from core.errors import UserError
from reports import reference, report
from reports.page import board, cost, failures, queries
from reports.page.material import gather
from reports.table import MAIN
from reports.text import interval, number, signed
from tests.reports.conftest import Site
from tests.reports.site import FAILED, NOT_RUN, REASON, WORLDS
from tests.reports.synthetic import write_params

FETCHES = {"src", "href", "srcset", "action", "poster", "data", "xlink:href", "background"}


class Reader(HTMLParser):
    """Tags with their attributes, the text of each table row, and the content of style and script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.blocks: dict[str, list[str]] = {"style": [], "script": []}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.blocks:
            self.blocks[self.open[-1]].append(data)
        elif "td" in self.open or ("th" in self.open and "thead" not in self.open):
            self.rows[-1][-1] += data.strip()

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def text(site: Site) -> str:
    return site.page.read_text()


@pytest.fixture(scope="module")
def read(text: str) -> Reader:
    return Reader(text)


def cells(read: Reader, site: Site) -> dict[str, dict[str, str]]:
    """Printed cells of the leaderboard by row and column title; the strip of ticks has no text."""
    titles = list(board.cells(site.material.rows[0]))
    titles.insert(titles.index("sd") + 1, "each run")
    names = {row.name for row in site.material.rows}
    lines = [line for line in read.rows if line and line[0] in names and len(line) == len(titles)]
    return {line[0]: dict(zip(titles, line, strict=True)) for line in lines}


def test_nothing_on_the_page_is_fetched_and_it_is_at_most_4_mb(text: str, read: Reader) -> None:
    fetched = [value for name in FETCHES for value in read.attributes(name)]
    assert fetched
    assert all(value.startswith(("#", "data:")) for value in fetched)
    styles = " ".join([*read.blocks["style"], *read.attributes("style")])
    assert "@import" not in styles
    assert all(link.startswith(("data:", '"data:')) for link in re.findall(r"url\(([^)]*)", styles))
    own = [script for script in read.blocks["script"] if "BEGIN bokeh" not in script]
    assert not [script for script in own if re.search(r"https?://|\bfetch\(|XMLHttpRequest|import\(", script)]
    assert len(text.encode()) <= report.LARGEST


def test_ids_are_unique_links_lead_somewhere_and_every_figure_and_control_has_a_name(read: Reader) -> None:
    ids = read.attributes("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    inside = [value[1:] for value in read.attributes("href") if value.startswith("#")]
    assert set(inside) <= set(ids)
    pictures = [attributes for _, attributes in read.tags if attributes.get("role") == "img"]
    assert len(pictures) > 10
    assert all(attributes.get("aria-label") for attributes in pictures)
    controls = [place for place, (tag, _) in enumerate(read.tags) if tag in ("input", "select")]
    assert all(read.tags[place - 1][0] == "label" for place in controls)


def test_every_panel_is_there_with_its_controls(read: Reader) -> None:
    sections = [attributes["id"] for tag, attributes in read.tags if tag == "section"]
    wanted = (
        "board differences outside cost training queries distances cameras ablations published drawn settings failures"
    )
    assert sections == wanted.split()
    controls = (
        "board-search board-csv board-latex pair-a pair-b pair-run distance-row distance-run camera-row settings-a "
        "settings-b settings-all failures-a failures-b failures-order failures-more"
    )
    assert set(controls.split()) <= set(read.attributes("id"))
    curves = {f"curve-{name}" for name in ("mAP", "audit_ari", "clusters", "audit_churn", "audit_outlier_share")}
    assert curves | {"forest-0", "cost-0", "sorted", "pairs", "ablation-hhcl"} <= set(read.attributes("id"))


def test_the_table_holds_the_numbers_of_the_leaderboard_and_of_its_comparison(site: Site, read: Reader) -> None:
    shown = cells(read, site)
    assert len(shown) == len(site.material.table)
    for row in site.material.table.to_dict("records"):
        line = shown[f"{row['method']}:{row['variant']}"]
        assert line[MAIN.title] == number(row[f"{MAIN.name}_mean"], MAIN.form)
        assert line["rank-1"] == number(row["rank1_mean"])
        assert line["minutes"] == number(row["minutes"])
        if not pd.isna(row["low"]):
            assert line["to baseline"] == f"{signed(row['difference'])} {interval(row['low'], row['high'])}"
    assert sum(line["to baseline"] != "-" for line in shown.values()) >= 5


def test_failed_and_not_run_rows_are_in_the_table_with_their_reason(site: Site, read: Reader) -> None:
    shown = cells(read, site)
    failed = next(line for name, line in shown.items() if name.startswith(f"{FAILED}:"))
    assert REASON in failed["status"]
    assert failed["runs"] == f"{WORLDS - 1} of {WORLDS}"
    missing = next(line for name, line in shown.items() if name.startswith(f"{NOT_RUN}:"))
    assert missing["status"] == "not run"
    assert missing[MAIN.title] == "-"


def test_a_row_has_a_tick_for_each_usable_run_with_its_world_and_value(site: Site, text: str) -> None:
    for row in site.material.rows:
        for result in row.usable:
            value = 100 * result.record.selection.last.mAP
            assert f"world {result.record.world}, seed 0: {value:.1f}" in text
        assert len(board.ticks(row, (0.0, 100.0))) == len(row.usable)


def test_csv_lines_read_back_as_the_table(site: Site) -> None:
    held = board.panel(site.material).data["board"]
    back = pd.read_csv(StringIO("\n".join([held["csv_header"], *held["csv"]])))
    assert list(back) == list(site.material.table)
    np.testing.assert_allclose(back["mAP_mean"], site.material.table["mAP_mean"].astype(float))
    assert back["status"].tolist() == site.material.table["status"].tolist()
    ends = [line.count("&") for line in [held["latex_head"][3], *held["latex"]]]
    assert len(set(ends)) == 1


def test_no_row_beats_one_on_the_line_of_cost_at_its_price(site: Site) -> None:
    rows = [row for row in site.material.rows if cost.costs(row) and row.line["method"] != "supervised"]
    best = cost.front(rows)
    for row in rows:
        beaten = any(
            cost.point(other)[0] <= cost.point(row)[0] and cost.point(other)[1] > cost.point(row)[1] for other in rows
        )
        assert beaten != (row in best)


def test_pictures_are_of_datasets_that_say_they_may_be_shown_and_only_drawn_people_are(site: Site) -> None:
    assert [name for name in datasets.available() if datasets.load(name).images_may_be_shown] == ["rendered"]
    real = [replace(row, line={**row.line, "dataset": "market1501"}) for row in site.material.rows]
    panel = failures.panel(replace(site.material, rows=real), report.LARGEST)
    assert panel.missing == failures.NOT_SHOWN


def test_pictures_fit_the_room_that_the_page_leaves(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.folder)
    ranked = [found for row in site.material.rows if (found := failures.ranked_run(row))]
    sizes = []
    for most in (40, 60, 10_000):
        chosen = failures.choose_queries(ranked, most)
        pictures = {place for found in ranked for query in chosen for place in found.nearest.lists[query]}
        assert len(chosen) + len(pictures) <= most
        worst = ranked[0].result.queries.sort_values("ap", kind="stable")["query"].iloc[0]
        assert worst in chosen or not chosen
        sizes.append(len(chosen))
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(ranked[0].nearest.lists)
    panel = failures.panel(site.material, report.LARGEST)
    held = len(json.dumps(dict(panel.data))) + len(panel.values["sheet"])
    assert held <= failures.BYTES * panel.values["pictures"] + 2000
    assert failures.panel(site.material, 0).missing == failures.NO_ROOM


def test_the_aps_of_a_large_table_fit_the_page(site: Site) -> None:
    rows = [row for row in site.material.rows if queries.with_ap(row)]
    count = max(len(result.queries) for result in queries.with_ap(rows[0]))
    assert queries.runs_kept(rows, len(rows) * count * 2) == 2
    assert queries.runs_kept(rows, 0) == 1


def test_a_clone_without_runs_gets_a_page_that_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = write_params(tmp_path, ["warm_start", "hhcl"], [0])
    assert report.main(["--params", str(params)]) == 0
    read = Reader((tmp_path / "results/report.html").read_text())
    states = [attributes["data-state"] for _, attributes in read.tags if "data-state" in attributes]
    assert states == ["not run", "not run"]
    missing = sum(attributes.get("class") == "missing" for _, attributes in read.tags)
    assert missing >= 8


def test_the_committed_form_of_results_gives_the_same_table_and_curves_without_runs(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = [result for row in site.material.rows for result in row.usable if row.line["method"] != FAILED]
    monkeypatch.chdir(tmp_path)
    reference.write(usable, tmp_path / "reference")
    assert report.main(["--from", "reference", "--out", "page.html"]) == 0
    read = Reader((tmp_path / "page.html").read_text())
    assert {"forest-0", "cost-0", "curve-audit_ari", "pairs", "distance-bins"} <= set(read.attributes("id"))
    material = gather(usable)
    shown = cells(read, Site(tmp_path, tmp_path, material))
    for row in material.rows:
        assert shown[row.name][MAIN.title] == number(row.line[f"{MAIN.name}_mean"], MAIN.form)


def test_a_reference_without_rows_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rows yet"):
        report.main(["--from", str(tmp_path)])
