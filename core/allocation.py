"""What becomes of memory that is freed on the CPU."""

from __future__ import annotations

import ctypes

KEPT = 2**30  # bytes: a block of as many or more goes back to the system at once, and so does as much free memory
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Keep what is freed for the next step; True where the C library is glibc and agreed.

    glibc hands every block of 32 MiB or more back to the system when it is freed. The next step asks for it again, and
    the system maps and clears it page by page. The activations of a large batch are such blocks: a network that only
    extracts may spend half of its time there (``benchmarks.allocation``). No number depends on it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, KEPT) for name in (MMAP_THRESHOLD, TRIM_THRESHOLD))
