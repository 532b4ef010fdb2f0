"""Who the people are: a finite wardrobe that they share, their bodies, and a palette per person."""

from __future__ import annotations

import numpy as np
import pandas as pd

from datasets.rendered.settings import Difficulty

# Rows of a person's palette.
SLOTS = (
    "skin",
    "hair",
    "top",
    "top_second",
    "inner",
    "bottom",
    "bottom_second",
    "shoe",
    "sole",
    "bag",
    "bag_second",
    "logo",
    "cap",
    "dark",
    "print",
    "sock",
)
SLOT = {name: row for row, name in enumerate(SLOTS)}

PATTERNS = ("plain", "horizontal", "vertical", "checks", "block", "sleeves", "band")
PATTERN = {name: code for code, name in enumerate(PATTERNS)}
HAIR = ("bald", "short", "full", "long", "tail", "bun")
BAGS = ("none", "backpack", "shoulder", "hand")
BAG = {name: code for code, name in enumerate(BAGS)}
LOWER = ("trousers", "shorts", "skirt")

# Linear reflectance of cloth as it is worn: mostly dark or muted. The weight is how often tops have it.
_CLOTH: dict[str, tuple[tuple[float, float, float], float]] = {
    "black": ((0.06, 0.06, 0.07), 2.2),
    "charcoal": ((0.17, 0.17, 0.18), 1.1),
    "grey": ((0.42, 0.42, 0.43), 1.5),
    "silver": ((0.64, 0.65, 0.66), 0.8),
    "white": ((0.88, 0.87, 0.85), 2.5),
    "cream": ((0.80, 0.74, 0.60), 0.8),
    "beige": ((0.62, 0.52, 0.38), 0.8),
    "brown": ((0.33, 0.21, 0.13), 0.7),
    "maroon": ((0.36, 0.08, 0.11), 0.8),
    "red": ((0.72, 0.11, 0.12), 1.4),
    "coral": ((0.84, 0.40, 0.33), 0.5),
    "pink": ((0.85, 0.58, 0.64), 0.9),
    "orange": ((0.85, 0.45, 0.12), 0.5),
    "yellow": ((0.86, 0.75, 0.22), 0.7),
    "olive": ((0.34, 0.35, 0.18), 0.7),
    "green": ((0.15, 0.42, 0.22), 0.8),
    "mint": ((0.54, 0.76, 0.63), 0.4),
    "teal": ((0.10, 0.42, 0.44), 0.6),
    "sky": ((0.50, 0.67, 0.83), 0.9),
    "blue": ((0.16, 0.31, 0.66), 1.3),
    "navy": ((0.09, 0.12, 0.27), 1.2),
    "purple": ((0.36, 0.19, 0.47), 0.6),
    "lilac": ((0.64, 0.55, 0.75), 0.4),
}
_CLOTH_RGB = np.array([rgb for rgb, _ in _CLOTH.values()])
_CLOTH_WEIGHT = np.array([weight for _, weight in _CLOTH.values()])
_LOWER_COLOURS = ("black", "charcoal", "grey", "navy", "blue", "sky", "beige", "brown", "olive", "white", "maroon")
_SHOE_COLOURS = ("black", "black", "charcoal", "white", "white", "brown", "grey", "red", "blue", "navy")
_BAG_COLOURS = ("black", "charcoal", "brown", "red", "blue", "navy", "olive", "pink", "beige", "purple")
_SKIN = np.array([(0.90, 0.72, 0.60), (0.84, 0.63, 0.49), (0.74, 0.52, 0.38), (0.55, 0.36, 0.25), (0.36, 0.23, 0.16)])
_HAIR = np.array(
    [
        (0.05, 0.045, 0.05),
        (0.12, 0.08, 0.06),
        (0.27, 0.16, 0.09),
        (0.55, 0.40, 0.20),
        (0.45, 0.20, 0.09),
        (0.60, 0.60, 0.60),
    ]
)


def _cloth(names: tuple[str, ...], rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) colours, each name used before any is used twice, slightly varied."""
    rows = np.array([list(_CLOTH).index(name) for name in names])
    order = np.concatenate([rng.permutation(rows) for _ in range(count // len(rows) + 1)])[:count]
    return _vary(_CLOTH_RGB[order], rng)


def _vary(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gain = 1 + 0.10 * rng.standard_normal((len(rgb), 1)) + 0.04 * rng.standard_normal(rgb.shape)
    return np.clip(rgb * np.clip(gain, 0.7, 1.3), 0.03, 0.92).round(4)


def _own_colours(rgb: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) colours of which ``share`` are replaced by a hue of their own, so that colour tells people apart."""
    hue = rng.uniform(0, 6, (len(rgb), 1))
    saturation, value = rng.uniform(0.45, 0.95, (len(rgb), 1)), rng.uniform(0.3, 0.9, (len(rgb), 1))
    # Channel c of an HSV colour is value * (1 - saturation * clip(min(k, 4 - k), 0, 1)), k = (offset_c + hue) mod 6.
    place = (hue + np.array([5.0, 3.0, 1.0])) % 6
    own = value * (1 - saturation * np.minimum(place, 4 - place).clip(0, 1))
    return np.where(rng.random((len(rgb), 1)) < share, own.clip(0.03, 0.92), rgb).round(4)


def draw_tops(rng: np.random.Generator, count: int, vivid: float) -> tuple[pd.DataFrame, np.ndarray]:
    """Upper garments: columns of style, and (count, 5, 3) colours: main, second, worn underneath, logo, back print."""
    jacket = rng.random(count) < 0.35
    pattern_share = np.array([0.32, 0.16, 0.10, 0.11, 0.14, 0.08, 0.09])
    pattern = np.where(jacket & (rng.random(count) < 0.5), 0, rng.choice(len(PATTERNS), count, p=pattern_share))
    plain = np.isin(pattern, (PATTERN["plain"], PATTERN["sleeves"], PATTERN["block"]))
    sleeve = np.where(jacket, 1.97, rng.choice([0.45, 0.62, 0.62, 1.0, 1.95], count))
    style = pd.DataFrame(
        {
            "pattern": pattern,
            "stripes": rng.uniform(4.5, 9.0, count).round(3),
            "duty": rng.uniform(0.35, 0.6, count).round(3),
            "sleeve": sleeve.round(3),
            "opening": np.where(jacket & (rng.random(count) < 0.65), rng.uniform(0.2, 0.5, count), 0.0).round(3),
            "zip": jacket.astype(np.int64),
            "neckline": np.where(jacket, 0.0, rng.choice([0.0, 0.5, 1.0], count)).round(3),
            "logo": np.where(plain & ~jacket & (rng.random(count) < 0.6), rng.integers(1, 4, count), 0),
            "back_print": np.where(plain & (rng.random(count) < 0.3), rng.integers(1, 3, count), 0),
            "hem": rng.choice([0.22, 0.16, 0.08, 0.0], count, p=[0.25, 0.4, 0.25, 0.1]).round(3),
            "coat": (jacket & (rng.random(count) < 0.25)).astype(np.int64),
            "loose": np.where(jacket, rng.uniform(1.08, 1.2, count), rng.uniform(1.0, 1.1, count)).round(3),
        }
    )
    weight = _CLOTH_WEIGHT / _CLOTH_WEIGHT.sum()
    main = rng.choice(len(weight), count, p=weight)
    second, inner, logo, printed = (_differing(main, rng) for _ in range(4))
    colours = np.stack([_vary(_CLOTH_RGB[rows], rng) for rows in (main, second, inner, logo, printed)], axis=1)
    colours[:, 0] = _own_colours(colours[:, 0], vivid, rng)
    colours[:, 1] = _own_colours(colours[:, 1], vivid, rng)
    return style, colours


def _differing(main: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour row per garment that is clearly another colour than its main one."""
    chosen = np.empty_like(main)
    for k, row in enumerate(main):
        gap = np.abs(_CLOTH_RGB - _CLOTH_RGB[row]).sum(axis=1)
        weight = _CLOTH_WEIGHT * (gap > 0.55)
        chosen[k] = rng.choice(len(weight), p=weight / weight.sum())
    return chosen


def draw_bottoms(rng: np.random.Generator, count: int, vivid: float) -> tuple[pd.DataFrame, np.ndarray]:
    """Lower garments: columns of style and (count, 2, 3) colours (cloth, side stripe)."""
    kind = rng.choice(len(LOWER), count, p=[0.62, 0.22, 0.16])
    skirt_length = rng.uniform(0.5, 1.15, count)
    # The thigh under a skirt has its colour, for where the leg swings out of it.
    length = np.choose(kind, [np.full(count, 1.93), rng.choice([0.55, 0.8, 0.98], count), 0.7 * skirt_length])
    style = pd.DataFrame(
        {
            "lower": kind,
            "leg_length": length.round(3),
            "skirt_length": skirt_length.round(3),
            "flare": rng.uniform(1.0, 1.35, count).round(3),
            "side_stripe": ((kind < 2) & (rng.random(count) < 0.25)).astype(np.int64),
            "leg_loose": rng.uniform(1.0, 1.22, count).round(3),
        }
    )
    second = _CLOTH_RGB[[list(_CLOTH).index(name) for name in rng.choice(["white", "red", "silver", "yellow"], count)]]
    main = _own_colours(_cloth(_LOWER_COLOURS, rng, count), vivid, rng)
    return style, np.stack([main, second], axis=1)


def draw_people(
    rng: np.random.Generator, count: int, wardrobe: np.random.Generator, difficulty: Difficulty
) -> tuple[pd.DataFrame, np.ndarray]:
    """People dressed from one wardrobe: a row per person and (count, len(SLOTS), 3) palettes."""
    tops, top_colours = draw_tops(wardrobe, difficulty.tops, difficulty.vivid)
    bottoms, bottom_colours = draw_bottoms(wardrobe, difficulty.bottoms, difficulty.vivid)
    shoe_colours = _cloth(_SHOE_COLOURS, wardrobe, difficulty.shoes)
    bag_colours = _cloth(_BAG_COLOURS, wardrobe, difficulty.bags)
    top = rng.integers(difficulty.tops, size=count)
    bottom = rng.integers(difficulty.bottoms, size=count)
    shoe = rng.integers(difficulty.shoes, size=count)
    bag_colour = rng.integers(difficulty.bags, size=count)
    body = _draw_bodies(rng, count)
    people = pd.concat(
        [
            body,
            pd.DataFrame({"top": top, "bottom": bottom, "shoe": shoe, "bag_colour": bag_colour}),
            tops.iloc[top].reset_index(drop=True),
            bottoms.iloc[bottom].reset_index(drop=True),
        ],
        axis=1,
    )
    skin = _SKIN[rng.choice(5, count, p=[0.3, 0.32, 0.2, 0.1, 0.08])] * rng.uniform(0.93, 1.05, (count, 1))
    hair = _HAIR[rng.choice(6, count, p=[0.4, 0.27, 0.16, 0.08, 0.03, 0.06])]
    palette = np.empty((count, len(SLOTS), 3))
    palette[:, SLOT["skin"]] = skin
    palette[:, SLOT["hair"]] = hair
    for slot, column in (("top", 0), ("top_second", 1), ("inner", 2), ("logo", 3), ("print", 4)):
        palette[:, SLOT[slot]] = top_colours[top, column]
    palette[:, SLOT["bottom"]], palette[:, SLOT["bottom_second"]] = bottom_colours[bottom].transpose(1, 0, 2)
    palette[:, SLOT["shoe"]] = shoe_colours[shoe]
    palette[:, SLOT["sole"]] = np.where(rng.random((count, 1)) < 0.6, 0.75, 0.2)
    palette[:, SLOT["bag"]] = bag_colours[bag_colour]
    palette[:, SLOT["bag_second"]] = np.clip(bag_colours[bag_colour] * 0.6 + 0.12, 0, 1)
    palette[:, SLOT["cap"]] = bag_colours[rng.integers(difficulty.bags, size=count)]
    palette[:, SLOT["dark"]] = (0.07, 0.06, 0.06)
    palette[:, SLOT["sock"]] = np.where(rng.random((count, 1)) < 0.5, 0.82, 0.12)
    return people, palette.round(4)


def _draw_bodies(rng: np.random.Generator, count: int) -> pd.DataFrame:
    """Bodies, hair and what is carried; lengths are shares of the stature."""
    woman = rng.random(count) < 0.48
    hair_share = np.where(woman[:, None], [0.0, 0.1, 0.2, 0.38, 0.2, 0.12], [0.1, 0.52, 0.3, 0.05, 0.02, 0.01])
    hair = (rng.random((count, 1)) > hair_share.cumsum(axis=1)).sum(axis=1).clip(max=len(HAIR) - 1)
    return pd.DataFrame(
        {
            "stature": (1.70 - 0.07 * woman + 0.07 * rng.standard_normal(count)).clip(1.45, 1.95),
            "build": (1.0 + 0.12 * rng.standard_normal(count)).clip(0.8, 1.35),
            "belly": rng.uniform(0, 1, count) ** 2 * np.where(woman, 0.7, 1.0),
            "shoulders": np.where(woman, 0.93, 1.04) * rng.uniform(0.94, 1.06, count),
            "hips": np.where(woman, 1.08, 0.96) * rng.uniform(0.95, 1.06, count),
            "leg_ratio": rng.uniform(0.475, 0.515, count),
            "head": rng.uniform(0.94, 1.1, count),
            "hair": hair,
            "beard": (~woman & (rng.random(count) < 0.2)).astype(np.int64),
            "glasses": (rng.random(count) < 0.25).astype(np.int64),
            "cap": (rng.random(count) < 0.1).astype(np.int64),
            "belt": (rng.random(count) < 0.4).astype(np.int64),
            "bag": rng.choice(len(BAGS), count, p=[0.42, 0.26, 0.2, 0.12]),
            "bag_side": rng.choice([-1, 1], count),
            "bag_size": rng.uniform(0.8, 1.2, count),
        }
    ).round(4)
