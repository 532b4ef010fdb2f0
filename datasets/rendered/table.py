"""A world as a table: every random parameter of every person, camera and image, drawn once on the CPU."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from core.errors import UserError
from core.rng import Streams
from datasets.rendered.people import draw_people
from datasets.rendered.settings import DIFFICULTY, RENDERER_VERSION, SIZES, Counts, Difficulty, Size

SPLITS = ("source", "train", "query", "gallery", "distractor", "junk")
OCCLUDERS = ("none", "pole", "box", "bush", "rail", "panel")
ARMS = ("swing", "phone", "pocket", "carry")
SOURCE_ID_OFFSET = 5000  # Market names have four digits; the target domain uses ids from 1 up
NOBODY = -1


@dataclass(frozen=True)
class World:
    """All that the renderer draws.

    people: body, garments and bag per person; the last `strangers` have no label anywhere. palette: (P, slots, 3).
    cameras: source cameras first, then target cameras. images: one row per image, in rendering order.
    """

    size: Size
    people: pd.DataFrame
    palette: np.ndarray
    cameras: pd.DataFrame
    images: pd.DataFrame
    seed: int
    fingerprint: str


def draw_world(size: str = "small", world: int = 0, difficulty: Difficulty = DIFFICULTY) -> World:
    """Draw the table of world number `world`; the same arguments give the same bits on every machine."""
    if size not in SIZES:
        raise UserError(f"rendered people have no size '{size}'; choose one of {sorted(SIZES)}")
    spec, streams = SIZES[size], Streams(world)
    strangers = max(8, spec.distractors // 3)
    count = spec.source.people + spec.train.people + spec.test.people + strangers
    people, palette = draw_people(
        streams.numpy("rendered/people"), count, streams.numpy("rendered/wardrobe"), difficulty
    )
    cameras = draw_cameras(streams.numpy("rendered/cameras"), spec.cameras, difficulty)
    tracks = _schedule(streams.numpy("rendered/schedule"), spec, strangers)
    views = _views(tracks, cameras, streams, difficulty)
    images = pd.concat([tracks, views, _hindrances(tracks, streams, spec, strangers, difficulty)], axis=1)
    _spoil_junk(images, streams.numpy("rendered/junk"))
    images = images.round(5)
    print_ = _fingerprint(size, world, difficulty, palette, people, cameras, images)
    return World(spec, people, palette, cameras, images, world, print_)


def _fingerprint(size: str, world: int, difficulty: Difficulty, palette: np.ndarray, *tables: pd.DataFrame) -> str:
    """sha256 of the renderer's version, the arguments and every number of the table."""
    head = {"renderer": RENDERER_VERSION, "size": size, "world": world, "difficulty": asdict(difficulty)}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(palette, dtype="<f8").tobytes())
    for table in tables:
        for name in table.columns:
            values = table[name].to_numpy()
            kind = "<f8" if values.dtype.kind == "f" else "<i8"
            digest.update(name.encode() + np.ascontiguousarray(values, dtype=kind).tobytes())
    return digest.hexdigest()


def draw_cameras(rng: np.random.Generator, per_domain: int, difficulty: Difficulty) -> pd.DataFrame:
    """Cameras of both domains: where they look from, their light, their colours and their faults."""
    count = 2 * per_domain
    sharpness = rng.permuted(np.tile(np.linspace(0, 1, per_domain), (2, 1)), axis=1).ravel()  # both domains have all
    azimuth = rng.uniform(-1.2, 1.2, count)
    height = rng.uniform(0.5, 1.2, count)
    cast = rng.uniform(-1, 1, (count, 3))
    cast -= cast.mean(axis=1, keepdims=True)
    main_yaw = np.concatenate(
        [rng.permutation(np.arange(per_domain)) * (360 / per_domain) + rng.uniform(0, 360) for _ in range(2)]
    )
    return pd.DataFrame(
        {
            "domain": np.repeat([0, 1], per_domain),
            "number": np.tile(np.arange(1, per_domain + 1), 2),
            "yaw": main_yaw % 360,
            "elevation": rng.uniform(3, difficulty.elevation, count),
            "light_x": np.sin(azimuth) * np.cos(height),
            "light_y": np.sin(height),
            "light_z": np.cos(azimuth) * np.cos(height),
            "diffuse": rng.uniform(0.25, 0.6, count),
            "gain_r": 1 + difficulty.colour_cast * cast[:, 0],
            "gain_g": 1 + 0.6 * difficulty.colour_cast * cast[:, 1],
            "gain_b": 1 + difficulty.colour_cast * cast[:, 2],
            "bend": difficulty.gamma * rng.uniform(-1, 1, count),
            "exposure": 1 + difficulty.exposure * rng.uniform(-1, 1, count),
            "black": rng.uniform(0, 0.06, count),
            "saturation": rng.uniform(0.78, 1.08, count),
            "blur": difficulty.blur * sharpness,
            "noise": difficulty.noise * rng.uniform(0.25, 1, count),
            "scene": rng.integers(1 << 20, size=count),
        }
    ).round(5)


def _schedule(rng: np.random.Generator, size: Size, strangers: int) -> pd.DataFrame:
    """Who is seen where: a row per image with split, person row, person id, camera row, sequence, frame, box, track."""
    blocks = []
    target_ids = rng.permutation(np.arange(1, size.train.people + size.test.people + 1))
    ids = {
        "source": SOURCE_ID_OFFSET + np.arange(size.source.people),
        "train": np.sort(target_ids[: size.train.people]),
        "test": np.sort(target_ids[size.train.people :]),
    }
    first = {"source": 0, "train": size.source.people, "test": size.source.people + size.train.people}
    for split, counts in (("source", size.source), ("train", size.train), ("test", size.test)):
        person, camera = _pairs(rng, counts, size.cameras)
        repeats = _at_least_one(rng, counts.images, len(person)) + (split == "test")
        track = np.repeat(np.arange(len(person)), repeats)
        order = np.arange(len(track)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        block = pd.DataFrame({"person": person[track], "camera": camera[track], "track": track, "order": order})
        block["pid"] = ids[split][block["person"]]
        block["person"] += first[split]
        block["split"] = SPLITS.index(split) if split != "test" else np.where(order == 0, 2, 3)
        block["camera"] += 0 if split == "source" else size.cameras
        blocks.append(block)
    blocks.append(_unlabelled(rng, size, strangers, first["test"]))
    images = pd.concat(blocks, ignore_index=True)
    images["track"] = images.groupby(["split", "pid", "camera", "track"], sort=False).ngroup()
    return _number_frames(rng, images)


def _pairs(rng: np.random.Generator, counts: Counts, cameras: int) -> tuple[np.ndarray, np.ndarray]:
    """(person, camera) pairs, sorted: every person under at least two cameras, the rest of the pairs by chance."""
    if not 2 * counts.people <= counts.pairs <= cameras * counts.people:
        raise UserError(f"{counts} leaves no choice of two to {cameras} cameras per person")
    rank = rng.random((counts.people, cameras))
    rank = np.where(rank.argsort(axis=1).argsort(axis=1) < 2, -1.0, rank)
    chosen = np.sort(rank.ravel().argsort(kind="stable")[: counts.pairs])
    return chosen // cameras, chosen % cameras


def _at_least_one(rng: np.random.Generator, total: int, cells: int) -> np.ndarray:
    """`total` images over `cells` tracks, each at least one."""
    return 1 + rng.multinomial(total - cells, np.full(cells, 1 / cells))


def _unlabelled(rng: np.random.Generator, size: Size, strangers: int, first_test: int) -> pd.DataFrame:
    """Distractors (half strangers, half empty background) and junk (bad boxes of test people)."""
    first_stranger = first_test + size.test.people
    person = np.where(
        rng.random(size.distractors) < 0.5, NOBODY, first_stranger + rng.integers(strangers, size=size.distractors)
    )
    junk = first_test + rng.integers(size.test.people, size=size.junk)
    count = size.distractors + size.junk
    return pd.DataFrame(
        {
            "person": np.concatenate([person, junk]),
            "camera": size.cameras + rng.integers(size.cameras, size=count),
            "track": np.arange(count),
            "order": 1,
            "pid": np.repeat([0, -1], [size.distractors, size.junk]),
            "split": np.repeat([4, 5], [size.distractors, size.junk]),
        }
    )


def _number_frames(rng: np.random.Generator, images: pd.DataFrame) -> pd.DataFrame:
    """Market numbers: sequence 1..6 and start frame per track, later frames 5..40 apart; box 0 is the query's."""
    tracks = int(images["track"].max()) + 1
    sequence, start = rng.integers(1, 7, size=tracks), rng.integers(1, 90000, size=tracks)
    step = rng.integers(5, 41, size=len(images))
    images["sequence"] = sequence[images["track"]]
    steps = pd.Series(step).groupby(images["track"]).cumsum()
    images["frame"] = start[images["track"]] + steps
    images["box"] = np.where(images["split"] == SPLITS.index("query"), 0, images["order"].clip(1, 99))
    return images


def _views(images: pd.DataFrame, cameras: pd.DataFrame, streams: Streams, difficulty: Difficulty) -> pd.DataFrame:
    """Viewpoint, pose and box of every image; a track keeps its walking direction, its place and its light."""
    count, tracks = len(images), int(images["track"].max()) + 1
    by_track, rng = streams.numpy("rendered/tracks"), streams.numpy("rendered/views")
    seen_by = images["camera"].to_numpy()
    track = images["track"].to_numpy()
    heading = difficulty.yaw_spread * by_track.standard_normal(tracks)
    heading += 180 * (by_track.random(tracks) < difficulty.turned)
    place, stroll = by_track.random(tracks), by_track.normal(0, 0.012, tracks)
    order = images["order"].to_numpy()
    arms = by_track.choice(len(ARMS), (tracks, 2), p=[0.68, 0.1, 0.12, 0.1])
    stride = by_track.uniform(0.12, 0.5, tracks) * (by_track.random(tracks) > 0.15)
    fill = rng.normal(0.87, difficulty.scale, count).clip(0.68, 1.0)
    offset_y = rng.normal(0, difficulty.offset, count)
    cut = rng.random(count) < difficulty.truncation
    zoom = np.where(cut, rng.uniform(1.15, 1.5, count), 1.0)
    from_top = rng.random(count) < 0.75  # a truncated box mostly loses the legs
    views = pd.DataFrame(
        {
            "yaw": (cameras["yaw"].to_numpy()[seen_by] + heading[track] + rng.normal(0, difficulty.yaw_jitter, count))
            % 360,
            "elevation": (cameras["elevation"].to_numpy()[seen_by] + rng.normal(0, 1.5, count)).clip(0, 30),
            "phase": rng.uniform(0, 2 * np.pi, count),
            "stride": stride[track],
            "lean": rng.normal(0.03, 0.03, count),
            "head_yaw": rng.normal(0, 16, count).clip(-50, 50),
            "elbow": by_track.uniform(0.1, 0.6, tracks)[track],
            "arm_left": arms[track, 0],
            "arm_right": arms[track, 1],
            "fill": fill * zoom,
            "dx": rng.normal(0, difficulty.offset, count),
            "dy": offset_y + np.where(cut, np.where(from_top, 0.5, -0.5) * (zoom - 1) * fill, 0.0),
            "stretch": rng.uniform(1.0, 1.2, count),
            "truncated": cut.astype(np.int64),
            "exposure": 1 + rng.normal(0, difficulty.exposure_jitter, count).clip(-0.2, 0.2),
            "light_turn": rng.normal(0, 0.15, count),
            "place_x": (place[track] + stroll[track] * order + rng.normal(0, 0.01, count)) % 1.0,
            "place_y": rng.uniform(0, 1, count),
        }
    )
    return views


def _hindrances(
    images: pd.DataFrame, streams: Streams, size: Size, strangers: int, difficulty: Difficulty
) -> pd.DataFrame:
    """Occluders and second pedestrians; these are strangers, so that no label leaks into another's image."""
    count = len(images)
    rng = streams.numpy("rendered/occlusion")
    occluder = np.where(rng.random(count) < difficulty.occlusion, rng.integers(1, len(OCCLUDERS), count), 0)
    labelled = size.source.people + size.train.people + size.test.people
    company = rng.random(count) < difficulty.companion
    return pd.DataFrame(
        {
            "occluder": occluder,
            "occluder_x": rng.uniform(0.05, 0.95, count),
            "occluder_size": rng.uniform(0, 1, count),
            "occluder_tone": rng.integers(1 << 20, size=count),
            "companion": np.where(company, labelled + rng.integers(strangers, size=count), NOBODY),
            "companion_dx": rng.choice([-1, 1], count) * rng.uniform(0.3, 0.55, count),
            "companion_front": (rng.random(count) < 0.5).astype(np.int64),
            "companion_turn": rng.choice([0.0, 180.0], count) + rng.normal(0, 20, count),
        }
    )


def _spoil_junk(images: pd.DataFrame, rng: np.random.Generator) -> None:
    """Boxes that no annotator would accept: a piece of a body, or a body at the edge."""
    junk = images["split"] == SPLITS.index("junk")
    count = int(junk.sum())
    images.loc[junk, "fill"] = rng.uniform(0.7, 2.6, count)
    images.loc[junk, "dx"] = rng.choice([-1, 1], count) * rng.uniform(0.25, 0.6, count)
    images.loc[junk, "dy"] = rng.uniform(-0.6, 0.6, count)
