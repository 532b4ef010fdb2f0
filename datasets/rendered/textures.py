"""What colour a point of the body has: palette slots as functions of body coordinates, so that patterns turn with it.

A point has `u` (-1..1 across, viewer's right in front view), `v` (0..1 along its part), `w` (-1 back .. 1 front) and
`down` (1 where the surface faces the ground). All comparisons are on values made of +, -, *, / and sqrt only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from datasets.rendered.people import BAG, HAIR, PATTERN, SLOT


class Points(NamedTuple):
    """Visible surface points, all (M,): figure number, u, v, w, down."""

    figure: Tensor
    u: Tensor
    v: Tensor
    w: Tensor
    down: Tensor


Style = dict[str, Tensor]
_TRUNK_STYLE: tuple[str, ...] = (
    "pattern",
    "stripes",
    "duty",
    "opening",
    "zip",
    "neckline",
    "logo",
    "back_print",
    "hem",
    "belt",
)
_TRUNK_STYLE += ("bag", "bag_side")


def _const(like: Tensor, slot: str) -> Tensor:
    return torch.full_like(like, SLOT[slot], dtype=torch.int64)


def _put(slot: Tensor, where: Tensor, name: str) -> Tensor:
    return torch.where(where, SLOT[name], slot)


def _odd(value: Tensor, duty: Tensor | float) -> Tensor:
    """Whether the fractional part is below `duty`: the second colour of stripes."""
    return value - value.floor() < duty


def _around(u: Tensor, w: Tensor) -> Tensor:
    """Pseudo-angle -1..1 around the body, 0 in front; even spacing without trigonometry."""
    turn = u / (u.abs() + w.abs() + 1e-6)
    return torch.where(w >= 0, 0.5 * turn, torch.where(u >= 0, 1 - 0.5 * turn, -1 - 0.5 * turn))


def trunk(at: Points, style: Style) -> Tensor:
    """Shirt or jacket with its pattern, then what is on it, in it and over it, and what is below its hem."""
    s = {name: style[name].index_select(0, at.figure) for name in _TRUNK_STYLE}
    u, v, front = at.u, at.v, at.w > 0
    slot = _put(_const(u, "top"), _pattern(at, s), "top_second")
    slot = _put(slot, front & _logo(u, v, s["logo"]), "logo")
    slot = _put(slot, ~front & _print(u, v, s["back_print"]), "print")
    slot = _put(slot, front & (s["zip"] > 0) & (u.abs() < 0.035), "dark")
    widening = s["opening"] * (1.15 - 0.35 * v)
    slot = _put(slot, front & (u.abs() < widening), "inner")
    neck = (v - 1 + 0.09 * s["neckline"] + 0.04) * 6
    slot = _put(slot, front & (u.abs() < neck), "skin")
    slot = _put(slot, _straps(at, s), "bag")
    slot = _put(slot, v < s["hem"], "bottom")
    return _put(slot, (s["belt"] > 0) & (v < s["hem"]) & (v > s["hem"] - 0.035), "dark")


def _pattern(at: Points, s: Style) -> Tensor:
    """Where the garment has its second colour."""
    pattern, v = s["pattern"], at.v
    across = _odd(v * s["stripes"], s["duty"])
    along = _odd(_around(at.u, at.w) * s["stripes"] * 1.25, s["duty"])
    result = (pattern == PATTERN["horizontal"]) & across
    result |= (pattern == PATTERN["vertical"]) & along
    result |= (pattern == PATTERN["checks"]) & (across ^ along)
    result |= (pattern == PATTERN["block"]) & (v < 0.35 + 0.06 * s["stripes"] * s["duty"])
    return result | ((pattern == PATTERN["band"]) & ((v - 0.62).abs() < 0.11))


def _logo(u: Tensor, v: Tensor, kind: Tensor) -> Tensor:
    """1: block on the chest, 2: disc, 3: bar across."""
    y = (v - 0.68) * 4
    block = (u.abs() < 0.42) & (y.abs() < 0.4)
    disc = u * u + y * y < 0.26
    bar = (u.abs() < 0.62) & (y.abs() < 0.17)
    return ((kind == 1) & block) | ((kind == 2) & disc) | ((kind == 3) & bar)


def _print(u: Tensor, v: Tensor, kind: Tensor) -> Tensor:
    """1: large block between the shoulders, 2: number-like pair of bars."""
    y = v - 0.62
    block = (u.abs() < 0.5) & (y.abs() < 0.13)
    bars = ((u.abs() - 0.28).abs() < 0.13) & (y.abs() < 0.16)
    return ((kind == 1) & block) | ((kind == 2) & bars)


def _straps(at: Points, s: Style) -> Tensor:
    """Two straps over the shoulders of a backpack, one across chest and back of a shoulder bag."""
    u, v = at.u, at.v
    pack = (s["bag"] == BAG["backpack"]) & (at.w > -0.2) & ((u.abs() - 0.55).abs() < 0.11) & (v > 0.42)
    line = u * s["bag_side"] - (0.95 - 1.75 * v)
    return pack | ((s["bag"] == BAG["shoulder"]) & (line.abs() < 0.13) & (v > 0.15))


def arm(at: Points, style: Style, start: float) -> Tensor:
    """Sleeve as far as it goes, then skin; `start` is 0 for the upper arm and 1 for the forearm."""
    s = {name: style[name].index_select(0, at.figure) for name in ("pattern", "stripes", "duty", "sleeve")}
    along = at.v + start
    pattern = s["pattern"]
    striped = _odd((1 - at.v * 0.55) * s["stripes"], s["duty"])
    checked = striped ^ (at.u > 0)
    second = (pattern == PATTERN["sleeves"]) | ((pattern == PATTERN["horizontal"]) & striped)
    second |= (pattern == PATTERN["checks"]) & checked
    slot = _put(_const(at.u, "top"), second, "top_second")
    return _put(slot, along > s["sleeve"], "skin")


def leg(at: Points, style: Style, start: float, outward: float) -> Tensor:
    """Trouser leg as far as it goes, then skin, then the sock; `outward` is the sign of u on the outer side."""
    s = {name: style[name].index_select(0, at.figure) for name in ("leg_length", "side_stripe")}
    along = at.v + start
    slot = _put(_const(at.u, "bottom"), (s["side_stripe"] > 0) & (at.u * outward > 0.8), "bottom_second")
    slot = _put(slot, along > s["leg_length"], "skin")
    return _put(slot, (along > s["leg_length"]) & (along > 1.84), "sock")


def shoe(at: Points, style: Style) -> Tensor:
    """Shoe with its sole."""
    return _put(_const(at.u, "shoe"), at.down > 0.55, "sole")


def head(at: Points, style: Style) -> Tensor:
    """Face with eyes, beard or glasses; hair or cap above a line that is high in front and low behind."""
    s = {name: style[name].index_select(0, at.figure) for name in ("hair", "beard", "glasses", "cap")}
    u, v, w = at.u, at.v, at.w
    side = u.abs()
    slot = _const(u, "skin")
    eyes = (w > 0.2) & ((side - 0.38).abs() < 0.13) & ((v - 0.53).abs() < 0.03)
    frames = (w > 0) & (side < 0.7) & ((v - 0.53).abs() < 0.05) & (side > 0.12)
    slot = _put(slot, eyes | (frames & (s["glasses"] > 0)), "dark")
    chin = (w > 0.0) & (v < 0.34) & ((side > 0.3) | (v < 0.16) | ((v - 0.29).abs() < 0.04))
    slot = _put(slot, chin & (s["beard"] > 0), "hair")
    nape = torch.where(s["hair"] <= HAIR.index("short"), 0.32, 0.14)
    line = torch.where(w > 0.25, 0.76, torch.where(w > -0.15, 0.60, nape))
    slot = _put(slot, (v > line) & (s["hair"] > 0), "hair")
    return _put(slot, (v > 0.70) & (s["cap"] > 0), "cap")


def skirt(at: Points, style: Style) -> Tensor:
    """Skirt with a hem."""
    striped = style["side_stripe"].index_select(0, at.figure) > 0
    return _put(_const(at.u, "bottom"), striped & (at.v < 0.12), "bottom_second")


def tails(at: Points, style: Style) -> Tensor:
    """The lower part of a long coat; where it is open the legs are seen as cloth below."""
    opening = style["opening"].index_select(0, at.figure)
    open_front = (at.w > 0) & (at.u.abs() < opening * 1.15) & (opening > 0)
    return _put(_const(at.u, "top"), open_front, "bottom")


def backpack(at: Points, style: Style) -> Tensor:
    """Backpack with a pocket on the side away from the wearer and a dark seam."""
    pocket = (at.w < 0.2) & (at.v < 0.45) & (at.u.abs() < 0.7)
    slot = _put(_const(at.u, "bag"), pocket, "bag_second")
    return _put(slot, (at.v - 0.47).abs() < 0.025, "dark")


def purse(at: Points, style: Style) -> Tensor:
    """Bag with a flap."""
    return _put(_const(at.u, "bag"), at.v < 0.5, "bag_second")


def plain(at: Points, style: Style, slot: str) -> Tensor:
    """One colour: skin of neck and hands, hair, the brim of a cap."""
    return _const(at.u, slot)


def texture(kind: str, at: Points, style: Style) -> Tensor:
    """(M,) palette slots of points on the part `kind` (a name given by the poser)."""
    name, _, side = kind.rpartition("_")
    if name in ("upper_arm", "forearm"):
        return arm(at, style, start=float(name == "forearm"))
    if name in ("thigh", "shin"):
        return leg(at, style, start=float(name == "shin"), outward=1.0 if side == "left" else -1.0)
    plain_slots = {"neck": "skin", "hand_left": "skin", "hand_right": "skin", "brim": "cap"}
    plain_slots |= dict.fromkeys(("hair", "mane", "tail", "bun"), "hair")
    if kind in plain_slots:
        return plain(at, style, plain_slots[kind])
    solids = {"trunk": trunk, "head": head, "skirt": skirt, "tails": tails, "backpack": backpack}
    solids |= {"satchel": purse, "handbag": purse, "foot_left": shoe, "foot_right": shoe}
    return solids[kind](at, style)
