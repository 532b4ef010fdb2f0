"""DukeMTMC-reID (Zheng et al., ICCV 2017; Ristani et al., ECCVW 2016).

Names such as ``0001_c2_f0046182.jpg``: person, camera, frame. The data were withdrawn by their
authors in 2019. The loader exists because published tables still report them.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from datasets.base import MARKET_LAYOUT, Dataset, index_names

NAME_PATTERN = r"(?P<person>-?\d+)_c(?P<camera>\d+)_f(?P<frame>\d+)"


def index(folder: Path) -> pd.DataFrame:
    """Rows of the three folders."""
    return index_names(folder, NAME_PATTERN)


DATASET = Dataset(
    name="dukemtmc",
    folders=("DukeMTMC-reID", "dukemtmc-reid", "dukemtmc"),
    layouts=(tuple(MARKET_LAYOUT),),
    obtain="nowhere: it was withdrawn; only those who hold a copy and may use it can prepare it",
    index=index,
    expected={
        "train": {"images": 16522, "identities": 702, "cameras": 8},
        "query": {"images": 2228, "identities": 702, "cameras": 8},
        "gallery": {"images": 17661, "cameras": 8},
    },
    notices=(
        "DukeMTMC-reID was withdrawn by its authors in 2019; check that you may use it, and think "
        "twice before publishing numbers on it",
    ),
)
