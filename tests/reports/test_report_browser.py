"""Every control of the report does what it says, in a real browser: headless Chromium, at the width of a desk and of a
phone. Skipped where there is no browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports.table import MAIN
from tests.reports.conftest import Site
from tests.reports.site import FAILED, NOT_RUN

PATIENCE = 120_000  # milliseconds: the page is drawn in two seconds on an idle machine
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "no Chromium on the PATH: install the distribution's `chromium`"
pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)


class Opened:
    """The page as opened, and all that it said or asked for since."""

    def __init__(self, browser: Any, file: Path, width: int) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda told: self.said.append(told.text) if told.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def shown(self) -> list[str]:
        """Names of the rows shown, from the top."""
        return self.page.locator("#board-table tbody tr:visible th").all_inner_texts()

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        # No sandbox of its own: tests may run as root, and the page is ours.
        launched = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def desk(browser: Any, site: Site) -> Opened:
    return Opened(browser, site.page, 1600)


def test_a_phone_shows_the_page_without_scrolling_sideways(browser: Any, site: Site) -> None:
    phone = Opened(browser, site.page, 400)
    assert phone.run("document.documentElement.scrollWidth") == 400
    widths = phone.run("[...document.querySelectorAll('.plot')].map((plot) => plot.getBoundingClientRect().width)")
    assert len(widths) > 10
    assert all(200 < width <= 400 for width in widths)
    assert phone.said == []
    phone.page.close()


def test_a_title_sorts_the_table_by_keyboard_both_ways_and_rows_without_numbers_stay_last(desk: Opened) -> None:
    title = desk.page.locator("#board-table thead button", has_text=MAIN.title).first
    title.focus()
    desk.page.keyboard.press("Enter")
    falling = desk.shown()
    assert falling[0].startswith("supervised")
    assert falling[-1].startswith(NOT_RUN)
    title.press("Enter")
    rising = desk.shown()
    assert rising == [*falling[-2::-1], falling[-1]]
    assert desk.page.locator("th[aria-sort=ascending]").count() == 1
    desk.page.locator("#board-table thead button", has_text="method").press("Enter")
    assert desk.shown() == sorted(falling)


def test_search_and_filters_narrow_the_rows_and_both_files_hold_the_rows_shown(desk: Opened, tmp_path: Path) -> None:
    everything = len(desk.shown())
    desk.page.fill("#board-search", "hhcl resnet18")
    assert [name.partition(":")[0] for name in desk.shown()] == ["hhcl"]
    assert desk.page.inner_text("#board-count") == f"1 of {everything} rows"
    desk.page.fill("#board-search", "")
    desk.page.select_option("[data-filter=state]", "incomplete")
    assert [name.partition(":")[0] for name in desk.shown()] == [FAILED]
    desk.page.select_option("[data-filter=state]", "")
    desk.page.select_option("[data-filter=camera_use]", "sampler")
    shown = desk.shown()
    assert 0 < len(shown) < everything
    for button, name in (("#board-csv", "leaderboard.csv"), ("#board-latex", "leaderboard.tex")):
        with desk.page.expect_download() as started:
            desk.page.click(button)
        assert started.value.suggested_filename == name
        started.value.save_as(tmp_path / name)
    table = pd.read_csv(tmp_path / "leaderboard.csv")
    assert [f"{row.method}:{row.variant}" for row in table.itertuples()] == shown
    text = (tmp_path / "leaderboard.tex").read_text()
    assert text.count(r" \\") == len(shown) + 1
    assert text.rstrip().endswith(r"\end{tabular}")
    desk.page.select_option("[data-filter=camera_use]", "")
    assert len(desk.shown()) == everything


VISIBLE = """(row) => Object.entries(models).filter(([name]) => name.startsWith("curve-") || name === "sorted").map(
  ([, figure]) => figure.renderers.filter((one) => one.name === `row-${row}`).map((one) => one.visible)).flat()"""


def test_a_box_of_the_legend_hides_its_line_in_every_chart_and_all_brings_it_back(desk: Opened) -> None:
    box = desk.page.locator("#training input[data-row='1']")
    shown = desk.page.evaluate(VISIBLE, 1)
    assert len(shown) > 5
    assert all(shown)
    box.press("Space")
    assert not any(desk.page.evaluate(VISIBLE, 1))
    assert not desk.page.locator("#queries input[data-row='1']").is_checked()
    desk.page.locator("#queries button[data-lines=none]").click()
    assert not any(desk.page.evaluate(VISIBLE, 0))
    desk.page.locator("#queries button[data-lines=all]").click()
    assert all(desk.page.evaluate(VISIBLE, 0) + desk.page.evaluate(VISIBLE, 1))
    assert box.is_checked()


def test_two_chosen_rows_are_paired_query_by_query(desk: Opened, site: Site) -> None:
    a, b = (next(row for row in site.material.rows if row.line["method"] == name) for name in ("spcl", "jcl"))
    desk.page.select_option("#pair-a", str(a.number))
    desk.page.select_option("#pair-b", str(b.number))
    points = desk.run("part('pairs', 'points').data")
    first, second = (np.concatenate([result.queries["ap"].round(3) for result in row.usable]) for row in (a, b))
    np.testing.assert_allclose(points["x"], first, atol=6e-4)
    np.testing.assert_allclose(points["y"], second, atol=6e-4)
    told = desk.page.inner_text("#pair-told")
    gap = np.array(points["y"]) - np.array(points["x"])
    assert f"{len(first)} queries" in told
    assert f"B has more AP on {(gap > 0).sum()}, A on {(gap < 0).sum()}" in told
    assert f"{100 * gap.mean():+.1f} points" in told
    desk.page.select_option("#pair-run", index=1)
    assert len(desk.run("part('pairs', 'points').data.x")) == len(a.usable[0].queries)
    assert "jcl" in desk.run("part('pairs', 'y-axis').axis_label")


def test_the_chosen_run_s_distances_and_thresholds_are_drawn(desk: Opened, site: Site) -> None:
    warm, other = site.material.rows[:2]
    desk.page.select_option("#distance-row", str(other.number))
    desk.page.select_option("#distance-run", "1")
    found = other.usable[1].record.verification
    assert f"EER {100 * found.eer:.1f} % at distance 0.800" in desk.page.inner_text("#distance-told")
    bins = desk.run("part('distance-bins', 'bins').data")
    assert sum(bins["same"]) * found.panel.width == pytest.approx(1)
    assert desk.run("part('distance-bins', 'fpr-0.001').location") == 0.5
    desk.page.select_option("#distance-row", str(warm.number))
    assert not desk.run("part('distance-bins', 'fpr-0.001').visible")
    assert "too few pairs to tell" in desk.page.inner_text("#distance-told")


def test_the_chosen_row_s_camera_pairs_are_drawn(desk: Opened, site: Site) -> None:
    row = site.material.rows[1]
    desk.page.select_option("#camera-row", str(row.number))
    drawn = desk.run("part('camera-pairs', 'pairs').data")
    assert len(drawn["value"]) == 6
    assert all(60 <= value <= 100 for value in drawn["value"])
    assert f"{min(drawn['value']):.1f} %" in desk.page.inner_text("#camera-told")


def test_the_settings_that_differ_are_listed_and_equal_ones_on_demand(desk: Opened, site: Site) -> None:
    a, b = (next(row for row in site.material.rows if row.line["method"] == name) for name in ("hhcl", "jcl"))
    desk.page.select_option("#settings-a", str(a.number))
    desk.page.select_option("#settings-b", str(b.number))
    listed = {
        line.split("\t")[0]: line.split("\t")[1:]
        for line in desk.page.locator("#settings-table tbody tr").all_inner_texts()
    }
    hashes = [row.results[0].record.run.config_hash for row in (a, b)]
    assert listed["config_hash"] == hashes
    assert "schedule.epochs" not in listed
    desk.page.check("#settings-all")
    assert desk.page.locator("#settings-table tbody tr").count() > len(listed)


def test_failures_show_the_worst_queries_of_a_run_beside_another_s(desk: Opened, site: Site) -> None:
    rows = [row for row in site.material.rows if row.usable and row.usable[0].record.world == 0]
    a, b = rows[2:4]
    desk.page.select_option("#failures-a", str(a.number))
    desk.page.select_option("#failures-b", str(b.number))
    worst = a.usable[0].queries.sort_values("ap", kind="stable")["query"].tolist()
    shown = desk.page.locator("#failures-list h3")
    assert shown.all_inner_texts() == [f"query {query}" for query in worst[:6]]
    strips = desk.page.locator("#failures-list .strips").first
    assert strips.locator(".strip").count() == 2
    assert strips.locator(".strip").first.locator(".card").count() == 11
    for card in strips.locator(".strip").first.locator(".card:not(.query)").all()[:4]:
        person = strips.locator(".card.query").first.get_attribute("aria-label").split("person ")[1].split(",")[0]
        told = card.get_attribute("aria-label")
        assert (f"person {person}," in told) == ("wrong" not in card.get_attribute("class"))
    desk.page.click("#failures-more")
    assert shown.count() == 12
    desk.page.select_option("#failures-order", "best")
    assert shown.first.inner_text() == f"query {worst[-1]}" or a.usable[0].queries["ap"].max() == 1.0
    place = desk.run("getComputedStyle(document.querySelector('.card .image')).backgroundImage.slice(0, 20)")
    assert place.startswith('url("data:image/webp')


def test_print_leaves_controls_out_and_keeps_the_table(desk: Opened) -> None:
    desk.page.emulate_media(media="print")
    assert not desk.page.locator("#board-search").is_visible()
    assert not desk.page.locator("nav").is_visible()
    assert desk.page.locator("#board-table").is_visible()
    desk.page.emulate_media(media="screen")


def test_the_page_said_no_error_and_asked_for_nothing_but_itself(desk: Opened, site: Site) -> None:
    assert desk.said == []
    assert [url for url in desk.asked if not url.startswith("data:")] == [site.page.as_uri()]
