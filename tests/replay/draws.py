"""Numbers that are the same on every machine: Philox counters turned into values by exact arithmetic.

numpy's distributions may change between versions; the raw output of a counter-based generator is its definition.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np


def raw(name: str, count: int, seed: int = 0) -> np.ndarray:
    """(count,) uint64, a function of the name and the seed alone."""
    key = int.from_bytes(hashlib.sha256(f"{name}/{seed}".encode()).digest()[:16], "big")
    return np.random.Philox(key=key).random_raw(count)


def integers(name: str, shape: tuple[int, ...], low: int, high: int, seed: int = 0) -> np.ndarray:
    """int64 in low..high - 1; the bias of the remainder is of no account here."""
    drawn = raw(name, int(np.prod(shape)), seed) >> np.uint64(16)
    return low + (drawn % np.uint64(high - low)).astype(np.int64).reshape(shape)


def uniform(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float64 in [-1, 1), multiples of 2**-23: exact."""
    drawn = raw(name, int(np.prod(shape)), seed) >> np.uint64(40)
    return drawn.astype(np.float64).reshape(shape) / 2**23 - 1


@lru_cache(maxsize=256)
def direction(length: int) -> np.ndarray:
    """(length,) the fixed vector that rows of this length are projected on."""
    return uniform(f"direction/{length}", (length,))
