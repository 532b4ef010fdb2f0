"""What happens between the scene and the file: shadow, things in front, lens, colours, sensor. All (N, 3, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor

from datasets.rendered.noise import combine
from datasets.rendered.table import OCCLUDERS

Columns = dict[str, Tensor]


def crop(pictures: Tensor, camera: Tensor, left: Tensor, top: Tensor, height: int, width: int) -> Tensor:
    """Pieces (N, 3, height, width) of the cameras' pictures (C, 3, rows, columns) at integer corners."""
    y = top.view(-1, 1) + torch.arange(height, device=top.device)
    x = left.view(-1, 1) + torch.arange(width, device=left.device)
    return pictures.permute(0, 2, 3, 1)[camera.view(-1, 1, 1), y.unsqueeze(2), x.unsqueeze(1)].permute(0, 3, 1, 2)


def cast_shadows(background: Tensor, image: Tensor, second: Tensor, foot: Tensor, reach: Tensor) -> None:
    """Darken the ground under people, in place.

    image, second (F,): position in the batch, and whether it is the second person there; foot (F, 2) pixel; reach (F,)
    half-width in pixels.
    """
    height, width = background.shape[2:]
    y = torch.arange(height, device=foot.device).view(1, -1, 1) + 0.5 - foot[:, 1].view(-1, 1, 1)
    x = torch.arange(width, device=foot.device).view(1, 1, -1) + 0.5 - foot[:, 0].view(-1, 1, 1)
    inverse = (1 / reach).view(-1, 1, 1)
    x, y = x * inverse, y * (inverse * 4)
    shade = 1 - 0.45 * (1 - x * x - y * y).clamp(min=0)
    for layer in (~second, second):  # one write per image at a time
        chosen = torch.nonzero(layer).view(-1)
        background[image[chosen]] *= shade[chosen].unsqueeze(1)


def occlude(picture: Tensor, table: Columns) -> Tensor:
    """Put the pole, box, bush, rail or panel of each image in front of it."""
    chosen = torch.nonzero(table["occluder"] > 0).view(-1)
    if len(chosen) == 0:
        return picture
    names = ("occluder", "occluder_size", "occluder_x", "occluder_tone")
    kind, size, side, tone = (table[name][chosen].view(-1, 1, 1) for name in names)
    height, width = picture.shape[2:]
    y = (torch.arange(height, device=picture.device) + 0.5).view(1, -1, 1) * (1 / height)
    x = (torch.arange(width, device=picture.device) + 0.5).view(1, 1, -1) * (1 / width)
    rough = combine((y * 40).long() * 64 + (x * 20).long(), tone).float() * (1 / 2**32)
    mask = _outline(kind, size, side, x, y, rough)
    colour = 0.12 + 0.5 * torch.stack([((tone >> (6 * c)) & 63).float() * (1 / 63) for c in range(3)], dim=1)
    grey = (colour[:, :1] + colour[:, 1:2] + colour[:, 2:]) * (1 / 3)
    colour = (grey + 0.35 * (colour - grey)) * (1.1 - 0.25 * y + 0.12 * (rough - 0.5)).unsqueeze(1)
    leaf = torch.tensor([0.75, 1.0, 0.5], device=picture.device).view(1, 3, 1, 1) * (0.15 + 0.3 * rough.unsqueeze(1))
    colour = torch.where((kind == OCCLUDERS.index("bush")).unsqueeze(1), leaf, colour)
    edge = ((x - side).abs() / _half(size)).clamp(max=1) * (kind == OCCLUDERS.index("pole"))
    colour = colour * (1 - 0.5 * edge).unsqueeze(1)
    result = picture.clone()
    result[chosen] = torch.where(mask.unsqueeze(1), colour, picture[chosen])
    return result


def _half(size: Tensor) -> Tensor:
    """Half-width of a pole."""
    return 0.06 + 0.06 * size


def _outline(kind: Tensor, size: Tensor, side: Tensor, x: Tensor, y: Tensor, rough: Tensor) -> Tensor:
    """(n, H, W) bool: where the thing in front is. x and y are shares of the image, rough is noise in [0, 1)."""
    offset = (x - side).abs()
    outlines = {
        "pole": offset < _half(size),
        "box": y > 0.62 + 0.2 * size,
        "bush": y > 0.60 + 0.16 * size + 0.7 * offset * offset + 0.10 * (rough - 0.5),
        "rail": (y > 0.5) & (((y - 0.53).abs() < 0.02) | ((y - 0.75).abs() < 0.02) | (((x * 4 + side) % 1.0) < 0.16)),
        "panel": torch.where(side > 0.5, x > 0.62 + 0.15 * size, x < 0.38 - 0.15 * size),
    }
    mask = torch.zeros_like(rough, dtype=torch.bool)
    for name, outline in outlines.items():
        mask |= (kind == OCCLUDERS.index(name)) & outline
    return mask


def lens(picture: Tensor, blur: Tensor) -> Tensor:
    """Two passes of a symmetric three-tap filter per axis; blur (N,) is the standard deviation in pixels."""
    tap = (blur * blur * 0.25).clamp(max=0.33).view(-1, 1, 1, 1)  # two passes of variance 2*tap each
    for _ in range(2):
        for axis in (2, 3):
            length = picture.shape[axis]
            before = torch.cat([picture.narrow(axis, 0, 1), picture.narrow(axis, 0, length - 1)], dim=axis)
            after = torch.cat([picture.narrow(axis, 1, length - 1), picture.narrow(axis, length - 1, 1)], dim=axis)
            picture = picture + tap * (before + after - 2 * picture)
    return picture


def develop(picture: Tensor, camera: Columns, exposure: Tensor) -> Tensor:
    """Exposure, colour cast, tone curve, saturation and black level of each image's camera, with + and * only."""
    gain = torch.stack([camera["gain_r"], camera["gain_g"], camera["gain_b"]], dim=1)
    picture = picture * (gain * (camera["exposure"] * exposure).view(-1, 1)).view(-1, 3, 1, 1)
    picture = picture.clamp(0, 1)
    picture = picture + (camera["bend"] + 0.25).view(-1, 1, 1, 1) * picture * (1 - picture)
    grey = (0.3 * picture[:, 0] + 0.6 * picture[:, 1] + 0.1 * picture[:, 2]).unsqueeze(1)
    picture = grey + camera["saturation"].view(-1, 1, 1, 1) * (picture - grey)
    black = camera["black"].view(-1, 1, 1, 1)
    return black + (1 - black) * picture


def quantise(picture: Tensor) -> Tensor:
    """(N, H, W, 3) uint8."""
    return (picture.clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
