"""The place that a camera watches, as one wide picture from which each image takes its piece.

Everything is drawn once per camera on the CPU; lengths are shares of the image height, so that sizes look alike.
"""

from __future__ import annotations

import numpy as np
import torch

from datasets.rendered.noise import lattice_noise

Picture = np.ndarray  # (height, width, 3) float32 in [0, 1]
SPAN, MARGIN = 7, 0.2  # width of the picture in image heights; spare height, as a share

_WALLS = ((0.55, 0.50, 0.45), (0.62, 0.60, 0.56), (0.45, 0.46, 0.48), (0.52, 0.36, 0.30), (0.66, 0.62, 0.50))
_GROUNDS = ((0.45, 0.44, 0.42), (0.55, 0.53, 0.49), (0.36, 0.37, 0.38), (0.50, 0.46, 0.40), (0.60, 0.59, 0.57))
_LEAVES = ((0.22, 0.33, 0.15), (0.30, 0.40, 0.20), (0.16, 0.26, 0.14), (0.38, 0.40, 0.22))
_THINGS = ((0.15, 0.15, 0.16), (0.75, 0.75, 0.74), (0.45, 0.12, 0.10), (0.16, 0.24, 0.42), (0.55, 0.57, 0.58))


def paint_scene(seed: int, height: int) -> Picture:
    """Walls, hedges and shop fronts side by side over one ground, with things standing in front of them."""
    rng = np.random.default_rng(seed)
    rows, columns = int(height * (1 + MARGIN)), SPAN * height
    picture = np.empty((rows, columns, 3), dtype=np.float32)
    horizon = int(rows * rng.uniform(0.42, 0.68))
    _paint_back(picture[:horizon], rng, seed, height)
    _paint_ground(picture[horizon:], rng, seed, height)
    edge = max(1, height // 48)
    picture[horizon : horizon + edge] *= 0.7
    _stand_things(picture, rng, seed, horizon, height)
    picture *= 1 + 0.08 * _noise(seed + 7, rows, columns, 3, 10)[..., None]
    return np.clip(picture, 0.02, 0.98)


def _noise(seed: int, rows: int, columns: int, cells_y: float, cells_x: float, octaves: int = 3) -> np.ndarray:
    return lattice_noise(seed % (1 << 24), rows, columns, cells_y, cells_x, octaves)


def _area(part: Picture) -> tuple[int, int]:
    return part.shape[0], part.shape[1]


def _pick(rng: np.random.Generator, colours: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    return np.array(colours[rng.integers(len(colours))], dtype=np.float32) * rng.uniform(0.85, 1.12)


def _paint_back(back: Picture, rng: np.random.Generator, seed: int, height: int) -> None:
    """Segments between 0.6 and 1.8 image heights wide, each a wall, bricks, windows, a hedge or open distance."""
    start, painters = 0, (_bricks, _panels, _windows, _hedge, _distance)
    share = rng.dirichlet(np.ones(len(painters)) * 1.2)  # a camera sees more of one kind than of another
    while start < back.shape[1]:
        width = int(height * rng.uniform(0.6, 1.8))
        segment = back[:, start : start + width]
        painter = painters[rng.choice(len(painters), p=share)]
        painter(segment, rng, seed + start, height)
        segment[:, : max(1, height // 64)] *= 0.75
        start += width


def _bricks(part: Picture, rng: np.random.Generator, seed: int, height: int) -> None:
    colour = _pick(rng, _WALLS)
    course, length = height * rng.uniform(0.035, 0.06), height * rng.uniform(0.09, 0.16)
    y, x = np.mgrid[: part.shape[0], : part.shape[1]].astype(np.float32)
    row = np.floor(y / course)
    joint = (y % course < 0.2 * course) | ((x + (row % 2) * length / 2) % length < 0.1 * length)
    part[:] = colour
    part *= (
        np.where(joint, 1.12, 1.0).astype(np.float32)[..., None]
        + 0.10 * _noise(seed, *_area(part), 14, 14, 2)[..., None]
    )


def _panels(part: Picture, rng: np.random.Generator, seed: int, height: int) -> None:
    part[:] = _pick(rng, _WALLS)
    step = height * rng.uniform(0.2, 0.5)
    x = np.arange(part.shape[1]) % step
    part *= np.where(x < 0.03 * step, 0.7, 1.0).astype(np.float32)[None, :, None]
    part *= 1 + 0.06 * _noise(seed, *_area(part), 5, 5)[..., None]
    if rng.random() < 0.6:
        door = int(rng.uniform(0.1, 0.6) * part.shape[1])
        part[int(0.15 * part.shape[0]) :, door : door + int(0.3 * height)] = _pick(rng, _THINGS)


def _windows(part: Picture, rng: np.random.Generator, seed: int, height: int) -> None:
    """A shop front: dark panes with reflections between frames."""
    frame, pane = _pick(rng, _THINGS), np.array([0.20, 0.24, 0.27], dtype=np.float32) * rng.uniform(0.7, 1.8)
    shine = 1 + 0.5 * _noise(seed, *_area(part), 3, 4)
    part[:] = pane * shine[..., None]
    step = height * rng.uniform(0.25, 0.5)
    x, y = np.arange(part.shape[1]) % step, np.arange(part.shape[0])
    part[:, x < 0.08 * step] = frame
    part[(y % (0.45 * height)) < 0.03 * height] = frame


def _hedge(part: Picture, rng: np.random.Generator, seed: int, height: int) -> None:
    leaves = 0.5 * _noise(seed, *_area(part), 8, 8, 3) + 0.6 * _noise(seed + 1, *_area(part), 26, 26, 2)
    part[:] = _pick(rng, _LEAVES) * (1 + 0.75 * leaves)[..., None]


def _distance(part: Picture, rng: np.random.Generator, seed: int, height: int) -> None:
    """A far street out of focus: pale blocks over a haze that darkens towards the ground."""
    far = np.array([0.70, 0.73, 0.76], dtype=np.float32) * rng.uniform(0.8, 1.1)
    fall = np.linspace(1.05, 0.7, part.shape[0], dtype=np.float32)[:, None, None]
    part[:] = far * fall
    blobs = _noise(seed, *_area(part), 4, 5, 2)[..., None]
    tint = np.array([rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.1), rng.uniform(-0.2, 0.2)], dtype=np.float32)
    part *= 1 + blobs * (0.35 + tint)


def _paint_ground(ground: Picture, rng: np.random.Generator, seed: int, height: int) -> None:
    """Asphalt, paving or grass, finer towards the horizon."""
    rows, columns = ground.shape[:2]
    kind = rng.choice(4, p=[0.35, 0.35, 0.15, 0.15])
    ground[:] = _pick(rng, _LEAVES) if kind == 2 else _pick(rng, _GROUNDS)
    ground *= np.linspace(0.9, 1.08, rows, dtype=np.float32)[:, None, None]
    ground *= 1 + 0.10 * _noise(seed + 3, rows, columns, 12, 60, 2)[..., None]
    ground *= 1 + 0.07 * _noise(seed + 4, rows, columns, 2, 8, 2)[..., None]
    depth = 1 / (0.35 + np.arange(rows, dtype=np.float32) / height * 2)  # grows towards the horizon
    if kind == 1:
        x = (np.arange(columns, dtype=np.float32) - columns / 2) / height
        lines = (depth[:, None] * 5 % 1 < 0.12) | (np.abs(x[None] * depth[:, None] * 3 % 1) < 0.07)
        ground *= np.where(lines, 0.84, 1.0)[..., None]
    if kind == 3:
        band = slice(int(rows * rng.uniform(0.2, 0.6)), None)
        ground[band] *= 0.72
        ground[band.start : band.start + max(1, height // 24)] = 0.78


def _stand_things(picture: Picture, rng: np.random.Generator, seed: int, horizon: int, height: int) -> None:
    """Poles, trunks, bins and parked cars, which stand a little below the horizon."""
    for _ in range(int(rng.integers(8, 16))):
        left = int(rng.uniform(0, picture.shape[1] - height))
        foot = horizon + int(height * rng.uniform(0.02, 0.15))
        kind = rng.integers(4)
        colour = _pick(rng, _THINGS)
        if kind == 0:
            _box(picture, left, 0, max(1, int(0.03 * height)), foot, colour)
        elif kind == 1:
            trunk = int(height * rng.uniform(0.06, 0.12))
            _box(picture, left, 0, trunk, foot, np.array([0.26, 0.20, 0.15], dtype=np.float32))
        elif kind == 2:
            tall = int(height * rng.uniform(0.18, 0.35))
            _box(picture, left, foot - tall, int(0.7 * tall), foot, colour)
        else:
            _car(picture, left, foot, int(height * rng.uniform(0.55, 0.8)), colour)


def _box(picture: Picture, left: int, top: int, width: int, bottom: int, colour: np.ndarray) -> None:
    part = picture[max(top, 0) : bottom, left : left + width]
    part[:] = colour * np.linspace(1.15, 0.8, part.shape[1], dtype=np.float32)[None, :, None]


def _car(picture: Picture, left: int, foot: int, width: int, colour: np.ndarray) -> None:
    """Body, windows and two wheels."""
    tall = int(0.42 * width)
    _box(picture, left, foot - int(0.65 * tall), width, foot - int(0.12 * tall), colour)
    _box(picture, left + width // 6, foot - tall, 2 * width // 3, foot - int(0.6 * tall), colour * 0.9)
    glass = np.array([0.16, 0.19, 0.22], dtype=np.float32)
    _box(picture, left + width // 5, foot - int(0.93 * tall), 3 * width // 5, foot - int(0.64 * tall), glass)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    for centre in (left + width // 5, left + 4 * width // 5):
        picture[(y - foot + 0.14 * tall) ** 2 + (x - centre) ** 2 < (0.2 * tall) ** 2] = 0.07


def scenes(seeds: list[int], height: int) -> torch.Tensor:
    """Pictures of several cameras, (C, 3, rows, columns) float32."""
    pictures = np.stack([paint_scene(seed, height) for seed in seeds])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
