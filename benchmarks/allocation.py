"""What it costs to give freed memory back to the system: `python -m benchmarks.allocation --table`.

Each network extracts features and trains, with and without ``core.allocation.keep_freed_memory``, each in a process of
its own on one thread, one after the other. Images per second of processor time, the system's included, so that other
work on the machine counts little. `--table` writes docs/scale.md.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Sequence

import torch

from core.allocation import keep_freed_memory
from core.backbones.net import build
from core.files import write_text
from pipeline.jobs import ROOT
from reports.readme import replace_between
from reports.text import markdown_table, number

PAGE = ROOT / "docs/scale.md"
COMMAND = "python -m benchmarks.allocation --table"
NETWORKS = {"mobilenet_v2": (128, 64), "resnet18_half": (96, 48)}  # as controlled_real and controlled have them
BATCHES = {"extraction": 256, "training": 64}
IMAGES = 2048


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything, each case in a process of its own; print the table, and with ``--table`` write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write docs/scale.md")
    parser.add_argument("--case", nargs=3, metavar=("NETWORK", "WORK", "HOW"), help="one case, in this process")
    options = parser.parse_args(argv)
    if options.case:
        print(*measure(*options.case))
        return 0
    lines = [compared(network, work) for network in NETWORKS for work in BATCHES]
    text = markdown_table(lines)
    print(text)
    if options.table:
        write_text(PAGE, replace_between(PAGE.read_text(), "allocation", text, COMMAND))
    return 0


def compared(network: str, work: str) -> dict[str, str]:
    """A line: the rate with and without, their ratio, and the most memory that each held."""
    command = [sys.executable, "-m", "benchmarks.allocation", "--case", network, work]
    found = {}
    for how in ("given back", "kept"):
        told = subprocess.run([*command, how], check=True, capture_output=True, text=True).stdout
        found[how] = [float(value) for value in told.split()]
    (plain, plain_peak), (kept, kept_peak) = found["given back"], found["kept"]
    return {
        "network": network,
        "work": f"{work}, {BATCHES[work]} images at once",
        "given back": number(plain, ".0f"),
        "kept": number(kept, ".0f"),
        "ratio": number(kept / plain, ".2f"),
        "peak, GB": f"{plain_peak:.1f} -> {kept_peak:.1f}",
    }


def measure(network: str, work: str, how: str) -> tuple[float, float]:
    """(images per second of processor time, peak memory in GB) of this process."""
    if how == "kept":
        keep_freed_memory()
    torch.set_num_threads(1)
    height, width = NETWORKS[network]
    net = build(network, "avg", 1, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    images = torch.randn(BATCHES[work], 3, height, width).to(memory_format=torch.channels_last)
    trains = work == "training"
    net.train(trains)
    optimiser = torch.optim.Adam(net.parameters())

    def step() -> None:
        with torch.set_grad_enabled(trains):
            output = net(images)["feature"]
        if trains:
            optimiser.zero_grad()
            output.square().mean().backward()
            optimiser.step()

    step()
    before = used()
    for _ in range(IMAGES // BATCHES[work]):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return IMAGES / (used() - before), peak


def used() -> float:
    """Seconds of the processor that this process took, in the system too."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
