"""What an error says of a name that nothing has: the nearest one that something has, and what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like a mistyped one; None where none does."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return found[0] if found else None


def unknown(kind: str, name: str, known: Iterable[str], prefix: str = "") -> str:
    """``unknown KIND 'NAME'; did you mean 'NEAREST'? known: ...``; ``prefix`` stands before the names but the known."""
    listed = sorted(known)
    near = nearest(name, listed)
    hint = f"did you mean '{prefix}{near}'? " if near else ""
    return f"unknown {kind} '{prefix}{name}'; {hint}known: {', '.join(listed) or 'none'}"
