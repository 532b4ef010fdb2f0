"""`python -m pipeline.verify`, the longer name of `python -m pipeline verify`."""

from __future__ import annotations

from pipeline import cli

if __name__ == "__main__":
    cli.run_verb("verify")
