"""Camera styles: docs/methods/camera_styles.md. AIBN's equality with the official code: tests/golden/style_norm.npz."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.augment import Augment
from core.backbones.batchnorm import GroupedBatchNorm2d
from core.backbones.net import Embedder, build
from core.config import Backbone, Config, Input
from core.data import Batch, Labels, Pixels, TrainingData
from core.distributed import ProcessGroup
from core.errors import UserError
from core.images import ImageStore
from core.losses import cluster_nll
from core.memory import CentroidMemory, ProxyMemory
from core.proxy_losses import inter_camera
from core.rng import Streams
from core.styles import StyleSettings
from methods.camera_styles.aibn import AIBN, adapt
from methods.camera_styles.method import CameraStyles, Settings
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from tests.methods.draws import normal, unit
from tests.methods.proxies_small import Data, Scene, filled, make_scene

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
OFF = {"style_mean": False, "copy_weight": 0.0, "style_weight": 0.0, "camera_weight": 0.0}
IMAGES, HEIGHT, WIDTH = 8, 32, 16


def config(backend: str = "camera", **settings: object) -> Config:
    made = Settings(styles=StyleSettings(backend=backend), **settings)  # type: ignore[arg-type]
    return Config(made, Input(HEIGHT, WIDTH), Backbone("resnet18_half", bn_groups=1), precision="fp64")


def network() -> Embedder:
    return build("resnet18_half", generator=torch.Generator().manual_seed(0))


def camera_styles(embedder: Embedder | None = None, backend: str = "camera", **settings: object) -> CameraStyles:
    return CameraStyles(config(backend, **settings), embedder or network(), IMAGES).double()


def training_data(method: CameraStyles, cameras: list[int]) -> TrainingData:
    """Images of noise about a level of their camera's."""
    generator = torch.Generator().manual_seed(1)
    levels = 60 + 30 * torch.tensor(cameras)[:, None, None, None]
    images = (levels + 20 * torch.randn(IMAGES, 3, HEIGHT, WIDTH, generator=generator)).clamp(0, 255).to(torch.uint8)
    data = TrainingData(ImageStore(images, ALONE.device), method.needs(method.config), ALONE, np.array(cameras))
    data.computed_by(method.config)
    return data


def views(method: CameraStyles, data: TrainingData, rows: Tensor) -> list[Tensor]:
    given = Pixels(data, rows, torch.arange(len(rows)), slice(None), Streams(0).torch, Augment(), torch.float64)
    return method.make_views(given)


@pytest.fixture
def scene() -> Scene:
    return make_scene()


def with_copy(scene: Scene, generator: torch.Generator) -> dict[str, Tensor]:
    return {"feature": scene.queries.clone().requires_grad_(), "copy": unit(generator, *scene.queries.shape)}


def test_every_addition_off_is_cluster_contrast_its_labels_loss_update_and_views(scene: Scene) -> None:
    embedder = network()
    off = camera_styles(embedder, **OFF, momentum=0.1)
    base = ClusterContrast(dataclasses.replace(off.config, settings=ClusterContrastSettings()), embedder, IMAGES)
    assert off.needs(off.config) == base.needs(base.config)
    data = training_data(off, [0, 1] * 4)
    for method in (off, base):
        method.double().eval()
    assert torch.equal(off.extract(data)["feature"], base.extract(data)["feature"])
    given = Pixels(data, torch.arange(4), torch.arange(4), slice(None), Streams(0).torch, Augment(), torch.float64)
    batch = Batch(off.make_views(given), scene.rows[:4], scene.labels[:4], None, {}, 0)
    assert torch.equal(torch.stack(batch.images), torch.stack(base.make_views(given)))
    assert torch.equal(off.train()(batch)["feature"], base.train()(batch)["feature"])
    assert list(off(batch)) == ["feature"]
    found = []
    for method in (off, base):
        filled(method, scene)
        terms = method.loss({"feature": scene.queries}, scene.batch())
        method.after_step({"feature": scene.queries}, scene.batch())
        found.append((terms, method.memory.rows))
    assert list(found[0][0]) == ["cluster"]
    assert torch.equal(found[0][0]["cluster"], found[1][0]["cluster"])
    assert torch.equal(found[0][1], found[1][1])
    labels = Data(unit(torch.Generator().manual_seed(0), 60, 4), scene.cameras, frozenset())
    labels.timer = data.timer
    assert np.array_equal(off.label(0, labels).ids, base.label(0, labels).ids)  # type: ignore[arg-type]


def test_the_loss_is_its_four_terms_by_their_equations(scene: Scene, generator) -> None:
    method = filled(camera_styles(style_mean=False, negatives=3), scene)
    output = with_copy(scene, generator)
    terms = method.loss(output, scene.batch())
    rows, targets = method.memory.rows, scene.labels[scene.rows]
    logits = output["copy"] @ rows.T / 0.05
    soft = 0.9 * F.one_hot(targets, len(rows)).double() + 0.1 / len(rows)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(len(targets), dtype=torch.float64))
    proxies = ProxyMemory(scene.features, scene.labels, scene.cameras, 0.2)
    inter = inter_camera(scene.queries @ proxies.rows.T / 0.07, proxies.same_cluster(targets), 3)
    expected = {
        "cluster": F.cross_entropy(scene.queries @ rows.T / 0.05, targets),
        "copy": -(soft * logits.log_softmax(dim=1)).sum(dim=1).mean(),
        "style": 0.5 * (1 - (output["copy"] * scene.queries).sum(dim=1)).mean(),
        "camera": 0.5 * inter.mean(),
    }
    assert list(terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-9, atol=1e-12)


def test_without_smoothing_copies_are_told_apart_as_images_are(scene: Scene, generator) -> None:
    method = filled(camera_styles(style_mean=False, smoothing=0.0), scene)
    output, targets = with_copy(scene, generator), scene.labels[scene.rows]
    found = method.loss(output, scene.batch())["copy"]
    torch.testing.assert_close(found, cluster_nll(output["copy"], method.memory.rows, targets, 0.05))


def test_the_style_loss_sends_no_gradient_to_the_image_and_is_zero_for_a_copy_that_equals_it(
    scene: Scene, generator
) -> None:
    method = filled(camera_styles(style_mean=False, copy_weight=0.0, camera_weight=0.0), scene)
    output = with_copy(scene, generator)
    output["copy"].requires_grad_()
    loss = method.loss(output, scene.batch())["style"]
    gradients = torch.autograd.grad(loss, [output["feature"], output["copy"]], allow_unused=True)
    assert gradients[0] is None
    assert gradients[1].abs().sum() > 0
    same = method.loss({"feature": scene.queries, "copy": scene.queries}, scene.batch())["style"]
    torch.testing.assert_close(same, torch.zeros_like(same))


def test_copies_enter_the_memories_only_where_asked_for(scene: Scene, generator) -> None:
    output = {name: value.detach() for name, value in with_copy(scene, generator).items()}
    alone, asked, both = (
        filled(camera_styles(style_mean=False, update_with_copies=wanted), scene) for wanted in (False, False, True)
    )
    alone.after_step({"feature": output["feature"]}, scene.batch())
    asked.after_step(output, scene.batch())
    both.after_step(output, scene.batch())
    for bank in ("memory", "proxies"):
        rows = [getattr(method, bank).rows for method in (alone, asked, both)]
        assert torch.equal(rows[0], rows[1])
        assert not torch.equal(rows[0], rows[2])


def test_the_mean_is_over_the_image_in_every_style_its_own_as_it_is() -> None:
    method = camera_styles().eval()
    cameras = [0, 1, 2, 0, 1, 2, 0, 1]
    data = training_data(method, cameras)
    found = method.extract(data)
    styles = method.styles(data)
    features = []
    for style in (2, 0, 1):  # whatever the order of the cameras
        wanted = torch.full((IMAGES,), style)
        images = styles.transfer(data.images.images, torch.tensor(cameras), wanted, torch.zeros(IMAGES))
        with torch.no_grad():
            features.append(method.embed(data.prepare(images))["feature"])
    torch.testing.assert_close(found["style_mean"], F.normalize(torch.stack(features).mean(dim=0), dim=1))
    torch.testing.assert_close(found["style_mean"].norm(dim=1), torch.ones(IMAGES, dtype=torch.float64))
    plain = camera_styles(method.embedder, style_mean=False).eval().extract(data)["feature"]
    assert torch.equal(found["feature"], plain)
    assert not torch.allclose(found["style_mean"], plain)
    one = camera_styles(method.embedder, style_views=1).eval().extract(data)
    assert torch.equal(one["style_mean"], plain)


def test_clusters_and_their_rows_are_of_the_means_and_proxies_of_the_images(scene: Scene, generator) -> None:
    method = camera_styles()

    class Known(Data):
        def embedded(self, key: str) -> Tensor:
            assert key == "style_mean"
            return means

    means = unit(generator, *scene.features.shape)
    data = Known(scene.features, scene.cameras, method.needs(method.config).cameras)
    method.start_epoch(Labels(scene.labels.numpy()), data, torch.Generator())  # type: ignore[arg-type]
    assert torch.equal(method.memory.rows, CentroidMemory.of_clusters(means, scene.labels, 0.2).rows)
    assert torch.equal(method.proxies.rows, ProxyMemory(scene.features, scene.labels, scene.cameras, 0.2).rows)


def test_with_one_camera_the_mean_is_the_feature_and_only_identity_and_proxies_are_learned(scene: Scene) -> None:
    method = camera_styles().eval()
    data = training_data(method, [0] * IMAGES)
    found = method.extract(data)
    assert torch.equal(found["style_mean"], found["feature"])
    images = views(method, data, torch.arange(4))
    assert len(images) == 1
    assert list(method(Batch(images, torch.arange(4), torch.arange(4), None, {}, 0))) == ["feature"]
    losing = filled(camera_styles(style_mean=False), scene)
    assert list(losing.loss({"feature": scene.queries}, scene.batch())) == ["cluster", "camera"]


def test_images_are_forwarded_after_their_copies_and_each_by_itself() -> None:
    method = camera_styles()
    rows = torch.arange(4)
    data = training_data(method, [0, 1] * 4)
    images = views(method, data, rows)
    assert len(images) == 2
    alone = camera_styles()
    with torch.no_grad():
        copy, feature = (alone.embedder(view)["feature"] for view in (images[1], images[0]))
        output = method(Batch(images, rows, rows, None, {}, 0))
    assert torch.equal(output["copy"], copy)
    assert torch.equal(output["feature"], feature)
    running = [made.embedder.backbone.bn1.running_mean for made in (method, alone)]
    assert torch.equal(*running)


def test_mixstyle_mixes_the_features_of_the_copies_in_training_alone() -> None:
    method = camera_styles(backend="mixstyle", style_mean=False)
    method.mixstyle.probability = 1.0
    rows = torch.tensor([1, 4, 6, 7])
    data = training_data(method, [0, 1] * 4)
    images = views(method, data, rows)
    images[1] = images[0]
    torch.manual_seed(0)
    output = method(Batch(images, rows, rows, None, {}, 0))
    assert method.mixstyle.cameras.tolist() == [1, 0, 0, 1]
    assert not torch.allclose(output["copy"], output["feature"])
    method.eval()
    output = method(Batch(images, rows, rows, None, {}, 0))
    assert torch.equal(output["copy"], output["feature"])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="style_mean to false"):
        Settings(styles=StyleSettings(backend="mixstyle"))
    vit = build("vit_tiny6_ics", generator=torch.Generator())
    with pytest.raises(UserError, match=r"a ResNet's stages, and VisionTransformer.*set others of the two"):
        CameraStyles(config(norm="aibn"), vit, IMAGES)


def test_aibn_with_the_whole_share_is_batch_norm_but_for_the_variance_and_with_none_instance_norm(generator) -> None:
    features = 3 * normal(generator, 6, 5, 4, 3) + 2
    layer = AIBN(5).double()
    with torch.no_grad():
        layer.mix.fill_(0.0)
        instance = F.instance_norm(features)
        scale = (11 / 12) ** 0.5  # n - 1 in the place of n
        torch.testing.assert_close(layer(features), scale * instance, rtol=1e-4, atol=1e-4)
        layer.mix.fill_(1.0)
        mean, variance = features.mean(dim=(2, 3)), features.var(dim=(2, 3))
        expected = variance.mean(dim=0) + mean.var(dim=0, correction=0)
        batch = (features - mean.mean(dim=0)[:, None, None]) / (expected + 1e-5).sqrt()[:, None, None]
        torch.testing.assert_close(layer(features), batch)
        layer.mix.fill_(1.7)
        torch.testing.assert_close(layer(features), batch)


def test_aibn_takes_the_weights_and_the_groups_of_the_norms_it_replaces_and_leaves_the_neck() -> None:
    embedder = build("resnet18_half", bn_groups=2, generator=torch.Generator().manual_seed(0))
    embedder.backbone.bn1.running_mean.fill_(3.0)
    embedder.backbone.bn1.weight.data.fill_(2.0)
    method = camera_styles(embedder, norm="aibn", **{**OFF, "camera_weight": 0.5})
    method.weights_loaded()
    norms = [layer for layer in embedder.backbone.modules() if isinstance(layer, GroupedBatchNorm2d)]
    assert all(isinstance(layer, AIBN) and layer.groups == 2 for layer in norms)
    assert len(norms) == 20
    first = embedder.backbone.bn1
    assert (first.running_mean[0].item(), first.weight[0].item(), first.weight.dtype) == (3, 2, torch.float64)
    adapt(embedder.backbone)
    assert embedder.backbone.bn1 is first
    names = dict(method.named_parameters())
    assert sum(name.endswith(".mix") for name in names) == len(norms)


def test_aibn_normalises_in_groups_and_remembers_the_first(generator) -> None:
    features = normal(generator, 6, 5, 4, 3)
    layer, alone = AIBN(5).double(), AIBN(5).double()
    layer.groups = 2
    halves = torch.cat([alone(features[:3]), AIBN(5).double()(features[3:])])
    torch.testing.assert_close(layer(features), halves)
    torch.testing.assert_close(layer.running_var, alone.running_var)
    with pytest.raises(UserError, match="one value per channel"):
        layer(features[:, :, :1, :1])


def test_exemplars_tell_an_image_and_its_copy_from_all_others_and_outlive_an_epoch(scene: Scene, generator) -> None:
    asked = {"style_mean": False, "style_weight": 0.0, "exemplar_weight": 0.5, "exemplar_neighbours": 3}
    method = filled(camera_styles(**asked), scene)
    output, batch = with_copy(scene, generator), scene.batch(epoch=2)
    alone = method.loss(output, batch)["exemplar"]
    logits = [output[name] @ method.exemplars.rows.T / 0.05 for name in ("feature", "copy")]
    torch.testing.assert_close(alone, 0.25 * sum(F.cross_entropy(each, scene.rows) for each in logits))
    assert method.loss(output, scene.batch(epoch=5))["exemplar"] > alone
    detached = {name: value.detach() for name, value in output.items()}
    method.after_step(detached, batch)
    resumed = camera_styles(**asked)
    resumed.load_memory_state(method.memory_state())
    filled(resumed, scene)
    assert torch.equal(resumed.exemplars.rows, method.exemplars.rows)
    assert not torch.equal(resumed.exemplars.rows, scene.features)
    assert filled(camera_styles(style_mean=False), scene).memory_state() == {}
