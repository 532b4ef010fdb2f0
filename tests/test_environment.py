"""The lock file that `make` installs holds what requirements.txt asks for, and nothing that is not pinned by hash."""

from __future__ import annotations

import re

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.jobs import ROOT

HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked() -> dict[str, tuple[Requirement, list[str]]]:
    """Package -> its pin and the lines that follow it."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    found: dict[str, tuple[Requirement, list[str]]] = {}
    hashes: list[str] = []
    for line in (line.removesuffix("\\").strip() for line in lines if not line.startswith("#")):
        if line.startswith("--"):
            hashes.append(line)
        else:
            wanted, hashes = Requirement(line), []
            found[canonicalize_name(wanted.name)] = (wanted, hashes)
    return found


def test_every_requirement_is_locked_at_its_version_for_its_platforms() -> None:
    pins = locked()
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        wanted = Requirement(line)
        assert canonicalize_name(wanted.name) in pins, f"{line} is not locked: run `make lock`"
        pin = pins[canonicalize_name(wanted.name)][0]
        assert pin.specifier == wanted.specifier, f"{line} is locked as {pin}: run `make lock`"
        assert (pin.marker is None) == (wanted.marker is None)


def test_every_locked_package_has_one_version_and_hashes_and_no_address() -> None:
    for name, (pin, hashes) in locked().items():
        assert re.fullmatch(r"==[^*]+", str(pin.specifier)), name
        assert hashes, name
        assert all(HASH.fullmatch(line) for line in hashes), name
    assert "://" not in (ROOT / "requirements.lock").read_text()
