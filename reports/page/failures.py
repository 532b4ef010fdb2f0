"""What runs get wrong: the queries that they rank worst, with the nearest images, where images may be shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import datasets
from core.images import read_image
from core.manifest import Manifest, read_manifest
from pipeline.jobs import data_folder
from pipeline.records import NearestRecord
from reports.page.material import Material, Row, nearest_of, run_name
from reports.page.panel import Panel
from reports.record import Result

WIDTH, HEIGHT, ACROSS = 32, 64, 50  # pixels of a picture, and pictures in a line of the sheet
QUALITY = 60  # of WebP: about 310 bytes for a picture
BYTES = 600  # of a picture on the page, base64 and its place in the lists included, at the most
SHOWN = 10  # of a query's nearest images
NO_ROOM = "The page has no room for pictures beside so many rows."
NOT_SHOWN = "Images of real people are not shown, and no dataset here is of drawn ones."
MISSING = "No drawn dataset of these results has both its images here and a ranking by `python -m pipeline nearest`."


@dataclass(frozen=True)
class Ranked:
    """A row's ranked run: its ranking, and AP, first match and number of matches by query."""

    row: Row
    result: Result
    nearest: NearestRecord


def panel(material: Material, room: int) -> Panel:
    """A gallery of the drawn dataset that most rows were ranked on, in at most ``room`` bytes."""
    shown = [row for row in material.rows if may_be_shown(row.line["dataset"])]
    if not shown:
        return Panel("failures", "Failures", missing=NOT_SHOWN)
    ranked = [found for row in shown if (found := ranked_run(row))]
    fingerprints = [found.nearest.fingerprint for found in ranked]
    for fingerprint in sorted(set(fingerprints), key=fingerprints.count, reverse=True):
        alike = [found for found in ranked if found.nearest.fingerprint == fingerprint]
        manifest = images_of(alike[0].result)
        if manifest is not None and manifest.fingerprint == fingerprint:
            chosen = choose_queries(alike, room // BYTES)
            return gallery(alike, manifest, chosen) if chosen else Panel("failures", "Failures", missing=NO_ROOM)
    return Panel("failures", "Failures", missing=MISSING)


def may_be_shown(dataset: str) -> bool:
    """Whether the report may hold the dataset's images; a name that is no dataset's may be of real people."""
    return dataset in datasets.available() and datasets.load(dataset).images_may_be_shown


def ranked_run(row: Row) -> Ranked | None:
    """The run of the row that was ranked, if its metric has AP."""
    for result in row.usable:
        found = nearest_of(result)
        if found and result.queries is not None and "ap" in result.queries:
            return Ranked(row, result, found)
    return None


def images_of(result: Result) -> Manifest | None:
    """The prepared dataset that a result was tested on, below the folder that holds results; None where it is not."""
    folder = data_folder(result.record.tested_on.title)
    places = [folder, data_folder(result.record.tested_on.name)]
    return next((read_manifest(place) for place in places if (place / "manifest.csv").is_file()), None)


def gallery(ranked: Sequence[Ranked], manifest: Manifest, chosen: list[int]) -> Panel:
    """Chosen queries with the lists of every row, and the sheet of all pictures in them."""
    query, listed = manifest.split("query"), manifest.split("gallery")
    wanted = sorted({place for found in ranked for number in chosen for place in found.nearest.lists[number][:SHOWN]})
    sheet_place = {place: len(chosen) + order for order, place in enumerate(wanted)}
    paths = [manifest.paths("query")[number] for number in chosen]
    gallery_paths = manifest.paths("gallery")
    paths += [gallery_paths[place] for place in wanted]
    people = [*query["person_id"].iloc[chosen].tolist(), *listed["person_id"].iloc[wanted].tolist()]
    cameras = [*query["camera_id"].iloc[chosen].tolist(), *listed["camera_id"].iloc[wanted].tolist()]
    held = {
        "queries": chosen,
        "people": people,
        "cameras": cameras,
        "rows": {found.row.number: row_data(found, chosen, sheet_place) for found in ranked},
        "width": WIDTH,
        "height": HEIGHT,
        "across": ACROSS,
    }
    values = {"sheet": sheet(paths), "dataset": ranked[0].result.record.tested_on.title, "pictures": len(paths)}
    return Panel("failures", "Failures: the queries that runs rank worst", values=values, data={"failures": held})


def choose_queries(ranked: Sequence[Ranked], most: int) -> list[int]:
    """The worst query of every row, then the second of each and so on, while ``most`` pictures suffice.

    A query brings its own picture and those in the lists of all rows, so that any two can be shown side by side.
    """
    orders = []
    for found in ranked:
        assert found.result.queries is not None
        orders.append(found.result.queries.sort_values("ap", kind="stable")["query"].tolist())
    chosen: list[int] = []
    pictures: set[int] = set()
    for number in dict.fromkeys(chain.from_iterable(zip_longest(*orders))):
        if number is None:
            continue
        pictures |= {place for found in ranked for place in found.nearest.lists[number][:SHOWN]}
        if len(chosen) + 1 + len(pictures) > most:
            break
        chosen.append(number)
    return sorted(chosen)


def row_data(found: Ranked, chosen: Sequence[int], sheet_place: Mapping[int, int]) -> dict[str, Any]:
    """A row's AP, first match, number of matches and nearest images of the chosen queries."""
    assert found.result.queries is not None
    table = found.result.queries.set_index("query").reindex(chosen)
    figures = {
        "ap": [None if np.isnan(value) else round(value, 3) for value in table["ap"]],
        "first": [None if np.isnan(value) else int(value) for value in table["first_match_rank"]],
    }
    lists = [[sheet_place[place] for place in found.nearest.lists[number][:SHOWN]] for number in chosen]
    return {"run": run_name(found.result), **figures, "lists": lists}


def sheet(paths: Sequence[Path]) -> str:
    """All pictures on one sheet, ACROSS in a line, as a data URI."""
    lines = -(-len(paths) // ACROSS)
    whole = Image.new("RGB", (ACROSS * WIDTH, lines * HEIGHT), "white")
    for place, path in enumerate(paths):
        picture = Image.fromarray(read_image(path, (HEIGHT, WIDTH)))
        whole.paste(picture, (place % ACROSS * WIDTH, place // ACROSS * HEIGHT))
    buffer = io.BytesIO()
    whole.save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
