"""A page of ranked lists: each query image beside its answers, with their distances, in one HTML file."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import pandas as pd
from PIL import Image

from core.images import read_image
from pipeline.crops import Crops
from pipeline.model import Model

HEIGHT = 128  # pixels of a thumbnail
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #1a1a1a; background: #fff; }
.strip { display: flex; gap: .6rem; overflow-x: auto; padding: .7rem 0; border-top: 1px solid #ccc; }
figure { margin: 0; flex: none; width: 5.6rem; }
figure.query { border-right: 2px solid #1a1a1a; padding-right: .6rem; }
img { display: block; height: 8rem; max-width: 5.4rem; object-fit: contain; border: 3px solid #bbb; background: #eee; }
.near1 img { border-style: dashed; border-color: #0072b2; }
.near2 img { border-color: #0072b2; }
figcaption { font-size: 12px; overflow-wrap: anywhere; }
"""


def page(model: Model, query: Crops, gallery: Crops, answers: pd.DataFrame, shown: int) -> str:
    """The page of the first ``shown`` queries; it needs no other file and no network."""
    thumbnails = {}  # by file, since an image may answer many queries

    def figure(crops: Crops, name: str, text: str, kind: str = "") -> str:
        file = crops.folder / name
        if file not in thumbnails:
            thumbnails[file] = thumbnail(file)
        image = f'<img alt="{escape(name)}" src="{thumbnails[file]}">'
        return f'<figure class="{kind}">{image}<figcaption>{text}<br>{escape(name)}</figcaption></figure>'

    strips = []
    for name, rows in answers.groupby("query", sort=False):
        if len(strips) == shown:
            break
        found = [
            figure(
                gallery,
                row["gallery"],
                f"{row['rank']}: {row['distance']:.3f}{mark(model, row)[1]}",
                mark(model, row)[0],
            )
            for row in rows.to_dict("records")
        ]
        strips.append(f'<div class="strip">{figure(query, name, "query", "query")}{"".join(found)}</div>')
    title = f"{len(query.files)} queries in {len(gallery.files)} images"
    left = f"<p>The first {len(strips)} queries are shown.</p>" if len(strips) < len(query.files) else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n<p>Model: {escape(model.name)}. The number beside each answer is its rank and its "
        f"distance: smaller is more alike.</p>\n{legend(model)}{left}\n" + "\n".join(strips) + "\n</body></html>\n"
    )


def mark(model: Model, row: dict[str, object]) -> tuple[str, str]:
    """Class and text of an answer: the strictest threshold that its distance is below."""
    below = [(place, fpr) for place, fpr in enumerate(model.thresholds, 1) if row[f"below_fpr_{fpr:g}"]]
    return (f"near{below[-1][0]}", f" (&le; {100 * below[-1][1]:g} %)") if below else ("", "")


def legend(model: Model) -> str:
    """What the frames mean, and where thresholds come from."""
    if not model.thresholds:
        return "<p>No thresholds are known for this model.</p>"
    limits = ", ".join(f"{100 * fpr:g} %: {limit:.3f}" for fpr, limit in model.thresholds.items())
    return (
        "<p>A frame and a share in brackets mark answers whose distance is so small that at most that share of the "
        f"pairs of different people in the model's test ({escape(model.record.data.title)}) were as near: dashed for "
        f"1 %, solid for 0.1 %. Largest such distances: {limits}. On other images the shares will differ.</p>"
    )


def thumbnail(file: Path) -> str:
    """A small JPEG of an image as a data URL."""
    image = Image.fromarray(read_image(file))
    image.thumbnail((2 * HEIGHT, HEIGHT))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
