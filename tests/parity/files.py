"""Which check a golden file gets, and what came of it: ``python -m tests.parity DIR``.

Every ``*.npz`` in DIR holds inputs and outputs of an official implementation, as described in
``tests/golden/README.md``; its kind is the longest prefix of its name that stands in KINDS. A kind
is a function that yields (what, ours, golden) for everything the file lets it compare. A ``lockstep_*`` file is a
whole training of an official release (tests/lockstep.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.lockstep import lockstep
from tests.parity import adaptation, core_parts, memories, proxies, second_views
from tests.parity.arrays import Arrays, Comparison

RTOL, ATOL = 1e-4, 1e-6
LOCKSTEP_ATOL = 1e-9  # of whole trainings, in float64 on both sides


class Result(NamedTuple):
    """Outcome for one file: pass, FAIL or unknown kind."""

    name: str
    status: str
    error: float | None = None
    remark: str = ""

    @property
    def failed(self) -> bool:
        """Whether this file makes the whole comparison fail."""
        return self.status in ("FAIL", "unknown kind")


KINDS: dict[str, Callable[[Arrays], Iterator[Comparison]]] = {
    "jaccard": core_parts.jaccard,
    "market_metric": core_parts.market_metric,
    "rerank": core_parts.reranking,
    "cluster_contrast_cm": memories.cluster_contrast("sequential"),
    "cluster_contrast_hard": memories.cluster_contrast("hardest"),
    "hhcl_released": memories.hhcl_released,
    "hhcl_hybrid": memories.hhcl_hybrid,
    "spcl_hybrid_memory": memories.spcl_hybrid_memory,
    "selective_contrastive": memories.selective_contrastive,
    "pisl_losses": proxies.pisl_losses,
    "o2cap": proxies.o2cap,
    "cap": proxies.cap,
    "pplr": proxies.pplr,
    "ice": second_views.ice,
    "ise": second_views.ise,
    "style_norm": core_parts.style_norm,
    "hhl_triplet": adaptation.hhl_triplet,
    "ecn_exemplar": memories.ecn_exemplar,
    "dino_ibot": second_views.dino_ibot,
    "lockstep_cluster_contrast": lockstep,
    "lockstep_hhcl": lockstep,
    "lockstep_spcl": lockstep,
    "alignment": adaptation.alignment,
    "mar_losses": adaptation.mar,
    "buc_repelled": adaptation.repelled,
    "buc_merge": adaptation.merged,
    "paul_patch": adaptation.patches,
}


def compare_file(path: Path) -> Result:
    """Run the check of one file's kind."""
    kinds = [kind for kind in KINDS if path.name.startswith(kind)]
    if not kinds:
        return Result(path.name, "unknown kind", remark=f"known are {', '.join(KINDS)}")
    check = KINDS[max(kinds, key=len)]
    rtol, atol = (0.0, LOCKSTEP_ATOL) if check is lockstep else (RTOL, ATOL)
    try:
        with np.load(path) as data:
            comparisons = list(check(data))
    except Exception as error:  # whatever a damaged file provokes fails that file alone
        return Result(path.name, "FAIL", remark=f"{type(error).__name__}: {error}")
    worst, wrong = 0.0, []
    for what, ours, golden in comparisons:
        if ours.shape != golden.shape:
            wrong.append(f"{what} has shape {ours.shape} instead of {golden.shape}")
            continue
        error = np.abs(ours.astype(np.float64) - golden)
        # Written so that a NaN on either side fails.
        if not (error <= atol + rtol * np.abs(golden)).all():
            wrong.append(what)
        worst = max(worst, float(np.nan_to_num(error, nan=np.inf).max()))
    return Result(path.name, "FAIL" if wrong else "pass", worst, ", ".join(wrong))


def main(arguments: list[str] | None = None) -> int:
    """Print one line per file; 0 when no file failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of golden .npz files")
    folder = parser.parse_args(arguments).folder
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        print(f"{folder} holds no .npz file; name a folder such as tests/golden", file=sys.stderr)
        return 2
    width = max(len(path.name) for path in paths)
    failures = 0
    for path in paths:
        result = compare_file(path)
        failures += result.failed
        error = "" if result.error is None else f"{result.error:.1e}"
        print(f"{result.name:{width}}  {error:>7}  {result.status}  {result.remark}".rstrip())
    print(f"{len(paths)} files, {failures} failed (rtol {RTOL:g}, atol {ATOL:g}; lockstep: atol {LOCKSTEP_ATOL:g})")
    return 1 if failures else 0
