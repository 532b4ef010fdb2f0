"""FCU (docs/methods/fcu.md): its properties; BUC's and PAUL's numbers are in tests/golden/buc_*.npz, paul_patch.npz."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.augment import Augment
from core.backbones.net import build
from core.config import Backbone, Config
from core.data import Batch, Labels, Needs, Pixels, TrainingData
from core.distributed import ProcessGroup
from core.engine import Trainer
from core.manifest import Manifest, read_manifest
from core.rng import Streams
from methods.fcu.heads import PatchHead
from methods.fcu.losses import attracted, image_loss, patch_loss
from methods.fcu.merging import merge
from methods.fcu.method import FCU, Clusters, Settings
from methods.fcu.second_view import turned
from pipeline.settings import resolve_run
from tests.adaptation import train_small
from tests.methods.draws import normal, unit
from tests.replay.people import write_dataset

DIM, IMAGES = 8, 12
ALONE = ProcessGroup(0, 1, torch.device("cpu"))
SMALL = {"patches": 2, "patch_dim": 4, "first_stage": 1, "stage": 1, "merges": 1, "merge_share": 0.5, "neck": True}
BUC = {"attract_weight": 0.0, "local_weight": 0.0}


def fcu(generator: torch.Generator, clusters: np.ndarray | None = None, **settings: object) -> FCU:
    """On the small backbone, with V at zero, centres at one and a drawn patch memory of 20 images."""
    config = Config(Settings(**{**SMALL, **settings}), backbone=Backbone("resnet18_half"))
    method = FCU(config, build("resnet18_half", generator=generator), 20).double()
    labels = np.arange(IMAGES) if clusters is None else clusters
    count = int(labels.max()) + 1
    sizes = torch.as_tensor(np.bincount(labels))
    method.clusters = Clusters(
        labels, torch.zeros(count, DIM).double(), F.normalize(torch.ones(count, DIM).double(), dim=1), sizes
    )
    method.begin(unit(generator, 2, 20, 4))
    return method


def batch_of(targets: Tensor | None = None) -> Batch:
    rows = torch.arange(IMAGES)
    return Batch([], rows, rows if targets is None else targets, None, {}, 0)


def outputs(generator: torch.Generator) -> dict[str, Tensor]:
    feature = unit(generator, IMAGES, DIM)
    patches = {f"patches_{view}": unit(generator, IMAGES, 2, 4).requires_grad_() for view in range(2)}
    return {"global": feature, "dropped": (1.3 * feature).requires_grad_(), **patches}


def test_an_empty_memory_repels_by_log_of_the_clusters_without_a_gradient(generator) -> None:
    output = outputs(generator)
    repelled = fcu(generator).loss(output, batch_of())["repelled"]
    assert float(repelled.detach()) == pytest.approx(math.log(IMAGES))
    (gradient,) = torch.autograd.grad(repelled, output["dropped"])
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_a_row_of_the_memory_becomes_the_middle_of_itself_and_each_sample_in_order(generator) -> None:
    method, output = fcu(generator), {name: value.detach() for name, value in outputs(generator).items()}
    targets = torch.zeros(IMAGES, dtype=torch.int64)
    targets[[3, 7]] = 5
    expected = torch.zeros(DIM, dtype=torch.float64)
    for sample in output["dropped"][[3, 7]]:
        expected = F.normalize((expected + sample) / 2, dim=0)
    method.after_step(output, batch_of(targets))
    torch.testing.assert_close(method.clusters.rows[5], expected)
    assert not method.clusters.rows[[1, 2, 3, 4, 6]].any()


def test_a_merge_removes_exactly_as_many_clusters_as_asked_and_only_makes_the_partition_coarser(generator) -> None:
    labels = np.arange(40)
    for gone in (7, 9, 11):
        new = merge(normal(generator, 40, DIM), labels, gone, 0.01)
        assert set(new) == set(range(len(set(labels)) - gone))
        assert len(set(zip(labels, new, strict=True))) == len(set(labels)), "an old cluster was torn apart"
        labels = new
    assert set(merge(normal(generator, 40, DIM), labels, 1000, 0.01)) == {0, 1}


def test_the_nearest_pairs_merge_first_in_chains_and_a_size_penalty_spares_the_large_cluster() -> None:
    line = torch.tensor([0.0, 1.0, 2.1, 10.0, 11.3], dtype=torch.float64)[:, None]
    singles = np.arange(5)
    assert merge(line, singles, 1, 0.0).tolist() == [0, 0, 1, 2, 3]
    assert merge(line, singles, 2, 0.0).tolist() == [0, 0, 0, 1, 2], "2.1 joins by its distance to 1, not to 0"
    pair_and_singles = np.array([0, 0, 1, 2, 3])
    assert merge(line, pair_and_singles, 1, 0.0).tolist() == [0, 0, 0, 1, 2]
    assert merge(line, pair_and_singles, 1, 1.0).tolist() == [0, 0, 1, 2, 2], "1.69 + 2 is less than 1.21 + 3"


def test_a_merge_equals_the_walk_over_all_pairs(generator) -> None:
    """Kruskal's walk, written out; some clusters have several images."""
    features, labels = normal(generator, 30, 3), np.arange(30) // 2
    sizes = np.bincount(labels)
    pairs = [
        (float((features[i] - features[j]).square().sum()) + 0.3 * (sizes[labels[i]] + sizes[labels[j]]), i, j)
        for i in range(30)
        for j in range(i)
        if labels[i] != labels[j]
    ]
    groups, gone = [{c} for c in range(15)], 0
    for _, i, j in sorted(pairs):
        a, b = (next(g for g in groups if labels[x] in g) for x in (i, j))
        if a is not b and gone < 6:
            a |= b
            groups.remove(b)
            gone += 1
    order = sorted(groups, key=min)
    expected = [next(place for place, g in enumerate(order) if label in g) for label in labels]
    assert merge(features, labels, 6, 0.3).tolist() == expected


def test_the_order_of_the_images_does_not_change_what_is_merged(generator) -> None:
    features, order = normal(generator, 30, DIM), torch.randperm(30, generator=generator)
    plain, permuted = (merge(f, np.arange(30), 12, 0.01) for f in (features, features[order]))
    together = plain[:, None] == plain
    assert np.array_equal(together[order][:, order], permuted[:, None] == permuted)


def test_a_stripe_of_a_constant_band_has_the_bands_value(generator) -> None:
    head = PatchHead(3, 2, 3).double().eval()
    for down in head.down:
        down.weight.data, down.bias.data = torch.eye(3).double(), torch.zeros(3).double()
    bands = torch.tensor([[1.0, 2, 3], [4, 1, 1]], dtype=torch.float64)
    feature_map = bands.repeat_interleave(2, dim=0).T[None, :, :, None].expand(1, 3, 4, 5)
    torch.testing.assert_close(head(feature_map)[0], F.normalize(bands, dim=1))


def test_the_patch_loss_leaves_out_the_own_row_and_is_zero_where_all_others_are_near(generator) -> None:
    patches, memory = unit(generator, 3, 2, 4), unit(generator, 2, 9, 4)
    rows = torch.tensor([4, 0, 7])
    loss = patch_loss(patches, memory, rows, 5.0, 3)
    for place, row in enumerate(rows):
        own = memory.clone()
        own[:, row] = 10 * patches[place]
        alone = slice(place, place + 1)
        before, after = (patch_loss(patches[alone], bank, rows[alone], 5.0, 3) for bank in (memory, own))
        assert torch.equal(before, after)
    assert loss > 0
    assert float(patch_loss(patches, memory, rows, 5.0, 8)) == pytest.approx(0, abs=1e-12)
    expected = []
    for i, row in enumerate(rows.tolist()):
        for p in range(2):
            d = sorted(float((patches[i, p] - memory[p, j]).square().sum()) for j in range(9) if j != row)
            e = np.exp(-5.0 * np.array(d))
            expected.append(-np.log(e[:3].sum() / e.sum()))
    assert float(loss) == pytest.approx(np.mean(expected))


def test_the_second_view_enters_the_image_loss_alone_and_memories_move_before_the_losses_read_them(generator) -> None:
    method, output = fcu(generator), outputs(generator)
    before = method.local.memory.clone()
    terms = method.loss(output, batch_of())
    assert torch.autograd.grad(terms["patch"], output["patches_1"], retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(terms["image"], output["patches_1"])[0].any()
    assert torch.equal(method.local.memory, before), "a loss alone changes nothing"
    method.after_step({name: value.detach() for name, value in output.items()}, batch_of())
    rows = slice(0, IMAGES)
    expected = 0.9 * before[:, rows] + 0.1 * output["patches_0"].detach().transpose(0, 1)
    torch.testing.assert_close(method.local.memory[:, rows], expected)
    assert torch.equal(method.local.memory[:, IMAGES:], before[:, IMAGES:])
    vectors = torch.stack([output[f"patches_{view}"].detach().flatten(1) for view in range(2)])
    torch.testing.assert_close(method.local.agents[rows], vectors.mean(dim=0))
    assert method.local.seen.tolist() == [True] * IMAGES + [False] * (20 - IMAGES)


def test_an_agent_that_counts_the_image_among_its_nearest_is_no_negative() -> None:
    """On a line: of image 0, agents 1 and 2 have 0 among their three nearest, agent 3 has not."""
    agents = torch.tensor([[0.0], [0.1], [0.3], [2.0], [2.1], [2.15]], dtype=torch.float64)
    views = agents[:, None].repeat(1, 2, 1)
    views[0, 0] += 0.05
    alone = image_loss(views[:1], agents[:1], 2.0, 15, 3)
    assert float(alone) == 0
    hinges = []
    for i in range(6):
        distance = (agents - agents[i]).abs().flatten()
        near = {j: set((agents - agents[j]).abs().flatten().argsort()[:3].tolist()) for j in range(6)}
        first = next((j for j in distance.argsort().tolist() if j != i and i not in near[j]), None)
        for view in range(2):
            d = (agents - views[i, view]).abs().flatten()
            hinges.append(0.0 if first is None else max(0.0, 0.5 + float(d[i] - d[first])))
    assert float(image_loss(views, agents, 0.5, 15, 3)) == pytest.approx(np.mean(hinges))
    assert float(image_loss(views, agents, 0.5, 1, 3)) == 0, "the nearest other agent knows each image"
    assert float(image_loss(views, agents, 0.5, 1, 3, released=True)) == pytest.approx(0.5 + 0.05 / 12)


def test_images_alone_in_their_cluster_are_not_attracted(generator) -> None:
    features, centres = unit(generator, 4, DIM), unit(generator, 4, DIM)
    grouped = torch.tensor([True, False, False, True])
    expected = (features - centres).square().sum(dim=1)[[0, 3]].mean() / 2
    torch.testing.assert_close(attracted(features, centres, grouped), expected)
    assert float(attracted(features, centres, torch.zeros(4, dtype=torch.bool))) == 0
    output = outputs(generator)
    assert float(fcu(generator).loss(output, batch_of())["attracted"]) == 0, "in the first stage"
    pairs = torch.arange(IMAGES) // 2
    assert fcu(generator, pairs.numpy()).loss(output, batch_of(pairs))["attracted"] > 0


def test_each_branch_alone_has_its_own_losses_head_and_feature(generator) -> None:
    images = normal(generator, 2, 3, 64, 32)
    both, buc = fcu(generator), fcu(generator, **BUC)
    patches = fcu(generator, repel_weight=0.0, attract_weight=0.0)
    lengths = {}
    for name, method in (("both", both), ("buc", buc), ("patches", patches)):
        lengths[name] = method.eval().embed(images)["feature"].shape[1]
    assert lengths == {"both": 256 + 8, "buc": 256, "patches": 8}
    output = outputs(generator)
    assert list(both.loss(output, batch_of())) == ["repelled", "attracted", "patch", "image"]
    assert list(patches.loss(output, batch_of())) == ["patch", "image"]
    buc.clusters.rows = unit(generator, IMAGES, DIM)
    terms = buc.loss(output, batch_of())
    assert list(terms) == ["repelled"]
    expected = F.cross_entropy(10 * output["dropped"] @ buc.clusters.rows.T, torch.arange(IMAGES))
    torch.testing.assert_close(terms["repelled"], expected)
    assert FCU.needs(buc.config) == Needs(views=1)


def test_merges_are_due_after_the_first_stage_and_then_after_each(generator) -> None:
    published = resolve_run("fcu", "market1501", "published").config
    due = [published.settings.merged(epoch) for epoch in range(published.schedule.epochs)]
    assert [epoch for epoch in range(1, 50) if due[epoch] > due[epoch - 1]] == list(range(20, 50, 2))
    assert due[-1] == 15
    for profile, last in (("controlled", 6), ("gpu_short", 3), ("tiny", 1)):
        config = resolve_run("fcu", "rendered", profile, backbone="resnet18_half").config
        assert config.settings.merged(config.schedule.epochs - 1) == last
        assert last * config.settings.merge_share in (0.5, 0.75)
    patches = resolve_run("fcu-patches", "market1501", "published").config
    assert patches.settings.merged(49) == 0


@pytest.mark.parametrize(("dataset", "scale"), [("market1501", 15), ("dukemtmc", 5), ("msmt17_v1", 10)])
def test_published_settings_resolve(dataset: str, scale: float) -> None:
    config = resolve_run("fcu", dataset, "published").config
    assert config.settings.patch_scale == scale
    assert (config.input.height, config.optimiser.lr, config.settings.backbone_rate) == (384, 0.1, 0.1)


def test_the_turned_view_keeps_a_share_of_the_area_and_the_identity_keeps_all(generator) -> None:
    images = torch.randint(0, 256, (3, 3, 40, 20), generator=generator, dtype=torch.uint8)
    drawn = torch.full((3, 4), 0.5)
    assert torch.equal(turned(images, drawn, 10.0, (1.0, 1.0)), images)
    rows = torch.arange(40, dtype=torch.uint8)[None, None, :, None].expand(1, 3, 40, 20)
    top = turned(rows, torch.tensor([[0.5, 0.5, 0.0, 0.0]]), 0.0, (0.25, 0.25))[0, 0, :, 10].float()
    assert float(top.max()) <= 20
    assert float(top[-1] - top[1]) == pytest.approx(19, abs=1)
    assert not torch.equal(turned(images, torch.rand(3, 4, generator=generator), 10.0, (0.7, 0.95)), images)


def test_dropout_and_views_of_two_processes_are_those_of_one(generator) -> None:
    class Store:
        """Stands in for decoded images: eight of noise."""

        def batch(self, rows: Tensor) -> Tensor:
            drawn = torch.Generator().manual_seed(0)
            return torch.randint(0, 256, (8, 3, 32, 16), generator=drawn, dtype=torch.uint8)[rows]

    data = TrainingData(Store(), Needs(views=2), ALONE)  # type: ignore[arg-type]
    method = fcu(generator, rotation=10.0)
    rows, order = torch.tensor([5, 0, 3, 1]), torch.arange(4)

    def made(part: slice) -> list[Tensor]:
        pixels = Pixels(data, rows, order, part, Streams(3).torch, Augment(pad=2), torch.float32)
        return [*method.make_views(pixels), method.kept]

    halves = zip(made(slice(0, 2)), made(slice(2, 4)), strict=True)
    for whole, halved in zip(made(slice(None)), halves, strict=True):
        assert torch.equal(whole, torch.cat(halved))
    assert set(method.kept.unique().tolist()) == {0.0, 2.0}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("people")
    write_dataset(folder, seed=0).write(folder)
    return read_manifest(folder)


def test_a_run_in_two_parts_equals_one_across_a_merge(
    people: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread
) -> None:
    settings = Settings(**SMALL)
    record = train_small(people, tmp_path / "whole", ALONE, FCU, settings=settings)
    assert record.status == "ok", record.reason
    labels = np.load(tmp_path / "whole/labels.npz")["labels"]
    assert [len(set(row)) for row in labels] == [58, 29]
    trained = Trainer._train

    def interrupted(self: Trainer, epoch: int, labels: Labels) -> dict[str, float]:
        if epoch == 1:
            raise KeyboardInterrupt
        return trained(self, epoch, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_small(people, tmp_path / "parts", ALONE, FCU, settings=settings)
    train_small(people, tmp_path / "parts", ALONE, FCU, settings=settings)
    whole, parts = (torch.load(tmp_path / n / "weights/epoch_002.pt", weights_only=True) for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
