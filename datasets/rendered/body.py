"""From a row of the table to a posed body: round cones for limbs, lathes (elliptic solids of revolution) for the rest.

Body frame: x to the viewer's right when the person faces the camera (yaw 0), y up, z forward; lengths are shares of
the stature. View frame: pixels, x right, y down, z towards the viewer, origin at the ground below the pelvis.
Everything here is numpy float64 on the CPU and independent per figure; the renderer only sees the float32 result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.rendered.people import BAG, HAIR

KNOTS = 129  # samples of a lathe's profile
Array = np.ndarray
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Limb:
    """Round cones of one kind: present (F,) bool; a, b (F, 3) ends in view pixels; ra, rb (F,) radii."""

    kind: str
    present: Array
    a: Array
    b: Array
    ra: Array
    rb: Array


@dataclass(frozen=True)
class Lathe:
    """Solids around an axis: base (F, 3) view pixels, axes (F, 3, 3) rows = lateral, up, forward unit vectors in view,
    length (F,), lateral and forward half-widths (F, KNOTS) from base to tip in pixels."""

    kind: str
    present: Array
    base: Array
    axes: Array
    length: Array
    wide: Array
    deep: Array


def _rotation(axis: int, angle: Array) -> Array:
    """(F, 3, 3) right-handed rotations about a coordinate axis."""
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.zeros((len(angle), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, axis, axis] = 1
    matrix[:, i, i], matrix[:, i, j], matrix[:, j, i], matrix[:, j, j] = c, -s, s, c
    return matrix


def _apply(matrix: Array, vector: Array) -> Array:
    """(F, 3, 3) times (F, 3), written out so that the result of a row does not depend on the number of rows."""
    return matrix[:, :, 0] * vector[:, :1] + matrix[:, :, 1] * vector[:, 1:2] + matrix[:, :, 2] * vector[:, 2:]


def _compose(left: Array, right: Array) -> Array:
    return np.stack([_apply(left, right[:, :, k]) for k in range(3)], axis=2)


def _vector(x: Array | float, y: Array | float, z: Array | float) -> Array:
    return np.stack(np.broadcast_arrays(x, y, z), axis=1).astype(np.float64)


class Poser:
    """Skeleton and flesh of a batch of figures. person and pose are column tables with one row per figure."""

    def __init__(self, person: Columns, pose: Columns) -> None:
        self.p, self.q = person, pose
        self.count = len(pose["yaw"])
        yaw, pitch = np.deg2rad(self.q["yaw"]), np.deg2rad(self.q["elevation"])
        self.view = _compose(_rotation(0, pitch), _rotation(1, yaw))
        self.view[:, 1] *= -1  # image y points down
        self.scale = self.q["pixels"] / np.cos(pitch)  # pixels per stature
        self.limbs: list[Limb] = []
        self.lathes: list[Lathe] = []

    def to_view(self, point: Array) -> Array:
        return _apply(self.view, point) * self.scale[:, None]

    def limb(
        self, kind: str, a: Array, b: Array, ra: Array | float, rb: Array | float, present: Array | bool = True
    ) -> None:
        """A round cone between two points of the body frame, with the radii at its ends."""
        there = np.broadcast_to(present, self.count)
        ra, rb = np.broadcast_to(ra, self.count) * self.scale, np.broadcast_to(rb, self.count) * self.scale
        self.limbs.append(Limb(kind, there, self.to_view(a), self.to_view(b), ra, rb))

    def lathe(
        self,
        kind: str,
        base: Array,
        frame: Array,
        length: Array | float,
        profile: Sequence[tuple[float, Array | float, Array | float]],
        present: Array | bool = True,
    ) -> None:
        """A lathe on a point of the body frame. frame: (F, 3, 3) columns lateral, up, forward; profile: knots
        (share of the length, half-width, half-depth) from the base up."""
        wide = _profile([(h, w) for h, w, _ in profile], self.count) * self.scale[:, None]
        deep = _profile([(h, d) for h, _, d in profile], self.count) * self.scale[:, None]
        axes = np.stack([_apply(self.view, frame[:, :, k]) for k in range(3)], axis=1)
        there = np.broadcast_to(present, self.count)
        size = np.broadcast_to(length, self.count) * self.scale
        self.lathes.append(Lathe(kind, there, self.to_view(base), axes, size, wide, deep))

    def flesh(self) -> None:
        """Everything there is to draw."""
        self._skeleton()
        self._legs()
        self._arms()
        self._trunk()
        self._head()
        self._bags()

    def _skeleton(self) -> None:
        """Hips, shoulders and frames; the lower foot stands on the ground."""
        p, q = self.p, self.q
        self.thigh, self.shin = 0.52 * (p["leg_ratio"] - 0.04), 0.48 * (p["leg_ratio"] - 0.04)
        self.legs = {side: self._leg(side) for side in (-1, 1)}
        lowest = np.minimum(*(np.minimum(leg["ankle"][:, 1], leg["toe"][:, 1] + 0.02) for leg in self.legs.values()))
        self.pelvis = _vector(0.0, 0.04 - lowest, 0.0)
        sway = 0.05 * np.sin(q["phase"]) * (q["stride"] > 0)
        self.trunk = _compose(_rotation(1, -1.2 * sway), _rotation(0, q["lean"]))
        self.trunk_length = 0.875 - p["leg_ratio"] + 0.055
        self.crotch = self.pelvis + _apply(self.trunk, _vector(0, np.full(self.count, -0.055), 0))

    def on_trunk(self, x: Array | float, height: Array | float, z: Array | float) -> Array:
        """A point given by lateral, share of the trunk's height, and forward coordinate."""
        local = _vector(np.broadcast_to(x, self.count), np.asarray(height) * self.trunk_length, z)
        return self.crotch + _apply(self.trunk, local)

    def _leg(self, side: int) -> dict[str, Array]:
        """Joints of a leg relative to the pelvis. Swing of a walk: the knee bends while the thigh moves forward."""
        p, q = self.p, self.q
        phase = q["phase"] + (np.pi if side < 0 else 0)
        swing = q["stride"] * np.sin(phase) + 0.12 * q["stride"]
        knee_bend = 0.06 + 1.7 * q["stride"] * np.maximum(0, np.cos(phase + 0.45)) ** 2
        out = 0.035 * side
        hip = _vector(side * 0.047 * p["hips"] * np.sqrt(p["build"]), np.zeros(self.count), 0.0)
        knee = hip + self.thigh[:, None] * _vector(out, -np.cos(swing), np.sin(swing))
        back = swing - knee_bend
        ankle = knee + self.shin[:, None] * _vector(0.0, -np.cos(back), np.sin(back))
        dip = np.where(back < 0, 0.75 * -back, -0.3 * back)
        forward = _vector(0.18 * side, -np.sin(dip), np.cos(dip))
        toe = ankle + 0.085 * forward - [0, 0.02, 0]
        return {"hip": hip, "knee": knee, "ankle": ankle, "toe": toe, "forward": forward}

    def _legs(self) -> None:
        p = self.p
        build = np.sqrt(p["build"])
        covered = p["leg_length"]
        loose = p["leg_loose"]
        knee_loose, ankle_loose = np.where(covered > 0.9, loose, 1.0), np.where(covered > 1.5, loose**1.5, 1.0)
        lift = self.pelvis
        for side, leg in self.legs.items():
            name = "left" if side > 0 else "right"
            hip, knee, ankle, toe = (leg[joint] + lift for joint in ("hip", "knee", "ankle", "toe"))
            heel = ankle - 0.022 * leg["forward"] - [0, 0.018, 0]
            self.limb(f"foot_{name}", heel, toe, 0.024, 0.019)
            self.limb(f"shin_{name}", knee, ankle, 0.038 * build * knee_loose, 0.024 * build * ankle_loose)
            self.limb(f"thigh_{name}", hip, knee, 0.056 * build * p["hips"], 0.038 * build * knee_loose)

    def _arms(self) -> None:
        p, q = self.p, self.q
        build = np.sqrt(p["build"])
        sleeve = np.where(p["sleeve"] > 0.3, p["loose"], 1.0)
        fore = np.where(p["sleeve"] > 1.2, p["loose"], 1.0)
        self.hands = {}
        for side, name in ((1, "left"), (-1, "right")):
            arm = q[f"arm_{name}"]
            shoulder = self.on_trunk(side * 0.098 * p["shoulders"] * p["build"] ** 0.3, 0.885, 0.0)
            swing = -1.1 * q["stride"] * np.sin(q["phase"] + (np.pi if side < 0 else 0))
            upper = np.choose(arm, [swing, 0.25, -0.3, 0.15 * swing])  # in the order of ARMS
            bend = np.choose(arm, [q["elbow"] + 0.3 * np.maximum(0, upper), 2.1, 0.75, 0.12])
            out = side * np.choose(arm, [0.12, 0.2, 0.3, 0.1])
            inward = -side * np.choose(arm, [0.05, 0.55, 0.35, 0.0])
            elbow = shoulder + 0.172 * _direction(upper, out)
            wrist = elbow + 0.142 * _direction(upper + bend, inward)
            tip = wrist + 0.055 * _direction(upper + bend, inward)
            self.limb(f"upper_arm_{name}", shoulder, elbow, 0.034 * build * sleeve, 0.027 * build * sleeve)
            self.limb(f"forearm_{name}", elbow, wrist, 0.027 * build * fore, 0.020 * build * fore)
            self.limb(f"hand_{name}", wrist, tip, 0.018, 0.015)
            self.hands[side] = tip

    def _trunk(self) -> None:
        p = self.p
        w, d = p["build"], p["build"] * (0.94 + 0.2 * p["belly"])
        hips, shoulders, loose = p["hips"] * np.sqrt(w), p["shoulders"] * w**0.4, p["loose"]
        belly = 0.055 * d * (1 + 0.5 * p["belly"])
        profile = [
            (0.0, 0.060 * hips, 0.045 * d),
            (0.06, 0.088 * hips, 0.062 * d),
            (0.2, 0.099 * hips * np.sqrt(loose), 0.070 * d),
            (0.45, 0.085 * np.sqrt(w) * w**0.4 * loose, belly * loose),
            (0.72, 0.100 * shoulders * loose, 0.068 * np.sqrt(d) * loose),
            (0.86, 0.112 * shoulders * loose, 0.060 * np.sqrt(d) * loose),
            (0.93, 0.096 * shoulders * loose, 0.048 * loose),
            (0.975, 0.060 * shoulders, 0.038 + 0 * w),
            (1.0, 0.030 + 0 * w, 0.026 + 0 * w),
        ]
        self.lathe("trunk", self.crotch, self.trunk, self.trunk_length, profile)
        self.limb("neck", self.on_trunk(0, 0.93, 0.0), self.on_trunk(0, 1.07, 0.012), 0.031 * np.sqrt(w), 0.029)
        self._skirts(hips, d)

    def _skirts(self, hips: Array, d: Array) -> None:
        """A skirt, and the tails of a long coat: both hang from the waist and give way to the stride."""
        p, q = self.p, self.q
        waist = self.on_trunk(0, 0.34, 0.0)
        swing = 1.12 * q["stride"] * np.abs(np.sin(q["phase"]))
        for kind, present, length, flare in (
            ("skirt", p["lower"] == 2, 0.09 + 0.19 * p["skirt_length"], p["flare"]),
            ("tails", p["coat"] == 1, 0.20 + 0.08 * p["loose"], 1.05 * p["loose"]),
        ):
            grow = 1.08 if kind == "tails" else 1.0
            stretched = (length - 0.08) * np.sin(swing)  # by the knees
            profile = [
                (0.0, 0.100 * hips * flare * grow, 0.078 * d * flare * grow + 0.8 * stretched),
                (0.5, 0.104 * hips * np.sqrt(flare) * grow, 0.078 * d * np.sqrt(flare) * grow + 0.4 * stretched),
                (1.0, 0.086 * hips * grow, 0.062 * d * grow),
            ]
            down = waist - length[:, None] * _vector(np.zeros(self.count), 1.0, 0.0)
            frame = np.broadcast_to(np.eye(3), (self.count, 3, 3))
            self.lathe(kind, down, frame, length, profile, present)

    def _head(self) -> None:
        p, q = self.p, self.q
        turn = _compose(self.trunk, _rotation(1, np.deg2rad(q["head_yaw"])))
        size = 0.13 * p["head"]
        chin = self.on_trunk(0, 1.035, 0.018)
        one = p["head"]
        profile = [
            (0.0, 0.018 * one, 0.022 * one),
            (0.1, 0.033 * one, 0.040 * one),
            (0.3, 0.044 * one, 0.052 * one),
            (0.55, 0.049 * one, 0.059 * one),
            (0.78, 0.046 * one, 0.056 * one),
            (0.93, 0.029 * one, 0.037 * one),
            (1.0, 0.006 * one, 0.008 * one),
        ]
        self.lathe("head", chin, turn, size, profile)

        def at(x: float, height: float, z: float) -> Array:
            return chin + _apply(turn, _vector(x, size * height, z * one))

        hair, long, tail, bun = p["hair"], HAIR.index("long"), HAIR.index("tail"), HAIR.index("bun")
        volume = (hair > 0) & (p["cap"] == 0)
        self.limb("hair", at(0, 0.68, -0.012), at(0, 0.75, 0.0), 0.050 * one, 0.051 * one, volume)
        fall = [(0.0, 0.030 * one, 0.012 * one), (0.4, 0.056 * one, 0.026 * one), (1.0, 0.052 * one, 0.030 * one)]
        self.lathe("mane", at(0, -0.55, -0.042), turn, size * 1.2, fall, hair == long)
        self.limb("tail", at(0, 0.65, -0.062), at(0, -0.25, -0.085), 0.016, 0.010, hair == tail)
        self.limb("bun", at(0, 0.92, -0.045), at(0, 0.95, -0.05), 0.026, 0.026, hair == bun)
        self.limb("brim", at(0, 0.74, 0.055), at(0, 0.72, 0.083), 0.020, 0.014, p["cap"] == 1)

    def _bags(self) -> None:
        p = self.p
        size, kind = p["bag_size"], p["bag"]
        deep = 0.042 + 0.055 * p["build"]
        pack = [
            (0.0, 0.066 * size, 0.036 * size),
            (0.12, 0.080 * size, 0.050 * size),
            (0.6, 0.080 * size, 0.050 * size),
            (0.88, 0.066 * size, 0.038 * size),
            (1.0, 0.028 * size, 0.014 * size),
        ]
        behind = self.on_trunk(0, 0.36, -0.98 * deep)
        self.lathe("backpack", behind, self.trunk, 0.225 * size, pack, kind == BAG["backpack"])
        purse = [
            (0.0, 0.030 * size, 0.066 * size),
            (0.1, 0.033 * size, 0.074 * size),
            (0.9, 0.026 * size, 0.066 * size),
            (1.0, 0.012 * size, 0.050 * size),
        ]
        side = p["bag_side"]
        hip = self.on_trunk(side * (0.118 * np.sqrt(p["build"]) * p["hips"] + 0.012), 0.02, -0.01)
        self.lathe("satchel", hip, self.trunk, 0.115 * size, purse, kind == BAG["shoulder"])
        hand = np.where((side > 0)[:, None], self.hands[1], self.hands[-1])
        frame = np.broadcast_to(np.eye(3), (self.count, 3, 3))
        down = hand - (0.125 * size + 0.02)[:, None] * _vector(np.zeros(self.count), 1.0, 0.0)
        self.lathe("handbag", down, frame, 0.13 * size, purse, kind == BAG["hand"])


def _direction(forward: Array, out: Array) -> Array:
    """Unit-length arm direction from its angle in the walking plane and its lean to the side."""
    return _vector(np.sin(out), -np.cos(forward) * np.cos(out), np.sin(forward) * np.cos(out))


def _profile(knots: Sequence[tuple[float, Array | float]], count: int) -> Array:
    """(F, KNOTS) smooth interpolation of (height, value) pairs with the same heights for all figures."""
    heights = np.array([height for height, _ in knots])
    values = np.stack([np.broadcast_to(np.asarray(value, dtype=np.float64), count) for _, value in knots], axis=1)
    y = np.linspace(0, 1, KNOTS)
    right = np.clip(np.searchsorted(heights, y, side="right"), 1, len(knots) - 1)
    t = (y - heights[right - 1]) / (heights[right] - heights[right - 1])
    t = 0.5 * t + 0.5 * t * t * (3 - 2 * t)
    return values[:, right - 1] + t * (values[:, right] - values[:, right - 1])
