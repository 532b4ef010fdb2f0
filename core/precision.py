"""In which precision things are computed: where half precision may be used, and what is never below float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def at_least_float32(values: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 unchanged."""
    return values.float() if values.dtype in HALF.values() else values


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 products in float32: no gradient, no TF32, no autocast, whatever training uses."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Half precision on CUDA where asked for; float32 (or 64) on the CPU always."""
    if precision in HALF and device.type == "cuda":
        return torch.autocast("cuda", HALF[precision])
    return nullcontext()


def weights_dtype(precision: str) -> torch.dtype:
    """What weights and images are kept in: float64 for ``fp64``, else float32."""
    return torch.float64 if precision == "fp64" else torch.float32
