"""MSMT17, first release: ``train`` and ``test``, faces not masked. msmt17_v2 is other data."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from datasets import _msmt17
from datasets.base import Dataset


def index(folder: Path) -> pd.DataFrame:
    """Rows of the four lists."""
    return _msmt17.index(folder, "train", "test")


DATASET = Dataset(
    name="msmt17_v1",
    folders=("MSMT17_V1", "MSMT17"),
    layouts=(("train", "test", *_msmt17.LISTS),),
    obtain="MSMT17_V1, from its authors (Wei et al., CVPR 2018) under their agreement; a folder "
    "with mask_train_v2 is the dataset msmt17_v2",
    index=index,
    expected=_msmt17.EXPECTED,
)
