"""Numbers and names as tables print them."""

from __future__ import annotations

from typing import Any

import pandas as pd

NONE = "-"


def number(value: Any, form: str = ".1f") -> str:
    """A number in the given format; a dash for what does not exist."""
    return NONE if pd.isna(value) else format(value, form)


def signed(value: Any) -> str:
    """Points with their sign; a dash for none."""
    return number(value, "+.1f")


def interval(low: Any, high: Any) -> str:
    """``[-0.3, +1.2]``; a dash for none."""
    return NONE if pd.isna(low) else f"[{low:+.1f}, {high:+.1f}]"


def intervals(table: pd.DataFrame) -> list[str]:
    """The columns ``low`` and ``high`` of a table as text."""
    return [interval(low, high) for low, high in zip(table["low"], table["high"], strict=True)]


def against(table: pd.DataFrame) -> list[str]:
    """``+2.4 [-5.1, +9.9]`` of the columns ``difference``, ``low`` and ``high``; a dash where nothing was compared."""
    return [
        NONE if pd.isna(value) else " ".join([signed(value), *([around] if around != NONE else [])])
        for value, around in zip(table["difference"], intervals(table), strict=True)
    ]


def markdown_table(rows: Any) -> str:
    """A Markdown table of a frame, or of columns by title; numbers are printed as they are, text as ``in_a_cell``."""
    table = pd.DataFrame(rows)
    return str(table.map(in_a_cell).to_markdown(index=False, disable_numparse=True))


def in_a_cell(value: Any) -> Any:
    """Text that can neither end its cell nor be read as HTML: a reason may hold a library's message."""
    if not isinstance(value, str):
        return value
    plain = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;")
    return plain.replace(r"\|", "|").replace("|", r"\|")


def text_or_dash(column: pd.Series) -> list[str]:
    """The text of a column; a dash where there is none."""
    return [value if isinstance(value, str) else NONE for value in column]


def counts(table: pd.DataFrame) -> dict[str, list[str]]:
    """What rows are made of, as columns of text by title: worlds where any row has some, and seeds."""
    titles = ["worlds", "seeds"] if "worlds" in table and table["worlds"].notna().any() else ["seeds"]
    return {title: [number(value, ".0f") for value in table[title]] for title in titles}
