"""CLC: docs/methods/clc.md. Equality of triplets and smoothed labels with HHL's code: tests/golden/hhl_triplet.npz."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.augment import Augment
from core.backbones.net import build
from core.config import Backbone, Config, Input, Sampler
from core.data import Batch, Labels, Pixels, TrainingData
from core.distributed import ProcessGroup
from core.images import ImageStore
from core.rng import Streams
from core.styles import StyleSettings
from methods.clc.heads import HHLHead, NeckHead
from methods.clc.losses import paired_triplet
from methods.clc.method import CLC, Settings
from tests.methods.draws import normal

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
HEIGHT, WIDTH, TARGET, SOURCE, PEOPLE = 32, 16, 12, 24, 6


def clc(backend: str = "camera", **settings: object) -> CLC:
    given = {"source_images": 0, "target_images": 4, "target_copies": 1, **settings}
    made = Settings(styles=StyleSettings(backend=backend), **given)  # type: ignore[arg-type]
    config = Config(made, Input(HEIGHT, WIDTH), Backbone("resnet18_half", bn_groups=1), precision="fp64")
    config = replace(config, sampler=Sampler(3, 2, uses_camera=False))
    embedder = build("resnet18_half", generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return CLC(config, embedder, TARGET, PEOPLE).double()


def training_data(method: CLC, cameras: int = 3) -> TrainingData:
    """Images of noise; ``cameras`` of the target and two of the source."""
    generator, needs = torch.Generator().manual_seed(1), method.needs(method.config)

    def side(count: int, known: int, people: np.ndarray | None, beside: TrainingData | None) -> TrainingData:
        taken = np.arange(count) % known
        noise = 20 * torch.randn(count, 3, HEIGHT, WIDTH, generator=generator)
        images = (60 + 30 * torch.as_tensor(taken)[:, None, None, None] + noise).clamp(0, 255).to(torch.uint8)
        store = ImageStore(images, ALONE.device)
        return TrainingData(store, needs if beside else needs.of_source, ALONE, taken, people, source=beside)

    data = side(TARGET, cameras, None, side(SOURCE, 2, np.arange(SOURCE) % PEOPLE, None))
    data.computed_by(method.config)
    method.eval()
    method.start_epoch(method.label(0, data), data, torch.Generator())
    method.train()
    return data


def step(method: CLC, data: TrainingData, augment: Augment | None = None) -> Batch:
    """Four target images and six of the source."""

    def half(side: TrainingData, rows: Tensor, targets: Tensor, prefix: str) -> Batch:
        def stream(name: str) -> torch.Generator:
            return Streams(0).torch(prefix + name)

        given = Pixels(side, rows, rows, slice(None), stream, augment or Augment(), torch.float64)
        return Batch(method.make_views(given), rows, targets, None, {}, 0)

    assert data.source is not None
    people = torch.tensor([0, 6, 1, 7, 2, 8])
    source = half(data.source, people, torch.as_tensor(data.source.identities)[people], "source/")
    rows = torch.tensor([3, 1, 8, 10])
    return replace(half(data, rows, rows, ""), source=source)


def literal_triplet(features: Tensor, labels: Tensor, margin: float) -> float:
    found = []
    for i, label in enumerate(labels.tolist()):
        distances = [float((features[i] - other).norm()) for other in features]
        mine = [d for j, d in enumerate(distances) if labels[j] == label and j != i]
        others = [d for j, d in enumerate(distances) if labels[j] != label]
        if mine:
            found.append(max(0.0, margin + max(mine) - min(others)))
    return sum(found) / len(found)


def test_the_triplet_takes_farthest_positive_and_nearest_negative_of_anchors_with_a_positive(generator) -> None:
    features, labels = normal(generator, 9, 4), torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 2])
    labels[5] = 7  # alone, and so is the last
    found = paired_triplet(features, labels, 0.3)
    assert float(found) == pytest.approx(literal_triplet(features, labels, 0.3))
    apart = paired_triplet(features[[0, 0, 1, 1]] + torch.tensor([0, 0, 50, 50])[:, None], labels[[0, 0, 2, 2]], 0.3)
    assert float(apart) == 0


def test_without_a_pair_the_triplet_is_zero_and_so_is_its_gradient(generator) -> None:
    features = normal(generator, 5, 4).requires_grad_()
    loss = paired_triplet(features, torch.arange(5), 0.3)
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(features))


def test_imitated_images_keep_their_person_and_target_copies_are_paired_by_their_image() -> None:
    method = clc(target_copies=None)
    data = training_data(method)
    batch = step(method, data)
    assert len(batch.source.images) == 2
    assert len(batch.images) == 3, "one view in each camera's style"
    output = method(batch)
    sets = method._compared(output, batch.indices, batch.source.targets, slice(None))
    assert torch.equal(sets["source"][1], sets["imitated"][1])
    labels = sets["target"][1]
    assert torch.equal(labels, (PEOPLE + batch.indices).repeat(3))
    assert not set(labels.tolist()) & set(range(PEOPLE))
    compared = torch.cat([output[f"compared_{place}"] for place in (2, 1, 0)])
    assert torch.equal(sets["target"][0], compared)
    assert method.label(0, data).ids.tolist() == list(range(TARGET))


def test_the_loss_is_its_terms_by_their_equations() -> None:
    method = clc()
    batch = step(method, training_data(method))
    output, people = method(batch), torch.tensor([0, 0, 1, 1, 2, 2])
    terms = method.loss(output, batch)
    imitated = output["source_imitated_logits"].log_softmax(dim=1)
    soft = 0.9 * F.one_hot(people, PEOPLE) + 0.1 / PEOPLE
    target = torch.cat([output["compared_0"], output["compared_1"]])
    expected = {
        "source": F.cross_entropy(output["source_logits"], people),
        "imitated": -(soft * imitated).sum(dim=1).mean(),
        "triplet_source": 0.5 * paired_triplet(output["source_compared"], people, 0.3),
        "triplet_imitated": 0.5 * paired_triplet(output["source_imitated_compared"], people, 0.3),
        "triplet_target": 0.5 * paired_triplet(target, torch.tensor([3, 1, 8, 10]).repeat(2), 0.3),
    }
    assert list(terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-6, atol=1e-9)


def test_copies_that_equal_their_images_make_imitated_losses_the_source_s() -> None:
    still = Augment(flip_probability=0.0, pad=0, erase_probability=0.0)
    method = clc("none", smoothing=0.0)
    batch = step(method, training_data(method), still)
    terms = method.loss(method(batch), batch)
    assert torch.equal(terms["source"], terms["imitated"])
    assert torch.equal(terms["triplet_source"], terms["triplet_imitated"])


def test_with_both_weights_zero_the_source_is_classified_and_the_target_is_not_looked_at() -> None:
    off = clc(imitated_weight=0.0, triplet_weight=0.0)
    data = training_data(off)
    assert off.needs(off.config).cameras == frozenset()
    batch = step(off, data)
    assert (len(batch.images), len(batch.source.images)) == (1, 1)
    output = off(batch)
    assert set(output) == {"source_logits", "source_compared"}
    terms = off.loss(output, batch)
    assert list(terms) == ["source"]
    plain = clc().train()
    plain.head.load_state_dict(off.head.state_dict())
    feature = plain.embedder(batch.source.images[0])["feature"]
    logits = 30 * feature @ F.normalize(off.head.rows, dim=1).T
    torch.testing.assert_close(terms["source"], F.cross_entropy(logits, batch.source.targets))
    for name, value in plain.embedder.named_buffers():
        assert torch.equal(off.embedder.get_buffer(name), value), name


def test_one_target_camera_leaves_the_target_s_triplet_without_a_pair() -> None:
    method = clc()
    batch = step(method, training_data(method, cameras=1))
    assert len(batch.images) == 1
    output = {name: value.detach().requires_grad_() for name, value in method(batch).items()}
    loss = method.loss(output, batch)["triplet_target"]
    (gradient,) = torch.autograd.grad(loss, output["compared_0"])
    assert loss.item() == 0
    assert not gradient.any()


def test_target_features_move_the_source_s_triplets_only_where_all_are_one_set() -> None:
    for commonality, moved in (("separate", False), ("joint", True)):
        method = clc(commonality=commonality)
        batch = step(method, training_data(method))
        output = {name: value.detach() for name, value in method(batch).items()}
        gradients = []
        for place in (0.0, 1.0):
            source = output["source_compared"].clone().requires_grad_()
            near = {n: place * source.detach()[:4] + (1 - place) * v for n, v in output.items() if n[:9] == "compared_"}
            terms = method.loss({**output, "source_compared": source, **near}, batch)
            gradients.append(torch.autograd.grad(torch.stack(list(terms.values())).sum(), source)[0])
        assert torch.equal(*gradients) is not moved


def test_the_classifier_starts_at_the_people_s_mean_features_once() -> None:
    method = clc()
    data = training_data(method)
    method.eval()
    assert isinstance(method.head, NeckHead)
    features = data.source.extract(lambda pixels, rows: method.embed(data.source.prepare(pixels)))["feature"]
    means = torch.stack([features[np.arange(SOURCE) % PEOPLE == person].mean(dim=0) for person in range(PEOPLE)])
    torch.testing.assert_close(method.head.rows, means, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        method.head.rows.zero_()
    resumed = clc()
    resumed.load_memory_state(method.memory_state())
    resumed.load_state_dict(method.state_dict())
    resumed.eval().start_epoch(Labels(np.arange(TARGET)), data, torch.Generator())
    assert not resumed.head.rows.any()


def test_a_source_batch_holds_random_images_then_people_and_each_loss_reads_its_part() -> None:
    method = clc(source_images=10)
    data = training_data(method)
    batches = list(method.source_batches(data.source, np.random.default_rng(0)))
    assert [len(rows) for rows in batches] == [16, 16]
    assert len({int(row) for rows in batches for row in rows[:10]}) == 20
    people = np.stack([data.source.identities[rows[10:]] for rows in batches])
    assert (people[:, 0::2] == people[:, 1::2]).all()
    batch = step(method, data)
    rows = torch.as_tensor(batches[0])
    source = replace(batch.source, indices=rows, targets=torch.as_tensor(data.source.identities)[rows])
    source.images = [torch.cat([view, view, view[:4]]) for view in source.images]
    output = method(replace(batch, source=source))
    terms = method.loss(output, replace(batch, source=source))
    torch.testing.assert_close(terms["source"], F.cross_entropy(output["source_logits"][:10], source.targets[:10]))
    expected = 0.5 * paired_triplet(output["source_compared"][10:], source.targets[10:], 0.3)
    torch.testing.assert_close(terms["triplet_source"], expected)


def test_target_batches_hold_every_image_once_but_a_rest() -> None:
    method = clc(target_images=5)
    data = training_data(method)
    rows = np.concatenate(list(method.batches(Labels(np.arange(TARGET)), data, np.random.default_rng(0))))
    assert len(rows) == 10 == len(set(rows.tolist()))


def test_the_test_feature_is_unit_and_does_not_hang_on_the_head(generator) -> None:
    images = normal(generator, 3, 3, HEIGHT, WIDTH)
    for arch in ("bnneck", "hhl"):
        method = clc(arch=arch).eval()
        before = method.embed(images)["feature"]
        torch.testing.assert_close(before.norm(dim=1), torch.ones(3, dtype=torch.float64))
        with torch.no_grad():
            for parameter in method.head.parameters():
                parameter.add_(1.0)
        assert torch.equal(method.embed(images)["feature"], before)


def test_hhl_s_layers_drop_what_is_classified_and_not_what_is_compared(generator) -> None:
    pooled = normal(generator, 6, 32)
    torch.manual_seed(0)
    head = HHLHead(32, PEOPLE, frozen=False).double().train()
    first, second = head(pooled, pooled), head(pooled, pooled)
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[1].shape == (6, 128)
    whole = torch.stack([head(pooled, pooled)[0] for _ in range(60)]).mean(dim=0)
    expected = head.classifier(F.relu(head.norm(head.embed(pooled))))
    assert float((whole - expected).norm() / expected.norm()) < 0.3, "what stays is scaled up"
    frozen = {name for name, p in clc(arch="hhl", frozen=True).head.named_parameters() if not p.requires_grad}
    assert frozen == {"embed.weight", "embed.bias", "norm.weight", "norm.bias", "compare.weight", "compare.bias"}


def test_the_backbone_learns_at_its_share_of_the_rate() -> None:
    method = clc(backbone_rate=0.1)
    groups = method.param_groups()
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]
    trained = [p for p in method.parameters() if p.requires_grad]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, trained))


def test_settings_that_name_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="among source, imitated, target"):
        Settings(triplets=("sources",))
    with pytest.raises(ValueError, match="needs images in other styles"):
        Settings(styles=StyleSettings(backend="mixstyle"))
    with pytest.raises(ValueError, match="target_copies must be at least 1"):
        Settings(target_copies=0)
