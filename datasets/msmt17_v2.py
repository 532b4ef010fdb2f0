"""MSMT17, second release: faces masked, in ``mask_train_v2`` and ``mask_test_v2``.

Numbers are not comparable with msmt17_v1.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from datasets import _msmt17
from datasets.base import Dataset


def index(folder: Path) -> pd.DataFrame:
    """Rows of the four lists."""
    return _msmt17.index(folder, "mask_train_v2", "mask_test_v2")


DATASET = Dataset(
    name="msmt17_v2",
    folders=("MSMT17_V2", "MSMT17"),
    layouts=(("mask_train_v2", "mask_test_v2", *_msmt17.LISTS),),
    obtain="MSMT17_V2, from its authors (Wei et al., CVPR 2018) under their agreement; a folder "
    "with train and test is the dataset msmt17_v1",
    index=index,
    expected=_msmt17.EXPECTED,
)
