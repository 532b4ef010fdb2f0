"""ONNX networks give the model's numbers for any number of images; what cannot be exported says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import methods
from core.errors import UserError
from pipeline import export_onnx, publish, train
from pipeline.export_onnx import export
from pipeline.model import Model
from pipeline.records import TrainRecord, read_train, run_record
from pipeline.scoring import load_method
from pipeline.settings import resolve_run, run_backbone
from tests.conftest import PARAMS, TinyWorld

pytest.importorskip("onnx", reason="an extra: pip install -r requirements-onnx.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="an extra: pip install -r requirements-onnx.txt")

# Why a method's way from images to features cannot be written as ONNX; docs/models.md tells users the same.
REFUSED = {"pisl": "noise for its parts is seeded by a checksum of each image"}


@pytest.fixture(scope="module")
def trained(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of no epoch."""
    out = tmp_path_factory.mktemp("onnx") / "trained"
    assert train.main(world.train_arguments("warm_start", out)) == 0
    return out


def model_of(name: str, trained: Path) -> Model:
    """A run's model with weights as they were drawn, and statistics and biases that hide no layer."""
    run = resolve_run(name, "rendered", "tiny", backbone=run_backbone(name, "rendered", PARAMS))
    fields = {"run": run_record(run)}
    if methods.load(run.trains).needs(run.config).source:
        fields["source_identities"] = 8
    record: TrainRecord = read_train(trained).model_copy(update=fields)
    weights = load_method(record)[1].state_dict()
    generator = torch.Generator().manual_seed(0)
    for value in weights.values():
        if value.is_floating_point() and value.ndim == 1:
            value.add_(0.1 * torch.rand(value.shape, generator=generator))
    return Model(record, weights, None, "cpu")


@pytest.mark.parametrize("name", methods.available())
def test_every_method_s_network_takes_any_number_of_images_or_says_why_not(
    trained: Path, tmp_path: Path, name: str
) -> None:
    model, file = model_of(name, trained), tmp_path / "model.onnx"
    if name in REFUSED:
        with pytest.raises(UserError, match=r"cannot be written as ONNX .*docs/models\.md says which methods can"):
            export(model, file)
        assert not file.exists()
        return
    export(model, file)
    session = onnxruntime.InferenceSession(str(file))
    assert session.get_inputs()[0].shape[0] == "batch"
    images = torch.randint(0, 256, (7, 3, *model.size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    expected = model.embed(images)
    names = [output.name for output in session.get_outputs()]
    assert set(expected) <= set(names)
    for count in (1, 7):
        found = session.run(names, {"images": images[:count].float().numpy()})
        for output, values in zip(names, found, strict=True):
            np.testing.assert_allclose(values, expected[output][:count].numpy(), atol=1e-5)


def test_a_model_that_needs_cameras_is_not_exported(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its test reads the camera of each image"):
        export(model_of("vitc_ureid-sie", trained), tmp_path / "model.onnx")
    with pytest.raises(UserError, match="compares images with knowledge of their cameras"):
        model_of("vitc_ureid-sie", trained).embed([tmp_path / "a.jpg"])


def test_a_network_that_gives_other_numbers_is_not_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(self: export_onnx.Network, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        traced = torch.jit.is_tracing()
        return (self.method.embed((images / 255 - self.mean) / self.std)["feature"] + 1e-3 * traced,)

    monkeypatch.setattr(export_onnx.Network, "forward", off)
    with pytest.raises(UserError, match=r"its ONNX network differs by 0\.001 from the model"):
        export(model_of("cluster_contrast", trained), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_publish_lays_the_network_beside_the_weights(trained: Path, tmp_path: Path) -> None:
    record = publish.publish(trained, tmp_path / "out", onnx=True)
    assert set(record.files) == {"model.safetensors", "README.md", "model.onnx"}
    assert "`model.onnx` takes `images` (N, 3, " in (tmp_path / "out/README.md").read_text()
