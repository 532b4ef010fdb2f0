"""The published recipes are pinned: a change of a default, a method or a profile shows in the committed file."""

from __future__ import annotations

from core.validation import read_mapping
from tests.recipes import FILE, changes, recipes


def test_every_published_recipe_is_the_recorded_one() -> None:
    told = changes(read_mapping(FILE), recipes())
    assert not told, "\n".join([*told, "if meant: python -m tests.recipes --record"])


def test_a_changed_setting_is_named() -> None:
    recorded = read_mapping(FILE)
    other = {**recorded, "spcl": {**recorded["spcl"], "msmt17_v1": {"schedule.iterations": 400}}}
    assert changes(recorded, other) == ["spcl.msmt17_v1.schedule.iterations: 800 -> 400"]
