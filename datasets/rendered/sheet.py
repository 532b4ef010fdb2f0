"""A contact sheet, identities by cameras, made from the files on disk."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw

from core.errors import UserError
from core.files import replacing
from datasets.rendered.write import MARKET

_NAME = re.compile(r"(\d{4})_c(\d)s\d_\d{6}_\d{2}\.jpg")
_HEADER, _GAP, _LABEL = 16, 3, 34


def contact_sheet(root: Path, target: Path, people: int = 10, per_camera: int = 2, scale: int = 1) -> None:
    """Write a PNG of the test people seen by most cameras, one row each.

    root: what was given to ``write`` as `out`; per_camera: images side by side per camera, if there are so many.
    """
    seen = _by_person(root / MARKET)
    if not seen:
        raise UserError(f"{root / MARKET} holds no rendered people; write them there first")
    chosen = sorted(sorted(seen, key=lambda pid: (-len(seen[pid]), pid))[:people])
    cameras = sorted({camera for pid in seen for camera in seen[pid]})
    width, height = _open(next(iter(seen[chosen[0]].values()))[0], scale).size
    column = per_camera * (width + _GAP) + _GAP
    sheet = Image.new("RGB", (_LABEL + len(cameras) * column, _HEADER + len(chosen) * (height + _GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, camera in enumerate(cameras):
        pen.text((_LABEL + place * column + 2, 2), f"camera {camera}", fill="black")
    for row, pid in enumerate(chosen):
        top = _HEADER + row * (height + _GAP)
        pen.text((2, top + height // 2), f"{pid:04d}", fill="black")
        for place, camera in enumerate(cameras):
            for k, path in enumerate(seen[pid].get(camera, [])[:per_camera]):
                sheet.paste(_open(path, scale), (_LABEL + place * column + k * (width + _GAP), top))
    with replacing(target) as file:
        sheet.save(file, "PNG")


def _open(path: Path, scale: int) -> Image.Image:
    image = Image.open(path).convert("RGB")
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _by_person(market: Path) -> dict[int, dict[int, list[Path]]]:
    """Images of query and gallery by person and camera, the query image first."""
    seen: dict[int, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for folder in ("query", "bounding_box_test"):
        for path in sorted((market / folder).glob("*.jpg")):
            match = _NAME.fullmatch(path.name)
            if match and match[1] != "0000":
                seen[int(match[1])][int(match[2])].append(path)
    return seen
