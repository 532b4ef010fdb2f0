"""Rendered people: the dataset that ships with the suite, drawn procedurally and written as Market-1501 is."""

from datasets.rendered.settings import DIFFICULTY, RENDERER_VERSION, SIZES, Difficulty, Size
from datasets.rendered.sheet import contact_sheet
from datasets.rendered.table import World, draw_world
from datasets.rendered.write import MARKET, SOURCE_TREE, write

NAME = "rendered"

__all__ = [
    "DIFFICULTY",
    "MARKET",
    "NAME",
    "RENDERER_VERSION",
    "SIZES",
    "SOURCE_TREE",
    "Difficulty",
    "Size",
    "World",
    "contact_sheet",
    "draw_world",
    "write",
]
