"""ViTC-UReID, and the terms of CAP and O2CAP in it: docs/methods/vitc_ureid.md."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import proxy_losses
from core.backbones.net import build
from core.config import Config, Sampler
from core.data import Batch, Labels
from core.method import Method
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.vitc_ureid.method import Settings, ViTCUReID
from tests.methods.proxies_small import CAMERAS, CLUSTERS, MU, TAU, Data, Scene, filled, make_scene
from tests.parity.files import compare_file

MODES = ("dual", "cap", "o2cap")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def scene() -> Scene:
    return make_scene()


def method(**settings: object) -> ViTCUReID:
    return ViTCUReID(Config(settings=Settings(**settings)), torch.nn.Identity(), 1)  # type: ignore[arg-type]


def terms(made: Method, scene: Scene, epoch: int = 9) -> dict[str, Tensor]:
    return made.loss({"feature": scene.queries}, scene.batch(epoch))


def total(values: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(values.values())).sum()


def slow_inter(scene: Scene, made: ViTCUReID, negatives: int) -> Tensor:
    """L_inter, one image and one positive after the other."""
    values = []
    for f, y in zip(scene.queries, scene.labels[scene.rows], strict=True):
        z = made.proxies.rows @ f / TAU
        positive = [u for u in range(len(z)) if made.proxies.clusters[u] == y]
        others = sorted((u for u in range(len(z)) if u not in positive), key=lambda u: -float(z[u]))[:negatives]
        denominator = sum(torch.exp(z[v]) for v in positive + others)
        values.append(-sum(torch.log(torch.exp(z[u]) / denominator) for u in positive) / len(positive))
    return torch.stack(values)


def slow_intra(scene: Scene, made: ViTCUReID) -> Tensor:
    values = []
    for f, row in zip(scene.queries, scene.rows, strict=True):
        mine = torch.nonzero(made.proxies.cameras == scene.cameras[row]).flatten()
        target = torch.nonzero(mine == made.proxies.of_image[row]).flatten()
        values.append(F.cross_entropy((made.proxies.rows[mine] @ f / TAU)[None], target))
    return torch.stack(values)


def test_the_association_weighs_as_the_official_code_does(tmp_path: Path) -> None:
    with np.load(GOLDEN / "o2cap_losses.npz") as data:
        assert Settings().association_weight == data["association_weight"] == 0.15
        np.savez(tmp_path / "o2cap_losses.npz", **{**data, "association_weight": np.float64(0.05)})
    assert compare_file(GOLDEN / "o2cap_losses.npz").status == "pass"
    other = compare_file(tmp_path / "o2cap_losses.npz")
    assert other.status == "FAIL", "another weight chooses other proxies"
    assert "online_" in other.remark


def slow_online(scene: Scene, made: ViTCUReID, positives: int, negatives: int, weight: float = 0.15) -> Tensor:
    values = []
    bank = made.proxies.rows
    for f, row in zip(scene.queries, scene.rows, strict=True):
        own = made.proxies.of_image[row]
        s = (weight * bank @ f + (1 - weight) * bank @ bank[own]).tolist()
        tops = []
        for camera in range(CAMERAS):
            of_camera = [u for u in range(len(s)) if made.proxies.cameras[u] == camera]
            tops.append(max(of_camera, key=lambda u: s[u]))
        chosen = sorted(tops, key=lambda u: -s[u])[:positives]
        others = sorted((u for u in range(len(s)) if u not in chosen), key=lambda u: -s[u])[:negatives]
        log_p = F.log_softmax(bank[chosen + others] @ f / TAU, dim=0)
        values.append(-log_p[: len(chosen)].mean())
    return torch.stack(values)


def slow_camera_sum(losses: Tensor, cameras: Tensor) -> Tensor:
    return sum(losses[cameras == c].mean() for c in sorted(set(cameras.tolist())))


@pytest.mark.parametrize("negatives", [1, 5, 50])
def test_the_inter_term_is_that_of_a_literal_loop(scene: Scene, negatives: int) -> None:
    """With 50, more than there are, the released code would take positives as negatives as well."""
    made = filled(method(negatives=negatives), scene)
    assert len(made.proxies) < 50
    expected = 0.5 * slow_inter(scene, made, negatives).mean()
    torch.testing.assert_close(terms(made, scene)["inter"], expected)


def test_the_mode_cap_sums_over_cameras_the_means_of_both_terms(scene: Scene) -> None:
    made, cameras = filled(method(mode="cap"), scene), scene.cameras[scene.rows]
    found = terms(made, scene)
    assert list(found) == ["intra", "inter"]
    torch.testing.assert_close(found["intra"], slow_camera_sum(slow_intra(scene, made), cameras))
    torch.testing.assert_close(found["inter"], 0.5 * slow_camera_sum(slow_inter(scene, made, 50), cameras))


def test_the_mode_cap_adds_the_inter_term_from_its_epoch_on(scene: Scene) -> None:
    made = filled(method(mode="cap", inter_start=5), scene)
    assert list(terms(made, scene, epoch=4)) == ["intra"]
    assert list(terms(made, scene, epoch=5)) == ["intra", "inter"]


@pytest.mark.parametrize("positives", [1, 3, 9])
@pytest.mark.parametrize("negatives", [4, 50])
def test_the_mode_o2cap_is_that_of_a_literal_loop(scene: Scene, positives: int, negatives: int) -> None:
    """With 9 positives, more than cameras, there is one of each camera."""
    made = filled(method(mode="o2cap", online_positives=positives, negatives=negatives), scene)
    found, cameras = terms(made, scene), scene.cameras[scene.rows]
    assert list(found) == ["inter", "online"]
    torch.testing.assert_close(found["inter"], slow_camera_sum(slow_inter(scene, made, negatives), cameras))
    online = slow_online(scene, made, positives, negatives)
    torch.testing.assert_close(found["online"], slow_camera_sum(online, cameras))


def test_a_proxy_is_a_cluster_in_a_camera_and_outliers_have_none(scene: Scene) -> None:
    proxies = filled(method(), scene).proxies
    pairs = {(int(y), int(c)) for y, c in zip(scene.labels, scene.cameras, strict=True) if y >= 0}
    assert len(proxies) == len(pairs) == sum(len({c for k, c in pairs if k == y}) for y in range(CLUSTERS))
    assert set(zip(proxies.clusters.tolist(), proxies.cameras.tolist(), strict=True)) == pairs
    for label, camera, u in zip(scene.labels, scene.cameras, proxies.of_image, strict=True):
        assert (u == -1) == (label == -1)
        if u >= 0:
            assert (proxies.clusters[u], proxies.cameras[u]) == (label, camera)


@pytest.mark.parametrize("mode", ["dual", "cap"])
def test_with_one_camera_proxies_are_clusters_and_every_term_is_cluster_contrasts(scene: Scene, mode: str) -> None:
    scene.cameras = torch.zeros_like(scene.cameras)
    made = filled(method(mode=mode, lambda_cam=1.0, w_inter=1.0), scene)
    baseline = ClusterContrast(Config(settings=ClusterContrastSettings(TAU)), torch.nn.Identity(), 1)  # type: ignore[arg-type]
    filled(baseline, scene)
    assert torch.equal(made.proxies.rows, baseline.memory.rows)
    expected = terms(baseline, scene)["cluster"]
    found = terms(made, scene)
    for name in {"dual": ["inter"], "cap": ["intra", "inter"]}[mode]:
        torch.testing.assert_close(found[name], expected)


def test_the_inter_term_is_never_below_the_entropy_of_its_targets(scene: Scene) -> None:
    made = filled(method(), scene)
    same = made.proxies.same_cluster(scene.labels[scene.rows])
    floor = same.sum(dim=1).double().log()
    value = proxy_losses.inter_camera(made.proxies.logits(scene.queries, TAU), same, 50)
    assert (value >= floor).all()
    equal = torch.where(same, 0.0, -1e4).double()  # equal positives, infinitely far negatives
    torch.testing.assert_close(proxy_losses.inter_camera(equal, same, 50), floor)


@pytest.mark.parametrize("update", ["sequential", "hardest"])
def test_without_the_camera_term_it_is_cluster_contrast_exactly(scene: Scene, update: str) -> None:
    made = filled(method(lambda_cam=0.0, sampling="identities", momentum=0.1, update=update), scene)
    settings = ClusterContrastSettings(0.05, 0.1, update)
    baseline = filled(ClusterContrast(Config(settings=settings), torch.nn.Identity(), 1), scene)  # type: ignore[arg-type]
    for _ in range(3):
        assert torch.equal(total(terms(made, scene)), total(terms(baseline, scene)))
        for each in (made, baseline):
            each.after_step({"feature": scene.queries}, scene.batch())
        assert torch.equal(made.clusters.rows, baseline.memory.rows)
    data = Data(scene.features, scene.cameras, made.needs(made.config).cameras)
    drawn = [list(m.batches(Labels(scene.labels.numpy()), data, np.random.default_rng(0))) for m in (made, baseline)]
    assert np.array_equal(*drawn)
    assert made.needs(made.config) == baseline.needs(baseline.config)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_moves_the_rows_seen_in_batch_order_and_no_other(scene: Scene, mode: str) -> None:
    made = filled(method(mode=mode), scene)
    expected = made.proxies.rows.clone()
    own = made.proxies.of_image[scene.rows]
    assert len(own.unique()) < len(own), "some proxy is seen twice"
    for u, f in zip(own, scene.queries, strict=True):
        expected[u] = F.normalize(MU * expected[u] + (1 - MU) * f, dim=0)
    before = made.proxies.rows.clone()
    made.after_step({"feature": scene.queries}, scene.batch())
    torch.testing.assert_close(made.proxies.rows, expected)
    untouched = [u for u in range(len(before)) if u not in own]
    assert torch.equal(made.proxies.rows[untouched], before[untouched])
    torch.testing.assert_close(made.proxies.rows.norm(dim=1), torch.ones(len(before), dtype=torch.float64))


def test_two_images_of_one_proxy_are_two_updates(scene: Scene) -> None:
    made = filled(method(), scene)
    scene.rows, scene.queries = scene.rows[[0, 0]], scene.queries[:2]
    u = int(made.proxies.of_image[scene.rows[0]])
    once = F.normalize(MU * made.proxies.rows[u] + (1 - MU) * scene.queries[0], dim=0)
    made.after_step({"feature": scene.queries}, scene.batch())
    torch.testing.assert_close(made.proxies.rows[u], F.normalize(MU * once + (1 - MU) * scene.queries[1], dim=0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("relabelled", ["clusters", "cameras"])
def test_renumbering_clusters_or_cameras_changes_no_loss(scene: Scene, mode: str, relabelled: str) -> None:
    made = filled(method(mode=mode), scene)
    before = terms(made, scene)
    if relabelled == "clusters":
        renumbered = torch.randperm(CLUSTERS, generator=torch.Generator().manual_seed(0))
        scene.labels = torch.where(scene.labels >= 0, renumbered[scene.labels], scene.labels)
    else:
        scene.cameras = torch.tensor([2, 0, 3, 1])[scene.cameras]
    after = terms(filled(method(mode=mode), scene), scene)
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name])


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_that_of_fixed_memories_and_a_fixed_choice_of_proxies(scene: Scene, mode: str) -> None:
    made = filled(method(mode=mode, negatives=5), scene)

    def loss(queries: Tensor) -> Tensor:
        return total(made.loss({"feature": queries}, scene.batch()))

    queries = scene.queries.clone().requires_grad_()
    loss(queries).backward()
    for memory in (made.proxies, made.clusters) if mode == "dual" else (made.proxies,):
        assert memory.rows.grad is None
        assert not memory.rows.requires_grad
    step = torch.zeros_like(queries)
    step[3, 5] = 1e-6  # too small to change which proxies are chosen
    with torch.no_grad():
        slope = (loss(scene.queries + step) - loss(scene.queries - step)) / 2e-6
    assert float(queries.grad[3, 5]) == pytest.approx(float(slope), rel=1e-5)


def test_batches_hold_p_proxies_of_k_images_that_repeat_where_there_are_fewer(scene: Scene) -> None:
    made = method()
    sampler = Sampler(identities=6, instances=4)
    made.config = dataclasses.replace(made.config, sampler=sampler)
    data = Data(scene.features, scene.cameras, made.needs(made.config).cameras)
    rng = np.random.default_rng(0)
    drawn = [rows for _ in range(4) for rows in made.batches(Labels(scene.labels.numpy()), data, rng)]  # type: ignore[arg-type]
    proxies = filled(method(), scene).proxies
    sizes = torch.bincount(proxies.of_image[proxies.of_image >= 0])
    assert sizes.min() < 4 <= sizes.max()
    for rows in drawn:
        groups = proxies.of_image[torch.as_tensor(rows)].view(6, 4)
        assert (groups >= 0).all()
        assert (groups == groups[:, :1]).all(), "no image of another proxy fills a group"
        assert len(groups[:, 0].unique()) == 6
        for group, u in zip(rows.reshape(6, 4), groups[:, 0], strict=True):
            if sizes[u] >= 4:
                assert len(set(group)) == 4


@pytest.mark.parametrize(
    ("settings", "uses"),
    [
        ({}, {"sampler", "loss"}),
        ({"mode": "cap"}, {"sampler", "loss"}),
        ({"mode": "o2cap", "sampling": "identities"}, {"loss"}),
        ({"lambda_cam": 0.0}, {"sampler"}),
        ({"lambda_cam": 0.0, "sampling": "identities"}, set()),
        ({"sie_cameras": 4}, {"sampler", "loss", "test"}),
        ({"lambda_cam": 0.0, "sampling": "identities", "sie_cameras": 4}, {"loss", "test"}),
    ],
)
def test_cameras_are_declared_for_what_the_switches_use(settings: dict[str, object], uses: set[str]) -> None:
    """Where cameras are read without being declared, every other test of this file fails too."""
    config = Config(settings=Settings(**settings), sampler=Sampler(uses_camera=False))  # type: ignore[arg-type]
    assert ViTCUReID.needs(config).cameras == uses


def test_outliers_may_become_clusters_of_their_own(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "label", lambda *_: Labels(scene.labels.numpy().copy()))
    dropped = method().label(0, None)
    kept = method(outliers="own_cluster").label(0, None)
    inside = dropped.ids >= 0
    assert dropped.outliers > 0
    assert np.array_equal(kept.ids[inside], dropped.ids[inside])
    assert sorted(kept.ids[~inside]) == list(range(CLUSTERS, CLUSTERS + dropped.outliers))


def embedded(**settings: object) -> ViTCUReID:
    embedder = build("vit_tiny6_ics", generator=torch.Generator().manual_seed(0), depth=1, drop_path=0.0)
    torch.manual_seed(0)
    return ViTCUReID(Config(settings=Settings(**settings)), embedder, 1)  # type: ignore[arg-type]


def test_the_camera_embedding_reaches_training_and_test_and_is_trained() -> None:
    made = embedded(sie_cameras=5)
    images = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    cameras = torch.tensor([0, 4, 0, 1])
    batch = Batch([images], torch.arange(4), torch.arange(4), cameras, {}, 0)
    made.forward(batch)["feature"].pow(3).sum().backward()
    assert (made.embedder.backbone.sie_embed.grad.abs().sum((1, 2)) > 0).tolist() == [True, True, False, False, True]
    made.eval()
    with torch.no_grad():
        here = made.embed(images, cameras)["feature"]
        there = made.embed(images, cameras + torch.tensor([1, 0, 0, 0]))["feature"]
    moved = (here != there).any(dim=1)
    assert moved.tolist() == [True, False, False, False]
    assert any(p is made.embedder.backbone.sie_embed for group in made.param_groups() for p in group["params"])


def test_a_rank_embeds_its_own_images_with_their_own_cameras() -> None:
    made = embedded(sie_cameras=5).eval()
    images = torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    cameras = torch.tensor([0, 4, 0, 1])
    batch = Batch([images[2:]], torch.arange(4), torch.arange(4), cameras, {}, 0, part=slice(2, 4))
    with torch.no_grad():
        local = made.forward(batch)["feature"]
        torch.testing.assert_close(local, made.embed(images[2:], cameras[2:])["feature"])
        assert not torch.equal(local, made.embed(images[2:], cameras[:2])["feature"])


def test_without_a_camera_embedding_no_camera_reaches_the_network() -> None:
    made = embedded().eval()
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))
    batch = Batch([images], torch.arange(2), torch.arange(2), torch.tensor([0, 1]), {}, 0)
    with torch.no_grad():
        assert torch.equal(made.forward(batch)["feature"], made.embed(images)["feature"])


def test_a_camera_embedding_needs_a_transformer() -> None:
    embedder = build("resnet18_half", generator=torch.Generator())
    with pytest.raises(ValueError, match="needs a vision transformer, but backbone 'resnet50'"):
        ViTCUReID(Config(settings=Settings(sie_cameras=4)), embedder, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "duel"}, "settings.mode is one of dual, cap, o2cap"),
        ({"sampling": "cameras"}, "proxies, identities"),
        ({"outliers": "keep"}, "drop, own_cluster"),
        ({"negatives": 0}, "at least 1"),
        ({"sie_cameras": -1}, "number of cameras"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)  # type: ignore[arg-type]


def test_camera_means_are_summed_not_averaged() -> None:
    losses, cameras = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([5, 5, 0, 5])
    assert float(proxy_losses.sum_of_camera_means(losses, cameras)) == pytest.approx(13 / 3 + 3)


def test_equal_scores_give_the_logarithm_of_the_number_of_proxies() -> None:
    logits = torch.zeros(1, 10)
    same = torch.arange(10)[None] < 3
    assert float(proxy_losses.inter_camera(logits, same, 4)) == pytest.approx(math.log(7))
