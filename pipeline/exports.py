"""`python -m pipeline.exports`, the longer name of `python -m pipeline exports`."""

from __future__ import annotations

from pipeline import cli

if __name__ == "__main__":
    cli.run_verb("exports")
