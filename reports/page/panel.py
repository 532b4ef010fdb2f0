"""What a panel is to the page: a template, what fills it, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bokeh.models import LayoutDOM


@dataclass(frozen=True)
class Panel:
    """One section of the page.

    anchor: its id and the name of its template. values: what the template prints. figures: Bokeh models by name, each
    with a sentence that says what a reader would see. data: what its scripts read, by name. missing: why there is
    nothing to show; the section then holds this line alone.
    """

    anchor: str
    title: str
    values: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing, its caption, and what it shows in words."""

    model: LayoutDOM
    caption: str
    told: str
