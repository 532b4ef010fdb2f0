"""Counter-based noise: integer hashes, exact on every device and independent of how images are batched."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Integers = TypeVar("Integers", Tensor, np.ndarray)

_MASK = 0xFFFFFFFF
_ROUNDS = ((16, 0x7FEB352D), (15, 0x31848BAB), (14, 0x2C1B3C6D))  # multipliers below 2**31: int64 cannot overflow


def hash32(value: Integers) -> Integers:
    """Well-mixed 32-bit hash of int64 values in [0, 2**32), a tensor or an array, as int64."""
    for shift, factor in _ROUNDS:
        value = ((value ^ (value >> shift)) * factor) & _MASK
    return value ^ (value >> 15)


def combine(first: Integers, *keys: Integers | int) -> Integers:
    """Hash of several broadcastable integer keys."""
    total = hash32(first & _MASK)
    for place, key in enumerate(keys):
        total = hash32((total + key + 0x1E3779B9 * (place + 1)) & _MASK)
    return total


def pixel_noise(image: Tensor, height: int, width: int, world: int) -> Tensor:
    """Triangular noise of unit variance, (N, 3, height, width) float32, a function of image number and pixel only.

    image: (N,) int64 image numbers. Each channel is the sum of two 10-bit fields of two hashes of the pixel.
    """
    pixel = torch.arange(height * width, device=image.device).view(height, width)
    first = combine(pixel, image.view(-1, 1, 1), world)
    second = hash32(first ^ 0x5BD1E995)
    fields = [((first >> (10 * c)) & 1023) + ((second >> (10 * c)) & 1023) for c in range(3)]
    # The sum of two uniform numbers on 0..1023 has mean 1023 and standard deviation 1024 / sqrt(6).
    return torch.stack([(field - 1023).to(torch.float32) for field in fields], dim=1) * (6**0.5 / 1024)


def lattice_noise(seed: int, height: int, width: int, cells_y: float, cells_x: float, octaves: int = 3) -> np.ndarray:
    """Smooth noise in [-1, 1], (height, width) float32: hashed values on finer and finer lattices, interpolated."""
    total, norm = np.zeros((height, width)), 0.0
    for octave in range(octaves):
        y = np.arange(height) * (cells_y * 2**octave / height)
        x = np.arange(width) * (cells_x * 2**octave / width)
        total += 0.55**octave * _interpolate(seed * 8 + octave, y, x)
        norm += 0.55**octave
    return (total / norm).astype(np.float32)


def _interpolate(seed: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    rows, columns = np.arange(int(y[-1]) + 2), np.arange(int(x[-1]) + 2)
    lattice = combine(rows[:, None], seed, columns) / 2**31 - 1
    row, column = y.astype(np.int64), x.astype(np.int64)
    ty, tx = (y - row)[:, None], x - column
    ty, tx = ty * ty * (3 - 2 * ty), tx * tx * (3 - 2 * tx)
    across = lattice[:, column] * (1 - tx) + lattice[:, column + 1] * tx
    return across[row] * (1 - ty) + across[row + 1] * ty
