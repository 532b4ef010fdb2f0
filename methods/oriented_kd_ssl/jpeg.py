"""What JPEG leaves of an image: quantised cosine transforms of blocks of 8 x 8, without chroma subsampling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 8
# ITU-T T.81, Annex K: the tables that libjpeg scales by quality.
LUMINANCE = """
16 11 10 16 24 40 51 61     12 12 14 19 26 58 60 55     14 13 16 24 40 57 69 56     14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
CHROMINANCE = """
17 18 24 47 99 99 99 99     18 21 26 66 99 99 99 99     24 26 56 99 99 99 99 99     47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99     99 99 99 99 99 99 99 99     99 99 99 99 99 99 99 99     99 99 99 99 99 99 99 99
"""
# Rows: luminance, blue and red difference, of red, green, blue (ITU-R BT.601, as JFIF has it).
TO_YCC = [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]]


def compressed(images: Tensor, quality: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] after JPEG of ``quality`` (B,) in 1..100."""
    height, width = images.shape[2:]
    below, right = -height % SIDE, -width % SIDE
    colours = torch.tensor(TO_YCC, dtype=torch.float64).to(images)
    levels = torch.einsum("cd,bdhw->bchw", colours, 255 * images)
    levels[:, 0] -= 128
    if len(images) and (below or right):
        levels = F.pad(levels, (0, right, 0, below), mode="replicate")
    blocks = levels.unflatten(2, (-1, SIDE)).unflatten(4, (-1, SIDE)).transpose(3, 4)  # (B, 3, h, w, 8, 8)
    cosines, table = transform().to(images), tables(quality, images)
    coefficients = cosines @ blocks @ cosines.T
    kept = (coefficients / table).round() * table
    levels = (cosines.T @ kept @ cosines).transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width].clone()
    levels[:, 0] += 128
    back = torch.linalg.inv(torch.tensor(TO_YCC, dtype=torch.float64)).to(images)
    return (torch.einsum("cd,bdhw->bchw", back, levels) / 255).clamp(0, 1)


def tables(quality: Tensor, like: Tensor) -> Tensor:
    """(B, 3, 1, 1, 8, 8) steps of quantisation by quality (B,), as libjpeg scales its tables."""
    base = torch.tensor([[int(step) for step in table.split()] for table in (LUMINANCE, CHROMINANCE, CHROMINANCE)])
    steps = base.view(1, 3, 1, 1, SIDE, SIDE).to(like)
    quality = quality.to(like).clamp(1, 100)
    percent = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()
    return ((steps * percent.view(-1, 1, 1, 1, 1, 1) + 50) / 100).floor().clamp(1, 255)


def transform() -> Tensor:
    """(8, 8) float64, orthogonal: the discrete cosine transform of a row of a block."""
    frequency, place = torch.arange(SIDE, dtype=torch.float64)[:, None], torch.arange(SIDE, dtype=torch.float64)
    rows = (math.pi * (2 * place + 1) * frequency / (2 * SIDE)).cos() * math.sqrt(2 / SIDE)
    rows[0] /= math.sqrt(2)
    return rows
