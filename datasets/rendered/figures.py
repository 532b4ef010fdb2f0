"""Which posed people an image shows: its own person, and the second pedestrian of some images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.rendered.body import Columns, Lathe, Limb, Poser

_STYLE = ["pattern", "stripes", "duty", "sleeve", "opening", "zip", "neckline", "logo", "back_print", "hem"]
_STYLE += ["leg_length", "side_stripe", "hair", "beard", "glasses", "cap", "belt", "bag", "bag_side"]


@dataclass(frozen=True)
class Figures:
    """Posed people of a batch.

    image (F,) position in the batch; second (F,) whether this is its second pedestrian; place (F, 2) pixel of the
    ground point below the pelvis; stretch (F,) horizontal factor of the box; push (F,) pixels towards the viewer; light
    (F, 3) in view; to_body (F, 3, 3) view to body; person (F,) row of the palette; style: the person columns that
    textures read; seed (F,) of the cloth's folds.
    """

    image: np.ndarray
    second: np.ndarray
    place: np.ndarray
    stretch: np.ndarray
    push: np.ndarray
    light: np.ndarray
    to_body: np.ndarray
    person: np.ndarray
    style: dict[str, np.ndarray]
    seed: np.ndarray
    limbs: list[Limb]
    lathes: list[Lathe]


def pose_figures(people: Columns, cameras: Columns, images: Columns, height: int, width: int) -> Figures:
    """Pose everybody seen in the images of a batch; `images` has their rows of the table, people and cameras all."""
    pose = _poses(people, images, height, width)
    person = pose["person"]
    body = {name: column[person] for name, column in people.items()}
    poser = Poser(body, pose)
    poser.flesh()
    turn = pose["light_turn"]
    x, y, z = (cameras[name][pose["camera"]] for name in ("light_x", "light_y", "light_z"))
    light = np.stack([x * np.cos(turn) + z * np.sin(turn), -y, z * np.cos(turn) - x * np.sin(turn)], axis=1)
    return Figures(
        image=pose["image"],
        second=pose["second"],
        place=np.stack([pose["place_x"], pose["place_y"]], axis=1),
        stretch=pose["stretch"],
        push=pose["push"],
        light=light,
        to_body=poser.view.transpose(0, 2, 1),
        person=person,
        style={name: body[name] for name in _STYLE},
        seed=pose["number"],
        limbs=poser.limbs,
        lathes=poser.lathes,
    )


def _poses(people: Columns, images: Columns, height: int, width: int) -> Columns:
    """Columns with one row per figure: its pose, its image and its place in pixels; second pedestrians come last."""
    main = np.flatnonzero(images["person"] >= 0)
    second = np.flatnonzero(images["companion"] >= 0)
    pose = {name: column[np.concatenate([main, second])] for name, column in images.items()}
    pose["image"] = np.concatenate([main, second])
    extra = np.arange(len(pose["image"])) >= len(main)
    front = pose["companion_front"] == 1
    pose["second"] = extra
    pose["person"] = np.where(extra, pose["companion"], pose["person"])
    pose["dx"] = pose["dx"] + np.where(extra, pose["companion_dx"], 0)
    pose["yaw"] = (pose["yaw"] + np.where(extra, pose["companion_turn"], 0)) % 360
    pose["phase"] = pose["phase"] + 2.0 * extra
    pose["fill"] = pose["fill"] * np.where(extra, np.where(front, 1.05, 0.92), 1.0)
    pose["push"] = np.where(extra, np.where(front, 1.0, -1.0) * height, 0.0)
    stature = people["stature"][pose["person"]] / 1.7
    pose["pixels"] = pose["fill"] * height * np.sqrt(stature)
    pose["place_x"] = width * (0.5 + pose["dx"])
    pose["place_y"] = height * (0.5 + pose["dy"]) + 0.48 * pose["fill"] * height
    return pose
