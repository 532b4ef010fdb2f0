"""Drawing bodies: rays through a 2x supersampled frame meet round cones and lathes; the nearest surface wins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.rendered.body import KNOTS, Lathe, Limb
from datasets.rendered.figures import Figures
from datasets.rendered.people import SLOTS
from datasets.rendered.textures import Points, Style, texture

SUPER = 2  # samples per pixel and axis
FAR = -1e9
GROUP = 64  # figures whose windows are drawn together
FOLDS = 128  # side of the tile of cloth folds, a power of two


@dataclass(frozen=True)
class Stage:
    """The frame being drawn and what all parts share: depth (N*H*W,) and colour (3, N*H*W) of samples."""

    depth: Tensor
    colour: Tensor
    height: int
    width: int
    figures: Figures
    style: Style
    palette: Tensor  # (3, F * slots)
    image: Tensor  # (F,) position in the batch
    place: Tensor  # (F, 2)
    unstretch: Tensor  # (F,)
    light: Tensor  # (3, F)
    ambient: Tensor  # (F,)
    diffuse: Tensor  # (F,)
    to_body: Tensor  # (3, 3, F)
    folds: Tensor  # (FOLDS * FOLDS,)
    seed: Tensor  # (F,)


class Window(NamedTuple):
    """Samples around one part of n figures: figure (n,), x (n, 1, w) and y (n, h, 1) in figure pixels, row and column
    of the first sample (n,), and whether a sample is in the frame (n, h, w)."""

    figure: Tensor
    x: Tensor
    y: Tensor
    row: Tensor
    column: Tensor
    inside: Tensor


class Surface(NamedTuple):
    """Where rays meet a part, all (M,): figure, index into the frame, depth, view normal (3 x), body u, v, w."""

    figure: Tensor
    sample: Tensor
    depth: Tensor
    normal: tuple[Tensor, Tensor, Tensor]
    u: Tensor
    v: Tensor
    w: Tensor


def draw(stage: Stage) -> None:
    """Draw all parts of all figures into the frame."""
    for lathe in stage.figures.lathes:
        _draw_lathe(stage, lathe)
    for limb in stage.figures.limbs:
        _draw_limb(stage, limb)


def _windows(stage: Stage, present: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[Window]:
    """Windows between the corners low and high (F, 2), in figure pixels, of the present figures; figures with windows
    of like size come together, so that few samples are spent outside."""
    figures = stage.figures
    scale = np.stack([figures.stretch, np.ones_like(figures.stretch)], axis=1)
    limit = np.array([stage.width, stage.height])
    first = np.clip(np.floor((low * scale + figures.place) * SUPER), 0, limit).astype(np.int64)
    extent = np.clip(np.ceil((high * scale + figures.place) * SUPER), 0, limit).astype(np.int64) - first
    seen = present & (extent > 0).all(axis=1)
    for second in (False, True):  # two people of one image may want the same sample: never at the same time
        chosen = np.flatnonzero(seen & (figures.second == second))
        chosen = chosen[np.argsort(extent[chosen].prod(axis=1), kind="stable")]
        for start in range(0, len(chosen), GROUP):
            group = chosen[start : start + GROUP]
            w, h = extent[group].max(axis=0)
            yield _window(stage, group, first[group], int(w), int(h))


def _window(stage: Stage, group: np.ndarray, first: np.ndarray, width: int, height: int) -> Window:
    device = stage.depth.device
    figure, corner = torch.from_numpy(group).to(device), torch.from_numpy(first).to(device)
    place, unstretch = pick(stage.place, figure), pick(stage.unstretch, figure)
    px = corner[:, :1] + torch.arange(width, device=device)
    py = corner[:, 1:] + torch.arange(height, device=device)
    x = ((px.float() + 0.5) * (1 / SUPER) - place[:, :1]) * unstretch.view(-1, 1)
    y = (py.float() + 0.5) * (1 / SUPER) - place[:, 1:]
    inside = (px < stage.width).unsqueeze(1) & (py < stage.height).unsqueeze(2)
    return Window(figure, x.unsqueeze(1), y.unsqueeze(2), corner[:, 1], corner[:, 0], inside)


def _hits(stage: Stage, window: Window, hit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Window number, position in the flattened window batch, and index into the frame of the samples that are hit."""
    n, h, w = torch.nonzero(hit, as_tuple=True)
    at = (n * hit.shape[1] + h) * hit.shape[2] + w
    corner = (pick(stage.image, window.figure) * stage.height + window.row) * stage.width + window.column
    return n, at, pick(corner, n) + h * stage.width + w


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values[index] along the first axis, several times faster than indexing on a CPU."""
    return values.index_select(0, index)


def _draw_limb(stage: Stage, limb: Limb) -> None:
    a, b = limb.a, limb.b
    wide = np.maximum(limb.ra, limb.rb)[:, None]
    low = np.minimum(a[:, :2], b[:, :2]) - wide
    high = np.maximum(a[:, :2], b[:, :2]) + wide
    inverse = 1 / (((b - a)[:, :2] ** 2).sum(axis=1) + 1e-6)
    near = a[:, 2] + stage.figures.push
    table = _to(stage, np.column_stack([a[:, :2], near, b - a, limb.ra, limb.rb - limb.ra, inverse]))
    for window in _windows(stage, limb.present, low, high):
        surface = _meet_limb(stage, window, _columns(table, window))
        _paint(stage, limb.kind, _to_body(stage, _visible(stage, surface)))


def _to(stage: Stage, table: np.ndarray) -> Tensor:
    return torch.from_numpy(table.astype(np.float32)).to(stage.depth.device)


def _columns(table: Tensor, window: Window) -> Tensor:
    """Columns of a per-figure table for the figures of a window, (columns, n, 1, 1)."""
    return table[window.figure].T.contiguous().view(table.shape[1], -1, 1, 1)


def _meet_limb(stage: Stage, window: Window, limb: Tensor) -> Surface:
    """Nearest points of a swept sphere: exact for the outline, and for the depth where the axis lies in the image."""
    ax, ay, az, dx, dy, dz, ra, dr, inverse = limb
    px, py = window.x - ax, window.y - ay
    t = (px * (dx * inverse) + py * (dy * inverse)).clamp_(0, 1)
    ox, oy = px - t * dx, py - t * dy
    r = ra + t * dr
    square = r * r - ox * ox - oy * oy
    n, at, index = _hits(stage, window, (square > 0) & window.inside)
    t, ox, oy, r, square = (pick(value.view(-1), at) for value in (t, ox, oy, r, square))
    rise = square.sqrt()
    depth = pick(az.view(-1), n) + t * pick(dz.view(-1), n) + rise
    inverse_r = 1 / r
    normal = (ox * inverse_r, oy * inverse_r, rise * inverse_r)
    return Surface(pick(window.figure, n), index, depth, normal, ox, t, oy)


def _visible(stage: Stage, surface: Surface) -> Surface:
    """The points that are nearer than what has been drawn; the frame's depth is updated."""
    keep = torch.nonzero(surface.depth > pick(stage.depth, surface.sample)).view(-1)
    figure, index, depth, u, v, w = (pick(value, keep) for value in (*surface[:3], *surface[4:]))
    nx, ny, nz = (pick(value, keep) for value in surface.normal)
    stage.depth.scatter_(0, index, depth)
    return Surface(figure, index, depth, (nx, ny, nz), u, v, w)


def _to_body(stage: Stage, surface: Surface) -> Surface:
    """A limb's u and w are the lateral and forward components of its normal in the body frame."""
    nx, ny, nz = surface.normal
    ux, uy, uz, wx, wy, wz = (pick(stage.to_body[row, k], surface.figure) for row in (0, 2) for k in range(3))
    u = ux * nx + uy * ny + uz * nz
    w = wx * nx + wy * ny + wz * nz
    return surface._replace(u=u, w=w)


def _draw_lathe(stage: Stage, lathe: Lathe) -> None:
    tip = lathe.base + lathe.length[:, None] * lathe.axes[:, 1]
    reach = np.abs(lathe.axes[:, 0, :2]) * lathe.wide.max(axis=1, keepdims=True)
    reach = reach + np.abs(lathe.axes[:, 2, :2]) * lathe.deep.max(axis=1, keepdims=True)
    low = np.minimum(lathe.base, tip)[:, :2] - reach
    high = np.maximum(lathe.base, tip)[:, :2] + reach
    base = np.column_stack([lathe.base[:, :2], lathe.base[:, 2] + stage.figures.push])
    table = _to(stage, np.column_stack([base, lathe.axes.reshape(-1, 9), 1 / lathe.length]))
    wide, deep = lathe.wide, lathe.deep
    profile = _to(stage, np.stack([wide, deep, 1 / (wide * wide), 1 / (deep * deep)]))
    for window in _windows(stage, lathe.present, low, high):
        surface = _meet_lathe(stage, window, _columns(table, window), profile.reshape(4, -1))
        _paint(stage, lathe.kind, _visible(stage, surface))


def _meet_lathe(stage: Stage, window: Window, lathe: Tensor, profile: Tensor) -> Surface:
    """Ray against an elliptic cylinder whose half-axes are those at the height where the last guess met it.

    profile: (4, F * KNOTS) half-width and half-depth, and the inverses of their squares.
    """
    bx, by, bz, lx, ly, lz, ux, uy, uz, fx, fy, fz, inverse = lathe
    px, py = window.x - bx, window.y - by
    first = (window.figure * KNOTS).view(-1, 1, 1)
    across, along, ahead = px * lx + py * ly, (px * ux + py * uy) * inverse, px * fx + py * fy
    rise = uz * inverse
    z = torch.zeros_like(across)
    for _ in range(2):
        knot = first + _knot(along + z * rise)
        ia, ib = (pick(row, knot.view(-1)).view_as(knot) for row in profile[2:])
        qa = lz * lz * ia + fz * fz * ib
        qb = across * lz * ia + ahead * fz * ib
        square = qb * qb - qa * (across * across * ia + ahead * ahead * ib - 1)
        z = (square.clamp(min=0).sqrt_() - qb) / qa
    v = along + z * rise
    n, at, index = _hits(stage, window, (square > 0) & (v >= 0) & (v <= 1) & window.inside)
    z, v, across, ahead = (pick(value.reshape(-1), at) for value in (z, v, across, ahead))
    bz, lx, ly, lz, ux, uy, uz, fx, fy, fz, inverse = (pick(row.view(-1), n) for row in lathe[2:])
    figure = pick(window.figure, n)
    knot = figure * KNOTS + _knot(v).clamp(1, KNOTS - 2)
    inverse_a, inverse_b = (1 / pick(row, knot) for row in profile[:2])
    u, f = (across + z * lz) * inverse_a, (ahead + z * fz) * inverse_b
    nu, nf = u * inverse_a, f * inverse_b
    bend_a, bend_b = (pick(row, knot + 1) - pick(row, knot - 1) for row in profile[:2])
    nv = (-0.5 * (KNOTS - 1)) * inverse * (u * nu * bend_a + f * nf * bend_b)
    size = 1 / (nu * nu + nf * nf + nv * nv).sqrt()
    nu, nf, nv = nu * size, nf * size, nv * size
    normal = (nu * lx + nv * ux + nf * fx, nu * ly + nv * uy + nf * fy, nu * lz + nv * uz + nf * fz)
    return Surface(figure, index, z + bz, normal, u, v, f)


def _knot(v: Tensor) -> Tensor:
    """Nearest knot of a profile."""
    return (v.clamp(0, 1) * (KNOTS - 1) + 0.5).to(torch.int64)


def _paint(stage: Stage, kind: str, surface: Surface) -> None:
    """Colour of the points under the light of their camera, with folds of the cloth."""
    figure = surface.figure
    nx, ny, nz = surface.normal
    slot = texture(kind, Points(figure, surface.u, surface.v, surface.w, ny), stage.style)
    lx, ly, lz = (pick(row, figure) for row in stage.light)
    facing = (nx * lx + ny * ly + nz * lz).clamp_(min=0)
    shade = pick(stage.ambient, figure) * (0.80 + 0.20 * nz - 0.10 * ny) + pick(stage.diffuse, figure) * facing
    if kind not in ("head", "hair", "neck", "hand_left", "hand_right"):
        shade = shade * (1 + 0.14 * _fold(stage, kind, surface))
    slot = figure * len(SLOTS) + slot
    for channel, palette in zip(stage.colour, stage.palette, strict=True):
        channel.scatter_(0, surface.sample, pick(palette, slot) * shade)


def _fold(stage: Stage, kind: str, surface: Surface) -> Tensor:
    """Folds in body coordinates: a lookup in a tile of smooth noise, at an offset per image and part."""
    shift = pick(stage.seed, surface.figure) * 37 + len(kind) * 11
    row = ((surface.v + 2) * 30).long() + shift
    column = ((surface.u + 2) * 12).long() + 5 * shift
    return pick(stage.folds, (row & (FOLDS - 1)) * FOLDS + (column & (FOLDS - 1)))
