"""The surveyed methods, one folder each; the folder's name is the method's name.

``_template`` is no method: ``python -m pipeline new_method NAME`` copies it to begin one.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from core.errors import UserError
from core.method import Method
from core.names import unknown

HERE = Path(__file__).parent


def available() -> list[str]:
    """Names of all methods; a folder whose name begins with an underscore holds none."""
    return sorted(path.parent.name for path in HERE.glob("[!_]*/method.py"))


def folder(name: str) -> Path:
    """The method's folder; raises UserError naming the nearest method when there is none."""
    if name not in available():
        raise UserError(unknown("method", name, available()))
    return HERE / name


def load(name: str) -> type[Method]:
    """The one Method subclass that ``methods/NAME/method.py`` defines."""
    folder(name)
    module = importlib.import_module(f"methods.{name}.method")
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Method) and member.__module__ == module.__name__
    ]
    assert len(found) == 1, f"methods/{name}/method.py must define exactly one Method, not {found}"
    return found[0]
