"""Training without progress bars, for drivers of the engine whose output is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def no_bars() -> Iterator[None]:
    """The engine and extraction show no progress inside."""

    def plain(items: Any, *_: Any, **__: Any) -> Any:
        return items

    with (
        mock.patch("core.engine.tqdm", plain),
        mock.patch("core.data.tqdm", plain),
        mock.patch("core.images.tqdm", plain),
    ):
        yield
