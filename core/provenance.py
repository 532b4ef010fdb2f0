"""What produced a number: code, libraries, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from core.distributed import ProcessGroup

# What decides a number. Results and documentation may change without making a run "dirty".
SOURCES = (
    "core",
    "datasets",
    "evaluation",
    "methods",
    "pipeline",
    "profiles",
    "protocols",
    "reports",
    "params.yaml",
    "dvc.yaml",
    "requirements.lock",
)
LIBRARIES = (
    "torch",
    "torchvision",
    "faiss-gpu",
    "faiss-cpu",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pillow",
)


def provenance(group: ProcessGroup, root: Path) -> dict[str, Any]:
    """Commit and dirty flag (of SOURCES only), library versions, device, threads and processes."""
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", *SOURCES)
    return {
        "commit": commit,
        "dirty": None if changed is None else bool(changed),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "platform": platform.platform(),
        "device": device_name(group.device),
        "threads": torch.get_num_threads(),
        "processes": group.size,
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, or None outside a checkout or without git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
