"""`python -m pipeline.leaderboard`, the longer name of `python -m pipeline leaderboard`."""

from __future__ import annotations

from pipeline import cli

if __name__ == "__main__":
    cli.run_verb("leaderboard")
