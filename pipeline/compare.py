"""`python -m pipeline.compare`, the longer name of `python -m pipeline compare`."""

from __future__ import annotations

from pipeline import cli

if __name__ == "__main__":
    cli.run_verb("compare")
