"""SDFT (docs/methods/sdft.md): SDR, SDCL, their memories, and what is left without them."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.backbones.net import Embedder
from core.config import Config
from core.data import Batch, Labels
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.sdft.losses import (
    StripeMemory,
    cluster_consistency,
    feature_consistency,
    identity_view,
    joint_view,
    stripe_view,
)
from methods.sdft.method import SDFT, Settings
from pipeline.settings import method_config, resolve_run
from tests.methods.draws import normal, unit
from tests.methods.sdft_small import DIM, STRIPES, pictures, sdft, small_embedder

CLUSTERS, TAU, M = 5, 0.05, 0.2
TARGETS = torch.tensor([2, 0, 2, 4, 2, 0, 4, 1])
OFF = {"sdr_feature": False, "sdr_cluster": False, "sdcl_identity": False, "sdcl_stripe": False}


@pytest.fixture(params=["map", "tokens"])
def small(request: pytest.FixtureRequest) -> Embedder:
    return small_embedder(request.param)


def batch_of(images: Tensor, targets: Tensor = TARGETS) -> Batch:
    return Batch([images], torch.arange(len(targets)), targets, None, {}, 0)


class Extracted:
    """Stands in for the training data: what ``embed`` gave for every image."""

    def __init__(self, outputs: dict[str, Tensor]) -> None:
        self.outputs = outputs

    def features(self) -> Tensor:
        return self.outputs["feature"]

    def embedded(self, key: str) -> Tensor:
        return self.outputs[key]


def started(method, images: Tensor, labels: Tensor):
    """The method after an eval-mode extraction and ``start_epoch``, in training mode."""
    with torch.no_grad():
        outputs = method.double().eval().embed(images)
    method.start_epoch(Labels(labels.numpy()), Extracted(outputs), torch.Generator())
    return method.train()


def step(method, batch: Batch) -> dict[str, Tensor]:
    """Loss, gradients and memory updates of one batch, as the engine orders them."""
    method.zero_grad()
    torch.manual_seed(0)  # drop path draws from the global stream
    output = method(batch)
    terms = method.loss(output, batch)
    torch.stack(list(terms.values())).sum().backward()
    method.after_step({name: value.detach() for name, value in output.items()}, batch)
    return terms


# SDR and SDCL


def test_feature_consistency_is_zero_only_where_both_features_agree(generator) -> None:
    g, a = unit(generator, 6, DIM), unit(generator, 6, DIM)
    torch.testing.assert_close(feature_consistency(g, g), torch.zeros((), dtype=g.dtype), rtol=0, atol=1e-12)
    assert feature_consistency(a, g) > 0
    torch.testing.assert_close(feature_consistency(a, g), (1 - torch.diag(a @ g.T)).mean())


def test_cluster_consistency_is_zero_for_equal_posteriors_and_positive_otherwise(generator) -> None:
    z, w = 10 * normal(generator, 6, CLUSTERS), 10 * normal(generator, 6, CLUSTERS)
    torch.testing.assert_close(cluster_consistency(z, z + 3), torch.zeros((), dtype=z.dtype), rtol=0, atol=1e-12)
    assert cluster_consistency(z, w) > 0
    p, q = z.softmax(1), w.softmax(1)
    literal = 0.5 * ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean()
    torch.testing.assert_close(cluster_consistency(z, w), literal)


def test_the_teacher_side_of_either_divergence_has_no_gradient(generator) -> None:
    z = normal(generator, 6, CLUSTERS).requires_grad_()
    w = normal(generator, 6, CLUSTERS).requires_grad_()
    cluster_consistency(z, w).backward()
    # d KL(sg(p) || q) / d logits of q = q - p, a half of it, over the batch; and the mirror image for p.
    difference = (w.softmax(1) - z.softmax(1)).detach() / (2 * len(z))
    torch.testing.assert_close(w.grad, difference)
    torch.testing.assert_close(z.grad, -difference)


def test_feature_consistency_moves_both_features(generator) -> None:
    g, a = unit(generator, 6, DIM).requires_grad_(), unit(generator, 6, DIM).requires_grad_()
    feature_consistency(a, g).backward()
    torch.testing.assert_close(a.grad, -g.detach() / 6)
    torch.testing.assert_close(g.grad, -a.detach() / 6)


def literal_sdcl(f: Tensor, bank: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Identity view, stripe view and the joint one, sample by sample and stripe by stripe."""
    identity, stripe, joint = [], [], []
    for i, y in enumerate(targets.tolist()):
        for s in range(f.shape[1]):
            scores = torch.exp(bank @ f[i, s] / TAU)  # (S, K)
            own = scores[s, y]
            across = scores[:, y].sum()
            identity.append(-torch.log(own / scores[s].sum()))
            stripe.append(-torch.log(own / across))
            joint.append(-torch.log(own / (scores[s].sum() + across - own)))
    return torch.stack(identity).mean(), torch.stack(stripe).mean(), torch.stack(joint).mean()


def test_the_views_of_sdcl_equal_their_sums_written_as_loops(generator) -> None:
    f, bank = unit(generator, len(TARGETS), STRIPES, DIM), unit(generator, STRIPES, CLUSTERS, DIM)
    expected = literal_sdcl(f, bank, TARGETS)
    for view, value in zip((identity_view, stripe_view, joint_view), expected, strict=True):
        torch.testing.assert_close(view(f, bank, TARGETS, TAU), value)


@pytest.mark.parametrize("view", [identity_view, stripe_view, joint_view])
def test_sdcl_does_not_depend_on_the_order_of_identities_or_stripes(generator, view) -> None:
    f, bank = unit(generator, len(TARGETS), STRIPES, DIM), unit(generator, STRIPES, CLUSTERS, DIM)
    value = view(f, bank, TARGETS, TAU)
    identities, stripes = torch.randperm(CLUSTERS, generator=generator), torch.randperm(STRIPES, generator=generator)
    torch.testing.assert_close(view(f, bank[:, identities], identities.argsort()[TARGETS], TAU), value)
    torch.testing.assert_close(view(f[:, stripes], bank[stripes], TARGETS, TAU), value)
    assert not torch.allclose(view(f[:, [1, 0, 2, 3]], bank, TARGETS, TAU), value)


def test_the_stripe_view_reads_the_rows_of_the_own_identity_only(generator) -> None:
    f, bank = unit(generator, len(TARGETS), STRIPES, DIM), unit(generator, STRIPES, CLUSTERS, DIM)
    more = torch.cat([bank, unit(generator, STRIPES, 3, DIM)], dim=1)
    assert torch.equal(stripe_view(f, bank, TARGETS, TAU), stripe_view(f, more, TARGETS, TAU))
    assert not torch.equal(identity_view(f, bank, TARGETS, TAU), identity_view(f, more, TARGETS, TAU))


def test_with_one_stripe_the_stripe_view_is_zero_and_the_joint_one_the_identity_view(generator) -> None:
    f, bank = unit(generator, len(TARGETS), 1, DIM), unit(generator, 1, CLUSTERS, DIM)
    assert stripe_view(f, bank, TARGETS, TAU) == 0
    torch.testing.assert_close(joint_view(f, bank, TARGETS, TAU), identity_view(f, bank, TARGETS, TAU))


# Memories


def test_a_stripe_s_row_is_moved_by_its_own_stripe_and_identity_alone(generator) -> None:
    labels = torch.arange(20) % CLUSTERS
    memory = StripeMemory(unit(generator, 20, STRIPES, DIM), labels, M)
    f = unit(generator, len(TARGETS), STRIPES, DIM)
    expected = memory.bank.clone()
    memory.update(f, TARGETS)
    for i, y in enumerate(TARGETS.tolist()):
        for s in range(STRIPES):
            expected[s, y] = F.normalize(M * expected[s, y] + (1 - M) * f[i, s], dim=0)
    torch.testing.assert_close(memory.bank, expected)
    assert 3 not in TARGETS
    assert torch.equal(memory.bank[:, 3], expected[:, 3])


def test_stripe_rows_start_as_the_unit_means_of_their_cluster_without_outliers(generator) -> None:
    labels = torch.arange(24) % (CLUSTERS + 1) - 1
    parts = unit(generator, 24, STRIPES, DIM)
    memory = StripeMemory(parts, labels.numpy(), M)
    for s in range(STRIPES):
        for y in range(CLUSTERS):
            torch.testing.assert_close(memory.bank[s, y], F.normalize(parts[labels == y, s].mean(0), dim=0))


def test_no_memory_receives_a_gradient_and_each_follows_its_own_feature(small: Embedder, generator) -> None:
    images = pictures(generator)
    labels = torch.arange(8) % CLUSTERS
    method = started(sdft(small, stripes=2), images, labels)
    batch = batch_of(images)
    banks = [method.memory.rows.clone(), method.aggregates.rows.clone(), method.parts.bank.clone()]
    torch.manual_seed(0)
    with torch.no_grad():
        output = copy.deepcopy(method)(batch)
    step(method, batch)
    for rows, features in ((banks[0], output["feature"]), (banks[1], output["aggregate"])):
        for f, y in zip(features, TARGETS.tolist(), strict=True):
            rows[y] = F.normalize(M * rows[y] + (1 - M) * f, dim=0)
    torch.testing.assert_close(method.memory.rows, banks[0])
    torch.testing.assert_close(method.aggregates.rows, banks[1])
    assert not torch.allclose(method.parts.bank, banks[2])
    for bank in (method.memory.rows, method.aggregates.rows, method.parts.bank):
        assert not bank.requires_grad


# The method


@pytest.mark.parametrize("off", [OFF, {"lambda_r": 0.0, "lambda_c": 0.0}], ids=["switches", "weights"])
def test_without_blocks_and_terms_it_is_cluster_contrast_exactly(small: Embedder, generator, off) -> None:
    images, labels = pictures(generator), torch.arange(8) % CLUSTERS
    config = Config(settings=ClusterContrastSettings(temperature=TAU, momentum=M))
    baseline = started(ClusterContrast(config, copy.deepcopy(small), 1), images, labels)
    reduced = started(sdft(small, blocks=0, **off), images, labels)
    names = [name for name, _ in baseline.named_parameters()]
    assert [name for name, _ in reduced.named_parameters()] == names
    for _ in range(2):
        batch = batch_of(pictures(generator))
        ours, theirs = step(reduced, batch), step(baseline, batch)
        assert ours.keys() == theirs.keys()
        assert torch.equal(ours["cluster"], theirs["cluster"])
        pairs = zip(reduced.parameters(), baseline.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs if b.requires_grad)
        assert torch.equal(reduced.memory.rows, baseline.memory.rows)
    assert torch.equal(reduced.eval().embed(images)["feature"], baseline.eval().embed(images)["feature"])


def test_the_loss_is_the_weighted_sum_of_its_terms(small: Embedder, generator) -> None:
    images = pictures(generator)
    weights = {"lambda_r": 0.3, "lambda_c": 0.7, "mu_s": 0.4, "tau_r": 0.1}
    method = started(sdft(small, **weights), images, torch.arange(8) % CLUSTERS)
    batch = batch_of(images)
    output = method(batch)
    g, a, f = output["feature"], output["aggregate"], output["parts"]
    terms = method.loss(output, batch)
    identity, stripe, joint = literal_sdcl(f, method.parts.bank, TARGETS)
    p, q = (x @ memory.rows.T / 0.1 for x, memory in ((g, method.memory), (a, method.aggregates)))
    expected = {
        "cluster": F.cross_entropy(g @ method.memory.rows.T / TAU, TARGETS),
        "sdr_feature": 0.3 * feature_consistency(a, g),
        "sdr_cluster": 0.3 * cluster_consistency(p, q),
        "sdcl_identity": 0.7 * identity,
        "sdcl_stripe": 0.7 * 0.4 * stripe,
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    method.config = dataclasses.replace(method.config, settings=Settings(sdcl="joint", **weights))
    torch.testing.assert_close(method.loss(output, batch)["sdcl"], 0.7 * joint)


@pytest.mark.parametrize("stripes", [1, 2, 4])
def test_outputs_are_unit_vectors_and_the_concatenations_have_one_length(small: Embedder, generator, stripes) -> None:
    method = sdft(small, stripes=stripes, test_feature="concat").double().eval()
    images, dim = pictures(generator, 3), small.dim
    views, tested = method(batch_of(images)), method.embed(images)["feature"]
    assert views["feature"].shape == views["aggregate"].shape == (3, dim)
    assert views["parts"].shape == (3, stripes, dim)
    for view in views.values():
        torch.testing.assert_close(view.norm(dim=-1), torch.ones(view.shape[:-1], dtype=view.dtype))
    assert tested.shape == (3, (stripes + 1) * dim)
    torch.testing.assert_close(tested.norm(dim=1), torch.full((3,), math.sqrt(1 + 1 / stripes), dtype=tested.dtype))
    assert torch.equal(tested[:, :dim], views["feature"])
    torch.testing.assert_close(tested[:, dim : 2 * dim], views["parts"][:, 0] / stripes)


def test_necks_start_as_the_loaded_neck_and_a_checkpoint_keeps_its_own(small: Embedder) -> None:
    method = sdft(small)
    loaded = {name: value + 1 for name, value in small.state_dict().items()}
    method.embedder.load_state_dict(loaded)
    method.weights_loaded()
    necks = [method.aggregate_neck, *method.part_necks]
    for neck in necks:
        for name, value in neck.state_dict().items():
            assert torch.equal(value, loaded[f"bnneck.{name}"])
    saved = {name: value * 3 for name, value in method.state_dict().items()}
    method.load_state_dict(saved)
    assert all(torch.equal(value, saved[name]) for name, value in method.state_dict().items())


ROWS = method_config("sdft")["variants"] | method_config("sdft")["ablations"]


@pytest.mark.parametrize("row", ROWS)
def test_every_trained_parameter_has_a_gradient_in_every_row(small: Embedder, generator, row: str) -> None:
    """Several processes need it: DDP waits for the gradient of each parameter."""
    settings = vars(resolve_run(f"sdft-{row}", "rendered", "tiny").config.settings)
    settings["stripes"] = min(settings["stripes"], 4)  # the map of these images has 4 rows
    method = started(sdft(small, **settings), pictures(generator), torch.arange(8) % CLUSTERS)
    terms = step(method, batch_of(pictures(generator)))
    assert all(torch.isfinite(term) for term in terms.values())
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]


def test_each_switch_removes_its_own_term(small: Embedder, generator) -> None:
    images, labels = pictures(generator), torch.arange(8) % CLUSTERS
    for switch in OFF:
        method = started(sdft(copy.deepcopy(small), **{switch: False}), images, labels)
        expected = {"cluster", *OFF} - {switch}
        assert method.loss(method(batch_of(images)), batch_of(images)).keys() == expected


def test_clustering_reads_the_global_feature_even_where_the_concatenation_is_tested(small, generator) -> None:
    method = sdft(small, test_feature="concat").double().eval()
    outputs = method.embed(pictures(generator))
    g = method.views(pictures(torch.Generator().manual_seed(3)))["feature"]
    assert torch.equal(method.global_features(Extracted(outputs)), g)


def test_no_camera_label_is_used(small: Embedder) -> None:
    run = resolve_run("sdft", "market1501", "published")
    assert SDFT.needs(run.config).cameras == frozenset()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stripes": 0}, "stripes 0 at least 1"),
        ({"blocks": -1}, "blocks -1 is at least 0"),
        ({"sdcl": "both"}, "sum or joint"),
        ({"sdcl": "joint", "sdcl_stripe": False}, "leave sdcl_identity and sdcl_stripe on"),
        ({"test_feature": "parts"}, "global or concat"),
        ({"test_feature": "concat", "lambda_c": 0.0}, "no loss trains"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)  # type: ignore[arg-type]
