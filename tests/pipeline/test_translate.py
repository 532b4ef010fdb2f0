"""`translate`: a generator of camera styles from prepared images, and a run that uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from core.errors import UserError
from core.translator import load_generator
from pipeline import train, translate
from tests.conftest import TinyWorld


def trained(world: TinyWorld, out: Path, cache: Path) -> Path:
    arguments = ["--dataset", "rendered", "--profile", "tiny", "--data", str(world.data), "--out", str(out)]
    arguments += ["--cache", str(cache), "--device", "cpu", "--iterations", "3", "--threads", "1"]
    assert translate.main(arguments) == 0
    (file,) = out.glob("translator-*.pt")
    return file


def test_an_interrupted_translator_becomes_the_same_file_and_a_run_uses_it(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(world, tmp_path / "whole", tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(translate, "KEEP_EVERY", 1)
        given = translate.Images.given

        def stops(self, number, count, streams):
            if number == 2:
                raise KeyboardInterrupt
            return given(self, number, count, streams)

        patch.setattr(translate.Images, "given", stops)
        with pytest.raises(KeyboardInterrupt):
            trained(world, tmp_path / "parts", tmp_path / "cache")
    assert not list((tmp_path / "parts").glob("translator-*.pt"))
    file = trained(world, tmp_path / "parts", tmp_path / "cache")
    assert file.name == whole.name

    content = torch.load(file, weights_only=True)
    targets = content["targets"]
    assert content["styles"] == targets + 1, "the source is a style of its own"
    sheet = Image.open(tmp_path / "parts/sheet.png")
    assert sheet.size == (32 * (1 + targets), 64 * translate.SHOWN * (1 + targets))
    assert load_generator(file, targets).styles == targets + 1

    styles = ["settings.styles.backend=stargan", f"settings.styles.translator={file}"]
    more = [part for assignment in styles for part in ("--set", assignment)] + ["--set", "schedule.epochs=1"]
    assert train.main(world.train_arguments("camera_styles", tmp_path / "run", *more)) == 0
    record = json.loads((tmp_path / "run/train.json").read_text())
    assert record["status"] == "ok"
    assert record["run"]["config"]["settings"]["styles"]["translator"] == str(file)


def test_without_a_translator_the_backend_says_how_to_get_one(world: TinyWorld, tmp_path: Path) -> None:
    arguments = world.train_arguments("camera_styles", tmp_path, "--set", "settings.styles.backend=stargan")
    with pytest.raises(UserError, match="run `python -m pipeline translate`"):
        train.main(arguments)
