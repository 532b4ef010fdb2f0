"""Every command that a page shows is understood by the real parser, and what it names is there."""

from __future__ import annotations

import argparse
import re
import shlex
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
from dvc.cli import parse_args as parse_dvc

import datasets
import methods
from core.backbones.net import BACKBONES
from evaluation import protocol as protocols
from pipeline.cli import VERBS, read_params
from pipeline.jobs import ROOT
from pipeline.layers import profiles
from pipeline.settings import choose_backbone, resolve_run
from tests.test_docs import tracked

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
PROGRAMS = ("python -m ", "torchrun ", "make ", "dvc ")
OTHERS = {".", "git", "pip"}  # what a console block may hold beside them
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*(-[A-Z]+)?")  # NAME, DIR, METHOD-VARIANT: the reader's own
MAKE = (ROOT / "Makefile").read_text()
# Of torchrun, dvc, tensorboard, official code.
FOREIGN = {"--nproc-per-node", "--workspace", "--name-only", "--logdir", "--use-hard"}
PAGES = [
    file
    for file in tracked()
    if file.suffix == ".md" and file.relative_to(ROOT).parts[0] in ("README.md", "CONTRIBUTING.md", "docs", "methods")
]


class Command(NamedTuple):
    """A command, whether it stands in a line of text, and the methods that its page has the reader make."""

    text: str
    mentioned: bool
    made: frozenset[str]


class Parsed(BaseException):
    """Ends an entry point once its arguments are parsed."""

    def __init__(self, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
        self.parser, self.options = parser, options


def commands(page: Path) -> list[Command]:
    """Lines of a page's blocks and words between backticks that begin like a command."""
    text = page.read_text()
    made = frozenset(re.findall(r"new_method (\w+)", text))
    found = []
    for kind, block in BLOCK.findall(text):
        if kind in ("", "console"):
            lines = [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
            known = [line for line in lines if line.startswith(PROGRAMS)]
            strange = [line for line in lines if line not in known and line.split()[0] not in OTHERS]
            assert kind != "console" or not strange, f"{page}: no test reads {strange}"
            found += [Command(line, False, made) for line in known]
    for words in INLINE.findall(BLOCK.sub("", text)):
        words = " ".join(words.split())
        if f"{words} ".startswith(PROGRAMS):
            found.append(Command(words, True, made))
    return found


def stop(self: argparse.ArgumentParser, argv: list[str] | None = None) -> NoReturn:
    options, unknown = self.parse_known_args(argv)
    if unknown:
        self.error(f"unrecognized arguments: {' '.join(unknown)}")
    raise Parsed(self, options)


@pytest.fixture(autouse=True)
def _only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cli.Parser.parse_args", stop)


def check(command: Command) -> None:
    """Raise AssertionError where a command would not be understood."""
    words = shlex.split(command.text, comments=True)
    if words[0] == "make":
        return check_make(words[1:], command.made)
    if words[0] == "dvc":
        return check_dvc(words[1:], command.mentioned)
    if words == ["torchrun"]:
        return None
    start = words.index("-m")
    return check_module(words[start + 1], words[start + 2 :], command)


def check_make(words: list[str], made: frozenset[str]) -> None:
    for word in words:
        name, is_variable, value = word.partition("=")
        if is_variable:
            assert f"$({name})" in MAKE, f"the Makefile reads no {name}"
            assert name != "METHOD" or known_method(value, made), f"there is no method {value}"
        else:
            assert re.search(rf"^{re.escape(name)}:", MAKE, re.MULTILINE), f"the Makefile has no target {name}"


def check_dvc(words: list[str], mentioned: bool) -> None:
    """Through DVC's own parser; of a command that is mentioned without its arguments, that it exists."""
    bare = mentioned and not any(word.startswith("-") or word.isupper() for word in words)
    with pytest.raises(SystemExit, match=r"^0$") if bare else nullcontext():
        parse_dvc([*words, "--help"] if bare else words)


def check_module(module: str, arguments: list[str], command: Command) -> None:
    """A verb's arguments through its own parser; of another module, that its text has the options and files exist."""
    package, _, verb = module.partition(".")
    if package == "pipeline":
        if not verb:
            verb, *arguments = arguments or [""]
        if not verb or verb == "VERB":
            return
        assert verb in VERBS, f"there is no verb {verb}"
        if not {"...", "--help"} & set(arguments) and (arguments or not command.mentioned):
            check_names(verb, parse(verb, arguments), command.made)
        return
    found = find_spec(module)
    assert found is not None, f"there is no module {module}"
    origin = Path(str(found.origin))
    source = (origin.with_name("__main__.py") if origin.name == "__init__.py" else origin).read_text()
    for word in arguments:
        assert not word.startswith("-") or word in source or module == "pytest", f"{module} has no option {word}"
        made = any(name in word for name in command.made)
        assert "/" not in word or made or word.startswith("docs/") or (ROOT / word).exists(), f"there is no {word}"


def parse(verb: str, arguments: list[str]) -> argparse.Namespace:
    """Arguments as the verb's own parser reads them."""
    with pytest.raises(Parsed) as parsed:
        import_module(VERBS[verb].module).main(arguments)
    return parsed.value.options


def known_method(name: str, made: frozenset[str]) -> bool:
    return bool(PLACEHOLDER.fullmatch(name)) or name.partition("-")[0] in {*methods.available(), *made}


def check_names(verb: str, options: argparse.Namespace, made: frozenset[str]) -> None:
    """Methods, datasets, profiles, protocols, backbones, settings and files of the suite that a command names."""
    given = {name: value for name, value in vars(options).items() if value and not placeholder(value)}
    known = {
        "profile": profiles(),
        "backbone": list(BACKBONES),
        "protocol": protocols.available(),
    }
    for name, names in known.items():
        assert given.get(name, names[0]) in names, f"there is no {name} {given[name]}"
    for name in ("params", "source", "reference"):
        assert name not in given or (ROOT / given[name]).exists(), f"there is no {given[name]}"
    dataset, method = given.get("dataset"), given.get("method")
    assert dataset is None or datasets.split_number(dataset)[0] in datasets.available(), (
        f"there is no dataset {dataset}"
    )
    assert method is None or known_method(method, made), f"there is no method {method}"
    if verb == "train" and dataset and method and method.partition("-")[0] not in made:
        options.params = ROOT / options.params
        params = read_params(options)
        backbone = choose_backbone(method, params, options.backbone)
        resolve_run(method, dataset, params.profile, params.overrides, "train", options.assignments, backbone)


def placeholder(value: object) -> bool:
    return PLACEHOLDER.fullmatch(str(value)) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_understood(page: Path) -> None:
    for command in commands(page):
        try:
            check(command)
        except (SystemExit, Exception) as error:
            pytest.fail(f"{page.relative_to(ROOT)}: `{command.text}`: {error}")


@cache
def every_option() -> set[str]:
    """Options of all verbs, and what stands in the text of other programs of the suite."""
    found = set(FOREIGN)
    for verb in VERBS.values():
        source = Path(str(find_spec(verb.module).origin)).read_text()  # type: ignore[union-attr]
        found |= set(re.findall(r'"(--[\w-]+)"', source))
    for file in (file for folder in ("pipeline", "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")):
        found |= set(re.findall(r'"(--[\w-]+)"', file.read_text()))
    return found


def test_every_option_that_the_pages_for_users_name_exists() -> None:
    for page in (file for file in PAGES if file.parent in (ROOT, ROOT / "docs")):
        for words in INLINE.findall(BLOCK.sub("", page.read_text())):
            for option in re.findall(r"(?<!\S)--[a-z][\w-]*", words):
                assert option in every_option(), f"{page.relative_to(ROOT)}: no program has {option}"


def test_a_command_that_would_not_work_is_noticed() -> None:
    wrong = [
        "python -m pipeline trian --method hhcl",
        "python -m pipeline train --method hhcl --datset rendered-0",
        "python -m pipeline train --method hhcl-papr --dataset rendered-0",
        "python -m pipeline train --method hhcl --dataset rendered-0 --set clustering.epz=0.6",
        "python -m pipeline prepare --dataset market1502",
        "python -m pipeline sweep --params params.gpu_long.yaml",
        "python -m tests.parity tests/gloden",
        "python -m tests.replay --recrod hhcl",
        "make leaderbord",
        "make ablation METHOD=hhlc",
        "dvc exp rnu -S a=b",
    ]
    for text in wrong:
        with pytest.raises((AssertionError, SystemExit, Exception)):
            check(Command(text, False, frozenset()))
