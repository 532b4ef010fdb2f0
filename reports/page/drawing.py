"""Colours, dashes and markers that colour-blind people tell apart, and the figure that every panel starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bokeh.models import HoverTool
from bokeh.plotting import figure

# Okabe and Ito's colours in an order that keeps neighbours apart; their yellow is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES = ("solid", "dashed", "dotted", "dotdash")
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star")
BETTER, WORSE, OPEN = "#0072B2", "#D55E00", "#6B6B6B"  # blue and vermillion differ for all; shapes differ as well
TOOLS = "pan,box_zoom,reset,save"


def line_style(number: int) -> dict[str, str]:
    """Colour and dash of the line of a row: 28 different ones."""
    return {"line_color": colour(number), "line_dash": DASHES[number // len(COLOURS) % len(DASHES)]}


def colour(number: int) -> str:
    """The colour of a number; the eighth is the first again."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """The marker of a number."""
    return MARKERS[number % len(MARKERS)]


def plot(height: int, hover: Sequence[tuple[str, str]] = (), **more: Any) -> Any:
    """An empty figure as wide as its place.

    Nothing is dragged or scrolled until a tool is chosen, so that a page on a phone scrolls over it.
    """
    drawn = figure(
        height=height,
        sizing_mode="stretch_width",
        tools=TOOLS,
        active_drag=None,
        active_scroll=None,
        toolbar_location="above",
        output_backend="canvas",
        **more,
    )
    drawn.toolbar.logo = None
    drawn.toolbar.autohide = False
    drawn.min_border_right = 12
    drawn.grid.grid_line_color = "#E5E5E5"
    drawn.axis.axis_label_text_font_style = "normal"
    if hover:
        drawn.add_tools(HoverTool(tooltips=list(hover)))
    return drawn
