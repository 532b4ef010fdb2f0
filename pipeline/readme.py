"""`python -m pipeline.readme`, the longer name of `python -m pipeline readme`."""

from __future__ import annotations

from pipeline import cli

if __name__ == "__main__":
    cli.run_verb("readme")
