import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from core.backbones.net import Embedder, build, seeded_init
from core.backbones.weights import (
    WEIGHTS,
    Weights,
    WeightsError,
    find_weights,
    load_weights,
    locate,
    weights_sha256,
)


def make(seed: int = 0, name: str = "resnet18_half", pooling: str = "avg") -> Embedder:
    return build(name, pooling, generator=torch.Generator().manual_seed(seed))


def save(content: object, folder: Path) -> Path:
    file = folder / "weights.pth"
    torch.save(content, file)
    return file


def resnet_state(seed: int = 1) -> dict[str, torch.Tensor]:
    """A ResNet's plain state dict, as torchvision would save it, with its classifier."""
    state = make(seed).backbone.state_dict()
    return {key: value.clone() for key, value in state.items()} | {"fc.weight": torch.ones(9, 256)}


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def backbone_equals(model: Embedder, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.backbone.state_dict().items())


@pytest.mark.parametrize(
    ("entry", "wrap"),
    [
        ("checkpoint", lambda state: state),
        ("checkpoint", lambda state: {"state_dict": prefixed("module.", state), "epoch": 3}),
        ("checkpoint", lambda state: {"model": prefixed("backbone.", state)}),
        ("checkpoint", lambda state: {"state_dict": prefixed("module.base.", state)}),
        (
            "luperson",
            lambda state: {
                "state_dict": prefixed("module.encoder_q.", state)
                | prefixed("module.encoder_k.", resnet_state(2))
                | {"module.queue": torch.zeros(4)}
            },
        ),
        ("imagenet_resnet50", lambda state: state),
    ],
)
def test_known_wrappers_and_prefixes_are_removed(tmp_path, entry, wrap):
    state, model = resnet_state(), make()
    weights = replace(WEIGHTS[entry], sha256=None)
    report = load_weights(model, weights, save(wrap(state), tmp_path))
    assert backbone_equals(model, state)
    assert all(key.startswith("backbone.") for key in report.matched)
    assert len(report.matched) == len(model.backbone.state_dict())
    assert {key.split(".")[0] for key in report.missing} == {"bnneck"}
    assert any("fc.weight" in key for key in report.unexpected)
    assert not any("layer1" in key and "encoder_k" not in key for key in report.unexpected)


def test_checkpoint_of_the_cluster_contrast_family_is_read_whole(tmp_path):
    source, model = make(1, pooling="gem"), make(0, pooling="gem")
    order = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    family = {}
    for key, value in source.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "backbone":
            stage, _, rest = rest.partition(".")
            family[f"module.base.{order.index(stage)}.{rest}"] = value
        else:
            family[{"bnneck": "module.feat_bn.", "pooling": "module.gap."}[part] + rest] = value
    report = load_weights(model, WEIGHTS["checkpoint"], save({"state_dict": family}, tmp_path))
    assert report.missing == report.unexpected == ()
    assert weights_sha256(model.state_dict()) == weights_sha256(source.state_dict())


def test_the_suites_own_checkpoint_restores_every_tensor(tmp_path):
    source, model = make(1), make(0)
    file = save(source.state_dict(), tmp_path)
    report = load_weights(model, WEIGHTS["suite"], file)
    assert report.missing == report.unexpected == ()
    assert weights_sha256(model.state_dict()) == weights_sha256(source.state_dict())
    assert report.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_torchvisions_resnet50_fits_the_imagenet_entry(tmp_path):
    with seeded_init(torch.Generator().manual_seed(1)):
        state = torchvision.models.resnet50(weights=None).state_dict()
    entry = find_weights("imagenet", "resnet50")
    model = make(0, "resnet50")
    report = load_weights(model, replace(entry, sha256=None), save(state, tmp_path))
    assert backbone_equals(model, state)
    assert report.unexpected == ("fc.weight", "fc.bias")
    torchvision_entry = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    assert entry.url == torchvision_entry.url
    assert list(entry.mean) == torchvision_entry.transforms().mean
    assert list(entry.std) == torchvision_entry.transforms().std


def test_hashes_of_downloadable_entries_are_those_in_their_file_names():
    for entry in WEIGHTS.values():
        if entry.url is not None:
            assert entry.url.endswith(f"-{entry.sha256}.pth")


def test_file_of_another_hash_is_refused_and_the_model_left_alone(tmp_path):
    model = make()
    before = weights_sha256(model.state_dict())
    with pytest.raises(WeightsError, match="begins with 0676ba61"):
        load_weights(model, WEIGHTS["imagenet_resnet50"], save(resnet_state(), tmp_path))
    assert weights_sha256(model.state_dict()) == before


def test_file_of_the_known_hash_is_accepted(tmp_path):
    file = save(make(1).state_dict(), tmp_path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for known in (digest, digest[:8]):
        weights = replace(WEIGHTS["suite"], sha256=known)
        assert load_weights(make(), weights, file).sha256 == digest


def test_missing_backbone_tensors_are_named_and_the_model_left_alone(tmp_path):
    state, model = resnet_state(), make()
    before = weights_sha256(model.state_dict())
    del state["layer2.1.conv1.weight"]
    with pytest.raises(WeightsError, match=r"lacks 1 .* backbone\.layer2\.1\.conv1\.weight"):
        load_weights(model, WEIGHTS["checkpoint"], save(state, tmp_path))
    assert weights_sha256(model.state_dict()) == before


def test_differing_shapes_are_named_and_the_model_left_alone(tmp_path):
    state, model = resnet_state(), make()
    before = weights_sha256(model.state_dict())
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(WeightsError, match=r"backbone\.conv1\.weight \(64, 3, 7, 7\) instead of"):
        load_weights(model, WEIGHTS["checkpoint"], save(state, tmp_path))
    assert weights_sha256(model.state_dict()) == before


def test_batch_counters_of_old_checkpoints_may_be_missing(tmp_path):
    state = {k: v for k, v in resnet_state().items() if not k.endswith("num_batches_tracked")}
    model = make()
    load_weights(model, WEIGHTS["checkpoint"], save(state, tmp_path))
    assert torch.equal(model.backbone.conv1.weight, state["conv1.weight"])


def test_two_networks_in_one_file_are_not_mixed(tmp_path):
    both = resnet_state(1) | prefixed("backbone.", resnet_state(2))
    with pytest.raises(WeightsError, match="more than one network"):
        load_weights(make(), WEIGHTS["checkpoint"], save(both, tmp_path))


@pytest.mark.parametrize("content", [[1, 2], "text", None])
def test_files_that_hold_no_tensors_are_refused(tmp_path, content):
    file = tmp_path / "weights.pth"
    if content is None:
        file.write_bytes(b"not a checkpoint")
    else:
        torch.save(content, file)
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        load_weights(make(), WEIGHTS["checkpoint"], file)


class Harmful:
    """Runs code when it is unpickled without care."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return Path.touch, (self.witness,)


def test_objects_in_a_checkpoint_are_refused_and_never_run(tmp_path):
    witness = tmp_path / "ran"
    file = save({"state_dict": resnet_state(), "args": Harmful(witness)}, tmp_path)
    with pytest.raises(WeightsError, match="save its state_dict alone"):
        load_weights(make(), WEIGHTS["checkpoint"], file)
    assert not witness.exists()


def test_missing_file_and_missing_path_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match="does not exist"):
        load_weights(make(), WEIGHTS["suite"], tmp_path / "absent.pth")
    with pytest.raises(WeightsError, match="pass the path of your file"):
        load_weights(make(), WEIGHTS["luperson"])
    entry = WEIGHTS["imagenet_resnet50"]
    with pytest.raises(WeightsError, match="place it at") as caught:
        locate(entry, None, download=False)
    assert entry.url in str(caught.value)
    assert str(tmp_path / "checkpoints" / "resnet50-0676ba61.pth") in str(caught.value)


def test_nothing_is_downloaded_unless_asked_for(tmp_path, monkeypatch):
    asked = []

    def fetch(url: str, target: str, progress: bool) -> None:
        asked.append(url)
        torch.save(make(1).state_dict(), target)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    weights = Weights(name="far", source="elsewhere", url="https://example.org/far.pth")
    with pytest.raises(WeightsError, match="allow the download"):
        load_weights(make(), weights)
    assert asked == []
    load_weights(make(), weights, download=True)
    load_weights(make(), weights, download=True)
    assert asked == [weights.url]


def test_failed_download_explains_how_to_place_the_file(tmp_path, monkeypatch):
    def fail(url: str, target: str, progress: bool) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError, match=r"no route.*place it at"):
        load_weights(make(), WEIGHTS["imagenet_resnet50"], download=True)


def test_imagenet_means_the_backbones_own_file_and_unknown_names_name_the_nearest():
    assert find_weights("imagenet", "resnet50_ibn").name == "imagenet_resnet50_ibn"
    assert find_weights("suite", "resnet50").name == "suite"
    with pytest.raises(ValueError, match="did you mean 'luperson'"):
        find_weights("lupersn", "resnet50")


def test_content_hash_sees_values_names_shapes_and_types_but_not_layout():
    state = {"a": torch.arange(24.0).view(1, 2, 3, 4), "b": torch.tensor(3)}
    known = weights_sha256(state)
    last = {**state, "a": state["a"].contiguous(memory_format=torch.channels_last)}
    assert weights_sha256(dict(reversed(last.items()))) == known
    for changed in (
        {**state, "a": state["a"] + 1},
        {**state, "a": state["a"].view(2, 1, 3, 4)},
        {**state, "a": state["a"].double()},
        {"c": state["a"], "b": state["b"]},
        {**state, "b": torch.tensor(4)},
    ):
        assert weights_sha256(changed) != known
    assert weights_sha256({"a": torch.ones(2, dtype=torch.bfloat16)})
