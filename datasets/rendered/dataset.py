"""The rendered world as a dataset: two trees in the Market-1501 layout, read by its parser.

The target domain lies at the top; the source domain, whose labels may be used, lies in ``source/``.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from datasets.base import Dataset, index_names
from datasets.market1501 import DATASET as MARKET
from datasets.market1501 import NAME_PATTERN

TREE = MARKET.folders[0]


def index(folder: Path) -> pd.DataFrame:
    """Rows of both domains; the source gets its own split and camera numbers above the target's."""
    target = index_names(folder, NAME_PATTERN, prefix=TREE)
    source = index_names(folder, NAME_PATTERN, {"bounding_box_train": "source"}, f"source/{TREE}")
    # c1 of the source domain is another camera than c1 of the target domain.
    source["camera_id"] += target["camera_id"].max()
    return pd.concat([target, source], ignore_index=True)


DATASET = Dataset(
    name="rendered",
    folders=(),
    layouts=((TREE, f"source/{TREE}"),),
    obtain="drawn by `python -m pipeline.prepare --dataset rendered-0`",
    index=index,
    images_may_be_shown=True,
)
