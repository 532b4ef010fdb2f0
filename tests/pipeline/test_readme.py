"""The generated part of the README stands between its markers, and nothing else is touched."""

from __future__ import annotations

import pytest

from pipeline.paths import ROOT
from pipeline.readme import END, START, replace_between

TEXT = f"before\n{START.format(name='leaderboard')}\nold\n{END.format(name='leaderboard')}\nafter\n"


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = replace_between(TEXT, "leaderboard", "new table")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "new table" in text
    assert "old" not in text
    assert replace_between(text, "leaderboard", "new table") == text


def test_a_readme_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="once each"):
        replace_between("no markers here", "leaderboard", "table")


def test_the_project_s_readme_has_the_markers() -> None:
    replace_between((ROOT / "README.md").read_text(), "leaderboard", "table")
