"""Market-1501 (Zheng et al., ICCV 2015), the version of 2015-09-15.

Names such as ``0002_c1s1_000451_03.jpg``: person, camera, sequence, frame, box. In
``bounding_box_test`` person 0000 is a distractor and -1 is junk. ``gt_bbox`` and ``gt_query`` are
not read.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from datasets.base import MARKET_LAYOUT, Dataset, index_names

NAME_PATTERN = r"(?P<person>-?\d+)_c(?P<camera>\d+)s\d+_(?P<frame>\d+)"


def index(folder: Path) -> pd.DataFrame:
    """Rows of the three folders; gallery images of person -1 have the split ``junk``."""
    return index_names(folder, NAME_PATTERN)


DATASET = Dataset(
    name="market1501",
    folders=("Market-1501-v15.09.15", "Market-1501", "market1501"),
    layouts=(tuple(MARKET_LAYOUT),),
    obtain="Market-1501-v15.09.15.zip, linked from its authors' page (Zheng et al., ICCV 2015)",
    index=index,
    expected={
        "train": {"images": 12936, "identities": 751, "cameras": 6},
        "query": {"images": 3368, "identities": 750, "cameras": 6},
        "gallery": {"images": 15913, "identities": 750, "cameras": 6},
        "junk": {"images": 19732 - 15913},
    },
)
