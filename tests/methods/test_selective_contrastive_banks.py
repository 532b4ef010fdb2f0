"""Banks of selective contrastive learning and the start of a run: docs/methods/selective_contrastive.md, "Banks"."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.checkpoint import Checkpoint
from core.data import Batch, Labels, TrainingData
from core.distributed import ProcessGroup
from core.engine import Trainer
from core.images import ImageStore
from core.rng import Streams
from methods.selective_contrastive.contrast import pull_positives, term_weights
from methods.selective_contrastive.heads import Heads, standardised
from methods.selective_contrastive.method import SelectiveContrastive
from methods.selective_contrastive.selection import select_at_random
from pipeline.settings import resolve_run
from tests.methods.selective_contrastive_small import (
    BATCH,
    DIM,
    IMAGES,
    NEGATIVES,
    STRIPES,
    Data,
    K,
    batch_of,
    build,
    filled,
    total,
    views_of,
)
from tests.parity import arrays
from tests.parity.files import compare_file

GOLDEN = Path(__file__).parents[1] / "golden" / "selective_contrastive.npz"


@pytest.fixture
def output() -> dict[str, Tensor]:
    return views_of(BATCH, 7)


def gradients(method: SelectiveContrastive, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in output.items()}
    loss = total(method.loss(leaves, batch))
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def slow_terms(z: Tensor, bank: Tensor, row: list[int], positives: int) -> list[Tensor]:
    """CE_j of one anchor over its list I = [P, N]."""
    scores = {k: torch.exp(10 * z @ bank[k]) for k in row}
    return [-torch.log(scores[row[j]] / torch.stack(list(scores.values())).sum()) for j in range(positives)]


def slow_pull(bank: Tensor, positives: Tensor, z: Tensor, term: int) -> None:
    for i in range(len(z)):
        row = positives[i, term]
        bank[row] = F.normalize((bank[row] + z[i]) / 2, dim=0)


# Property 6: global and local banks.


def test_global_and_local_banks_move_half_way_and_other_rows_stay_bit_identical(output: dict[str, Tensor]) -> None:
    method, batch = filled(build()), batch_of()
    before = {name: bank.rows.clone() for name, bank in method.banks.items()}
    method.loss(output, batch)
    method.after_step(output, batch)
    rest = sorted(set(range(IMAGES)) - set(batch.indices.tolist()))
    for name, count in (("global", 1), ("local", STRIPES)):
        old, new = (bank.view(IMAGES, count, -1) for bank in (before[name], method.banks[name].rows))
        assert torch.equal(old[rest], new[rest])
        for i, row in enumerate(batch.indices.tolist()):
            for v in range(count):
                expected = F.normalize(0.5 * old[row, v] + 0.5 * output[name][i, v], dim=0)
                torch.testing.assert_close(new[row, v], expected)


def test_the_banks_are_filled_once_with_centred_features_and_a_mixture_of_zeros() -> None:
    method = build()
    generator = torch.Generator().manual_seed(0)
    views = {name: F.normalize(view + 3, dim=2) for name, view in views_of(IMAGES, 3).items()}  # all nearly parallel
    for given in (views, views_of(IMAGES, 5)):  # the second epoch's are not looked at
        method.start_epoch(Labels(np.arange(IMAGES)), Data(given), generator)  # type: ignore[arg-type]
        for name, view in views.items():
            bank = method.banks[name].rows.view(view.shape)
            torch.testing.assert_close(bank, standardised(view))
            assert bank.mean(dim=0).norm(dim=1).max() < 0.1 < view.mean(dim=0).norm(dim=1).min()
        assert not method.banks["mixture"].rows.any()
        assert method.banks["mixture"].rows.shape == (IMAGES, DIM)


def test_standardised_views_are_what_batch_norm_in_training_mode_gives() -> None:
    heads = Heads(DIM, STRIPES).double().train()
    pooled = torch.rand(IMAGES, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    linear = heads.whole.linear(pooled)
    of_equal_length = F.normalize(linear, dim=1)  # where lengths do not vary, it is exact but for BN's epsilon
    trained = F.normalize(heads.whole.norm(1e3 * of_equal_length), dim=1)
    torch.testing.assert_close(standardised(of_equal_length[:, None])[:, 0], trained, rtol=1e-5, atol=1e-8)


# Property 7: the mixture bank.


def test_exactly_the_rows_of_the_batch_s_positives_change_and_have_length_one(output: dict[str, Tensor]) -> None:
    method, batch = filled(build()), batch_of()
    before = method.banks["mixture"].rows.clone()
    method.loss(output, batch)
    assert torch.equal(before, method.banks["mixture"].rows), "the loss changes no bank"
    method.after_step(output, batch)
    after = method.banks["mixture"].rows
    changed = (before != after).any(dim=1).nonzero().flatten()
    assert set(changed.tolist()) == set(method.selection.positives.flatten().tolist())
    torch.testing.assert_close(after[changed].norm(dim=1), torch.ones(len(changed), dtype=torch.float64))


def test_the_mixture_follows_local_then_global_features_from_the_last_positive_to_the_anchor(
    output: dict[str, Tensor],
) -> None:
    method, batch = filled(build()), batch_of()
    method.banks["global"].rows[:] = method.banks["global"].rows[0]  # neighbours alike: rows are pulled many times
    expected = method.banks["mixture"].rows.clone()
    method.loss(output, batch)
    for name in ("local", "global"):
        for j in reversed(range(K + 1)):
            slow_pull(expected, method.selection.positives, output[name].flatten(1), j)
    method.after_step(output, batch)
    torch.testing.assert_close(method.banks["mixture"].rows, expected)


@pytest.mark.parametrize("epoch", [9, 0])
def test_the_frozen_gradient_is_that_of_the_written_loss(output: dict[str, Tensor], epoch: int) -> None:
    method, batch = filled(build(lambda_p=0.3, lambda_t=0.4, warmup=1)), batch_of(epoch=epoch)
    found = gradients(method, output, batch)
    bank, chosen = method.banks["mixture"].rows, method.selection
    weights = [0.4] + [1.75 * 0.6 / K] * K if epoch else [0.4]
    leaves = {name: value.clone().requires_grad_() for name, value in output.items()}
    slow = torch.zeros((), dtype=torch.float64)
    for name, share in (("local", 0.3), ("global", 0.7)):
        for i in range(BATCH):
            terms = slow_terms(leaves[name][i].flatten(), bank, chosen.rows[i].tolist(), len(weights))
            slow = slow + share / BATCH * sum(w * term for w, term in zip(weights, terms, strict=True))
    slow.backward()
    method = filled(build(lambda_p=0.3, lambda_t=0.4, warmup=1))  # a fresh generator for the warm-up's draw
    torch.testing.assert_close(total(method.loss(output, batch)), slow.detach())
    for name, leaf in leaves.items():
        torch.testing.assert_close(found[name], leaf.grad)


@pytest.mark.parametrize("mixture", [("local", "global"), ("global",)])
def test_the_released_gradient_reads_the_mixture_as_the_terms_before_it_left_it(
    output: dict[str, Tensor], mixture: tuple[str, ...]
) -> None:
    method = filled(build(memory_mode="released", mixture=mixture, lambda_p=0.3))
    frozen = filled(build(mixture=mixture, lambda_p=0.3))
    method.banks["global"].rows[:] = frozen.banks["global"].rows[:] = method.banks["global"].rows[0]
    batch = batch_of()
    found, other = gradients(method, output, batch), gradients(frozen, output, batch)
    start, chosen = method.banks["mixture"].rows.clone(), method.selection
    weights, live = term_weights(K, 0.5, 1.75), start.clone()
    for name, share in (("local", 0.3), ("global", 0.7)):
        z = output[name].flatten(1)
        expected = torch.zeros_like(z)
        for j in reversed(range(K + 1)):
            for i in range(BATCH):
                rows = chosen.rows[i].tolist()
                scores = torch.stack([torch.exp(10 * z[i] @ start[k]) for k in rows])
                for k, p in zip(rows, scores / scores.sum(), strict=True):
                    residual = p - 1 if k == chosen.positives[i, j] else p
                    expected[i] += share * 10 * weights[j] / BATCH * residual * live[k]
            if name in mixture:
                slow_pull(live, chosen.positives, z, j)
        torch.testing.assert_close(found[name].flatten(1), expected)
        if name in mixture:
            assert not torch.allclose(found[name], other[name], rtol=1e-2)
    assert torch.equal(method.banks["mixture"].rows, start), "autograd changes no bank"
    assert torch.equal(total(method.loss(output, batch)), total(frozen.loss(output, batch)))
    method.after_step(output, batch)
    torch.testing.assert_close(method.banks["mixture"].rows, live)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_selection_loss_released_gradient_and_banks_match_the_official_code(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "DTYPE", dtype)
    result = compare_file(GOLDEN)
    assert result.status == "pass", result


def test_a_switch_keeps_one_kind_of_feature_out_of_the_mixture(output: dict[str, Tensor]) -> None:
    for kept, ignored in (("local", "global"), ("global", "local")):
        method, batch = filled(build(mixture=(kept,))), batch_of()
        expected = method.banks["mixture"].rows.clone()
        method.loss(output, batch)
        pull_positives(expected, method.selection.positives, output[kept].flatten(1), 0.5)
        method.after_step({kept: output[kept], ignored: torch.full_like(output[ignored], 0.5)}, batch)
        assert torch.equal(method.banks["mixture"].rows, expected)


# Properties 8 and 9: the start of a run.


def test_an_empty_mixture_gives_the_log_of_the_list_s_length_and_no_gradient(output: dict[str, Tensor]) -> None:
    method, batch = filled(build(lambda_p=0.3)), batch_of()
    method.banks["mixture"].rows.zero_()
    expected = math.log(K + 1 + NEGATIVES) * sum(term_weights(K, 0.5, 1.75))
    assert float(total(method.loss(output, batch))) == pytest.approx(expected)
    for gradient in gradients(method, output, batch).values():
        assert not gradient.any()


def test_in_the_warm_up_the_anchor_is_the_only_positive_and_never_its_own_negative(output: dict[str, Tensor]) -> None:
    method = filled(build(warmup=3))
    for epoch, positives in ((0, 1), (2, 1), (3, K + 1)):
        batch = batch_of(epoch=epoch)
        method.loss(output, batch)
        assert method.selection.positives.shape == (BATCH, positives)
        assert torch.equal(method.selection.positives[:, 0], batch.indices)
        assert method.selection.rows.shape == (BATCH, 1 + K + NEGATIVES)
        for row in method.selection.rows.tolist():
            assert len(set(row)) == len(row)
    method.loss(output, batch_of(epoch=0))
    before = method.banks["mixture"].rows.clone()
    method.after_step(output, batch_of(epoch=0))
    changed = (before != method.banks["mixture"].rows).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(batch_of().indices.tolist())


def test_the_warm_up_of_a_shortened_run_takes_the_same_share_of_its_steps(tmp_path: Path, one_thread: None) -> None:
    small = ["sampler.identities=8", "sampler.instances=1", f"settings.stripes={STRIPES}"]
    config = resolve_run("selective_contrastive", "rendered", "controlled", assignments=small).config
    assert (config.schedule.epochs, config.schedule.iterations) == (10, 30)
    method, alone = build(config=config), ProcessGroup(0, 1, torch.device("cpu"))
    pixels = torch.randint(256, (IMAGES, 3, 16, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageStore(pixels, alone.device)
    data = TrainingData(images, method.needs(config), alone, cameras=np.arange(IMAGES) % 3)
    widths, update = [], method.after_step

    def after_step(output: dict[str, Tensor], batch: Batch) -> None:
        widths.append(method.selection.positives.shape[1])
        update(output, batch)

    method.after_step = after_step  # type: ignore[method-assign]
    progress = Trainer(method, data, config, Streams(0), Checkpoint(tmp_path, {}), alone).fit()
    assert progress.failure is None
    assert widths == [1] * 18 + [8] * 282, "3 of 50 epochs are 18 of 300 steps"


def test_warm_up_negatives_are_uniform_over_the_others_and_come_from_the_epoch_s_generator() -> None:
    anchors = torch.zeros(4000, dtype=torch.int64)
    first, again = (select_at_random(anchors, 11, 3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.negatives, again.negatives)
    share = torch.bincount(first.negatives.flatten(), minlength=11) / len(anchors)
    assert share[0] == 0
    torch.testing.assert_close(share[1:], torch.full((10,), 0.3), rtol=0, atol=0.04)
