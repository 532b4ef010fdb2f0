"""The table of a rendered world: deterministic, with disjoint people, and hindered as often as its difficulty says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from datasets.rendered import DIFFICULTY, SIZES, World, draw_world, table
from datasets.rendered.table import SPLITS


@pytest.fixture(scope="module")
def small() -> World:
    return draw_world("small", 1)


def _of(world: World, *names: str) -> pd.DataFrame:
    return world.images[world.images["split"].isin([SPLITS.index(name) for name in names])]


def test_same_arguments_give_the_same_table_bit_for_bit(small: World) -> None:
    again = draw_world("small", 1)
    for name in ("people", "cameras", "images"):
        pd.testing.assert_frame_equal(getattr(small, name), getattr(again, name), check_exact=True)
    np.testing.assert_array_equal(small.palette, again.palette)
    assert small.fingerprint == again.fingerprint


def test_fingerprint_changes_with_world_size_difficulty_and_renderer_version(monkeypatch: pytest.MonkeyPatch) -> None:
    harder = dataclasses.replace(DIFFICULTY, blur=DIFFICULTY.blur + 0.1)
    prints = [draw_world("tiny", 0).fingerprint, draw_world("tiny", 1).fingerprint]
    prints += [draw_world("small", 0).fingerprint, draw_world("tiny", 0, harder).fingerprint]
    monkeypatch.setattr(table, "RENDERER_VERSION", "next")
    prints.append(draw_world("tiny", 0).fingerprint)
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_split_has_the_promised_people_and_images(size: str) -> None:
    world, spec = draw_world(size, 0), SIZES[size]
    counts = world.images["split"].value_counts()
    promised = [spec.source.images, spec.train.images, spec.test.pairs, spec.test.images, spec.distractors, spec.junk]
    assert [counts[code] for code in range(len(SPLITS))] == promised
    for name, people in (("source", spec.source.people), ("train", spec.train.people), ("gallery", spec.test.people)):
        assert _of(world, name)["pid"].nunique() == people
    assert _of(world, "train")["camera"].nunique() == spec.cameras


def test_identities_and_cameras_are_disjoint_where_they_must_be(small: World) -> None:
    parts = [_of(small, *names) for names in (("source",), ("train",), ("query", "gallery"))]
    for column in ("pid", "person"):
        people = [set(part[column]) for part in parts]
        assert people[0].isdisjoint(people[1] | people[2])
        assert people[1].isdisjoint(people[2])
    assert not set(parts[0]["camera"]) & (set(parts[1]["camera"]) | set(parts[2]["camera"]))
    labelled = set().union(*(set(part["person"]) for part in parts))
    assert not labelled & set(small.images["companion"])
    assert not labelled & set(_of(small, "distractor")["person"])


def test_every_query_is_the_only_one_of_its_person_and_camera_and_has_a_match_elsewhere(small: World) -> None:
    query, gallery = _of(small, "query"), _of(small, "gallery")
    assert not query.duplicated(["pid", "camera"]).any()
    pairs = query.merge(gallery, on="pid")
    elsewhere = pairs[pairs["camera_x"] != pairs["camera_y"]].groupby(["pid", "camera_x"]).size()
    assert len(elsewhere) == len(query)


def test_garments_are_shared_by_many_people(small: World) -> None:
    assert small.people["top"].nunique() <= DIFFICULTY.tops
    assert small.people["bottom"].nunique() <= DIFFICULTY.bottoms
    test_people = small.people.iloc[_of(small, "query")["person"].unique()]
    top, bottom = (test_people[garment].duplicated(keep=False) for garment in ("top", "bottom"))
    assert top.mean() > 0.25
    assert (top | bottom).mean() > 0.6


def test_hindrances_occur_as_often_as_the_difficulty_says(small: World) -> None:
    images = _of(small, "source", "train", "query", "gallery")
    error = 4 * 0.5 / np.sqrt(len(images))
    assert abs((images["occluder"] > 0).mean() - DIFFICULTY.occlusion) < error
    assert abs((images["companion"] >= 0).mean() - DIFFICULTY.companion) < error
    assert abs(images["truncated"].mean() - DIFFICULTY.truncation) < error
    cut = images["truncated"] == 1
    assert images["fill"][cut].mean() > 1.2 * images["fill"][~cut].mean()
    assert images["dx"].std() == pytest.approx(DIFFICULTY.offset, rel=0.1)


def test_hindrances_disappear_with_their_difficulty() -> None:
    easy = dataclasses.replace(DIFFICULTY, occlusion=0.0, companion=0.0, truncation=0.0, offset=0.0)
    images = draw_world("tiny", 0, easy).images
    labelled = images[images["split"] != SPLITS.index("junk")]
    assert not (labelled["occluder"] > 0).any()
    assert not (labelled["companion"] >= 0).any()
    assert not labelled["truncated"].any()
    assert (labelled["dx"] == 0).all()


def test_a_person_is_seen_from_different_sides_by_different_cameras(small: World) -> None:
    images = _of(small, "train")
    direction = np.exp(1j * np.deg2rad(images["yaw"]))
    within = direction.groupby([images["pid"], images["camera"]]).mean().abs().mean()
    over_cameras = direction.groupby(images["pid"]).mean().abs().mean()
    assert within > 0.9
    assert over_cameras < 0.6


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no size 'huge'.*large.*small.*tiny"):
        draw_world("huge", 0)
