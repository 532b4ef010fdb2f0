"""Begin a method: copy methods/_template into a folder, a page and a test of its own, under the method's name.

What is written trains as it stands: Cluster Contrast with one term more. docs/add_a_method.md goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import methods
from core.errors import UserError
from core.files import write_text
from pipeline import cli
from pipeline.jobs import ROOT

TEMPLATE = ROOT / "methods/_template"
PLACES = {  # of each file of the template; NAME is the method's
    "__init__.py": "methods/NAME/__init__.py",
    "method.py": "methods/NAME/method.py",
    "config.yaml": "methods/NAME/config.yaml",
    "published.yaml": "methods/NAME/published.yaml",
    "README.md": "methods/NAME/README.md",
    "page.md": "docs/methods/NAME.md",
    "check.py": "tests/methods/test_NAME.py",
}
INDEX = "docs/README.md"
LAST_PAGE = re.compile(r"^\| \[methods/\w+\.md\].*\n(?!\| \[methods/)", re.MULTILINE)
GOOD_NAME = re.compile(r"[a-z][a-z0-9_]*")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files and print their names."""
    arguments = cli.parser("new_method", __doc__ or "")
    arguments.add_argument("name", help="of the method and its folder: small letters, digits and '_'")
    options = arguments.parse_args(argv)
    for file in new_method(options.name, ROOT):
        print(f"wrote {file}")
    return 0


def new_method(name: str, root: Path) -> list[str]:
    """Copy the template under ``name`` into the checkout at ``root``, list its page, and return the files' names.

    Raises UserError for a name that Python cannot import or that something has already; nothing is written then.
    """
    if not GOOD_NAME.fullmatch(name):
        raise UserError(f"'{name}' is no name of a method: small letters, digits and '_', a letter first: my_method")
    places = {file: place.replace("NAME", name) for file, place in PLACES.items()}
    taken = [place for place in [f"methods/{name}", *places.values()] if (root / place).exists()]
    if name in methods.available() or taken:
        raise UserError(f"there is a '{name}' already, in {', '.join(taken) or 'methods/'}; choose another name")
    for file, place in places.items():
        write_text(root / place, filled((TEMPLATE / file).read_text(), name))
    index = root / INDEX
    write_text(index, with_line(index.read_text(), f"| [methods/{name}.md](methods/{name}.md) | what is new in it |\n"))
    return [*places.values(), INDEX]


def filled(text: str, name: str) -> str:
    """A template's text with the method's name in place of its placeholders."""
    title = "".join(part.capitalize() for part in name.split("_"))
    return text.replace("_template", name).replace("ClassName", title).replace("NAME", name)


def with_line(text: str, line: str) -> str:
    """The index with ``line`` after the last page of a method."""
    found = LAST_PAGE.search(text)
    if not found:
        raise UserError(f"{INDEX} lists no page of a method, so there is no place for: {line.strip()}")
    return text[: found.end()] + line + text[found.end() :]


if __name__ == "__main__":
    cli.run_main(main)
