"""From panels to one HTML text that holds all it needs: scripts, styles, data and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bokeh.embed import json_item
from bokeh.resources import Resources
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports.page.drawing import COLOURS, DASHES
from reports.page.material import Material
from reports.page.panel import Panel

HERE = Path(__file__).parent
SCRIPTS = ("page", "table", "lines", "queries", "distances", "cameras", "settings", "gallery")


def page(material: Material, panels: Sequence[Panel], facts: Mapping[str, str]) -> str:
    """The page as text. facts: what stands under its title, by name."""
    figures = {name: json_item(figure.model, name) for panel in panels for name, figure in panel.figures.items()}
    data = {name: held for panel in panels for name, held in panel.data.items()}
    values = {
        "panels": panels,
        "facts": facts,
        "settings": [(title, [row_of(row) for row in rows]) for title, rows in material.settings()],
        "style": Markup((HERE / "static" / "page.css").read_text()),
        "bokeh": Markup(bokeh_script()),
        "scripts": [Markup((HERE / "static" / f"{name}.js").read_text()) for name in SCRIPTS],
        "figures_json": embedded(figures),
        "data": {name: embedded(held) for name, held in data.items()},
    }
    return environment().get_template("page.html").render(values)


def row_of(row: Any) -> dict[str, Any]:
    """What choosers and legends need of a row; ``dash`` as SVG has it."""
    dashes = {"solid": "", "dashed": "6 3", "dotted": "2 3", "dotdash": "2 3 6 3"}
    colour = COLOURS[row.number % len(COLOURS)]
    dash = dashes[DASHES[row.number // len(COLOURS) % len(DASHES)]]
    return {"number": row.number, "name": row.name, "usable": bool(row.usable), "colour": colour, "dash": dash}


def embedded(held: Any) -> Markup:
    """JSON that can stand within a script element."""
    text = json.dumps(held, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


@cache
def bokeh_script() -> str:
    """Bokeh's own code, whole: nothing is fetched when the page is read."""
    return max(Resources(mode="inline", components=["bokeh"]).js_raw, key=len)


@cache
def environment() -> Environment:
    """The templates; what they print is escaped, and a name that no panel gave is an error."""
    loader = FileSystemLoader(HERE / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
