"""`python -m pipeline` lists the entry points; `python -m pipeline VERB ...` starts one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from core.names import unknown
from pipeline import cli


def listing() -> str:
    """Every verb with what it does and an example."""
    width = max(map(len, cli.VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in cli.VERBS.items()]
    examples = [f"  python -m pipeline {name} {verb.example}".rstrip() for name, verb in cli.VERBS.items()]
    usage = ["usage: python -m pipeline VERB [arguments]; VERB --help explains one", ""]
    return "\n".join([*usage, *lines, "", "examples:", *examples])


def main(argv: Sequence[str]) -> int:
    """Start the verb that the first argument names; without one, list them all."""
    if not argv or argv[0] in ("-h", "--help"):
        print(listing())
        return 0
    verb, *arguments = argv
    if verb not in cli.VERBS:
        print(f"error: {unknown('verb', verb, cli.VERBS)}", file=sys.stderr)
        return cli.USER_ERROR
    cli.run_verb(verb, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
