"""What a tracked file cites is there: a page under docs/, a section of it, the target of a link."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from functools import cache
from pathlib import Path

import pytest

import methods
from pipeline.jobs import ROOT

# Documents of the people who planned the suite: a reader of a clone cannot look anything up in them.
LACKING = re.compile(
    r"\bspecs?\b|\b(?:LANDSCAPE|DESIGN|STYLE|DOMAIN_ADAPTATION)\b|\.\./shared\b|\.md,? (?:sections? )?\d"
)
SECTION = r'"[^"]+"(?: \([^)]*\))?'
CITATION = re.compile(rf"(docs/[\w/]+\.md)((?:(?:,| and)+ {SECTION})*)")  # docs/NAME.md, "Loss" (L_x) and "Memory"
LINK = re.compile(r"\]\(([^)\s]+)\)")
TEXT = {".md", ".yaml", ".toml", ".cff", ".txt"}
SURVEYED = [name for name in methods.available() if (methods.folder(name) / "README.md").is_file()]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@cache
def prose(file: Path) -> str:
    """On one line: of Python the docstrings and comments, of other texts all, without the signs that begin comments."""
    text = file.read_text()
    if file.suffix == ".py":
        tree = ast.parse(text)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        pieces = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        pieces += [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
        text = "\n".join(pieces)
    elif file.suffix != ".md":
        text = re.sub(r"\n\s*#+ ?", " ", text)
    return " ".join(text.split())


@cache
def sections(page: Path) -> list[str]:
    """Titles of a page's headings."""
    return re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)


def anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


TEXTS = [file for file in tracked() if file.suffix in TEXT | {".py"} or file.name == "Makefile"]
PAGES = [file for file in TEXTS if file.suffix == ".md" and file.is_relative_to(ROOT / "docs")]


def test_no_tracked_text_cites_a_document_that_the_repository_lacks() -> None:
    found = {str(file.relative_to(ROOT)): LACKING.findall(prose(file)) for file in TEXTS}
    found = {name: cited for name, cited in found.items() if cited}
    assert not found, f"say the fact itself, or cite docs/methods, the paper or the official file: {found}"


def test_every_cited_page_and_section_exists() -> None:
    citations = [
        (file, *found)
        for file in TEXTS
        for found in CITATION.findall(prose(file))
        if not re.search("/(NAME|my_method)", found[0])
    ]
    assert len(citations) > 50, "the pattern has lost the citations"
    written = re.findall(r"--out (\S+)", (ROOT / "Makefile").read_text())  # a make target's page need not be there yet
    for file, page, quoted in citations:
        assert (ROOT / page).is_file() or page in written, f"{file}: there is no {page}"
        for title in re.findall(r'"([^"]+)"', quoted):
            assert title in sections(ROOT / page), f'{file}: {page} has no "{title}" but {sections(ROOT / page)}'


def test_every_link_between_pages_leads_somewhere() -> None:
    for file in (file for file in TEXTS if file.suffix == ".md"):
        for target in LINK.findall(file.read_text()):
            path, _, place = target.partition("#")
            if "://" in target or "NAME" in target:  # the template's links are right once its method has a name
                continue
            page = (file.parent / path).resolve() if path else file
            assert page.exists(), f"{file}: {target}"
            assert not place or place in map(anchor, sections(page)), f"{file}: {target}"


def test_the_index_of_docs_links_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in PAGES:
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "README.md" or f"]({name})" in index, f"docs/README.md does not link {name}"


@pytest.mark.parametrize("name", SURVEYED)
def test_a_method_s_readme_and_settings_name_the_page_of_its_equations(name: str) -> None:
    folder, page = methods.folder(name), f"docs/methods/{name}.md"
    assert (ROOT / page).is_file(), f"{page} is missing: equations by name, settings and where each comes from"
    assert f"](../../{page})" in (folder / "README.md").read_text(), f"methods/{name}/README.md does not link {page}"
    assert f'{page}, "Settings"' in prose(folder / "config.yaml"), f"methods/{name}/config.yaml does not cite {page}"
    assert f"](../../methods/{name}/README.md)" in (ROOT / page).read_text(), f"{page} does not link the README"


@pytest.mark.parametrize("name", SURVEYED)
def test_a_method_s_readme_says_how_to_run_it_and_which_columns_it_adds(name: str) -> None:
    run = (methods.folder(name) / "README.md").read_text().partition("\n## Run\n")[2].partition("\n## ")[0]
    for verb in ("train", "evaluate"):
        assert f"python -m pipeline {verb} --method {name} --dataset " in run, f"methods/{name}/README.md: no {verb}"
    assert "Columns of `history.csv` that this method adds" in " ".join(run.split()), (
        f"methods/{name}/README.md, as methods/_template's"
    )
