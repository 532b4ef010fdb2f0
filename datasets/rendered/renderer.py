"""Images from a world's table: the same code on CPU and CUDA, each image independent of its batch.

Only +, -, *, / and sqrt of float32 and int64 arithmetic touch pixels, in kernels of their own, so that a pixel has one
value whatever the vector width. Between CPU and CUDA a pixel in a million differs, by a few grey levels where an edge
falls the other way: the same world, not the same bytes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datasets.rendered import optics
from datasets.rendered.body import Columns
from datasets.rendered.draw import FAR, FOLDS, SUPER, Stage, draw
from datasets.rendered.figures import Figures, pose_figures
from datasets.rendered.noise import lattice_noise, pixel_noise
from datasets.rendered.scene import scenes
from datasets.rendered.table import World

_CAMERA = ("gain_r", "gain_g", "gain_b", "exposure", "bend", "saturation", "black", "blur", "noise", "diffuse")


class Renderer:
    """Draws the images of one world on one device."""

    def __init__(self, world: World, device: torch.device | str = "cpu") -> None:
        self.world = world
        self.device = torch.device(device)
        seeds = [int(seed) for seed in world.cameras["scene"]]
        self.pictures = scenes(seeds, world.size.height).to(self.device)
        self.folds = self._column(lattice_noise(99, FOLDS, FOLDS, 24, 24, 2).ravel())
        self.people, self.cameras, self.images = (
            {name: table[name].to_numpy() for name in table.columns}
            for table in (world.people, world.cameras, world.images)
        )

    def render(self, rows: np.ndarray) -> Tensor:
        """Images of the given rows of the table, (N, height, width, 3) uint8 on the device."""
        height, width = self.world.size.height, self.world.size.width
        images = {name: column[rows] for name, column in self.images.items()} | {"number": np.asarray(rows)}
        table = {name: self._column(column) for name, column in images.items()}
        camera = {name: self._column(self.cameras[name][images["camera"]]) for name in _CAMERA}
        figures = pose_figures(self.people, self.cameras, images, height, width)
        background = self._background(images)
        people, cover = self._people(figures, camera, len(rows))
        self._shadows(background, figures)
        light = 0.62 + 0.5 * camera["diffuse"]
        picture = background * ((1 - cover).unsqueeze(1) * light.view(-1, 1, 1, 1)) + people
        picture = optics.occlude(picture, table)
        picture = optics.lens(picture, camera["blur"] * (height / 128))
        picture = optics.develop(picture, camera, table["exposure"])
        noise = pixel_noise(table["number"], height, width, self.world.seed)
        return optics.quantise(picture + camera["noise"].view(-1, 1, 1, 1) * noise)

    def _column(self, values: np.ndarray) -> Tensor:
        dtype = torch.float32 if values.dtype.kind == "f" else torch.int64
        return torch.from_numpy(np.array(values, order="C")).to(self.device, dtype)

    def _background(self, images: Columns) -> Tensor:
        size = self.world.size
        spare_y, spare_x = (self.pictures.shape[2] - size.height, self.pictures.shape[3] - size.width)
        left = np.floor(images["place_x"] * spare_x).astype(np.int64)
        top = np.floor(images["place_y"] * spare_y).astype(np.int64)
        corners = (self._column(images["camera"]), self._column(left), self._column(top))
        return optics.crop(self.pictures, *corners, size.height, size.width)

    def _shadows(self, background: Tensor, figures: Figures) -> None:
        if len(figures.image):
            reach = np.maximum(figures.stretch * 0.16 * self.world.size.height, 2.0)
            image, second = self._column(figures.image), self._column(figures.second) > 0
            optics.cast_shadows(background, image, second, self._column(figures.place), self._column(reach))

    def _people(self, figures: Figures, camera: dict[str, Tensor], count: int) -> tuple[Tensor, Tensor]:
        """Colour of people premultiplied by cover (N, 3, H, W), and their cover (N, H, W)."""
        height, width = self.world.size.height * SUPER, self.world.size.width * SUPER
        depth = torch.full((count * height * width,), FAR, device=self.device)
        colour = torch.zeros(3, count * height * width, device=self.device)
        image = self._column(figures.image)
        diffuse = camera["diffuse"][image]
        stage = Stage(
            depth=depth,
            colour=colour,
            height=height,
            width=width,
            figures=figures,
            style={name: self._column(values) for name, values in figures.style.items()},
            palette=self._column(self.world.palette[figures.person].reshape(-1, 3).T),
            image=image,
            place=self._column(figures.place),
            unstretch=self._column(1 / figures.stretch),
            light=self._column(figures.light.T),
            ambient=1.0 - 0.72 * diffuse,
            diffuse=diffuse,
            to_body=self._column(figures.to_body.transpose(1, 2, 0)),
            folds=self.folds,
            seed=self._column(figures.seed),
        )
        draw(stage)
        cover = _shrink((depth > FAR).float().view(count, height, width))
        return _shrink(colour.view(3, count, height, width)).transpose(0, 1), cover


def _shrink(frame: Tensor) -> Tensor:
    """Mean over 2x2 samples of (..., H, W), added in a fixed order."""
    top = frame[..., 0::2, 0::2] + frame[..., 0::2, 1::2]
    bottom = frame[..., 1::2, 0::2] + frame[..., 1::2, 1::2]
    return (top + bottom) * 0.25
