"""Where the time of a run goes: named phases, summed."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseTimer:
    """Sums wall seconds per named phase; while a phase runs inside another, the other's time stands still."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a ``with`` block; waits for the GPU so that its work is counted where it was asked for."""
        self._charge()
        self._running.append(phase)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        """Add what has passed to the phase that is running, if any."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def take(self) -> dict[str, float]:
        """The seconds so far, and start again from zero."""
        taken = {name: round(value, 4) for name, value in self.seconds.items()}
        self.seconds.clear()
        return taken


def forget_peak(device: torch.device) -> None:
    """Device memory peaks anew from here; the host's peak is the process's and cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak bytes of this process: resident host memory, and device memory when there is a GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB on Linux
    peak = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["device_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak
