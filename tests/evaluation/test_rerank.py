"""Re-ranking against golden values and the literal dense oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.rerank import Reranked, rerank
from tests import reference_jaccard as reference

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("rerank*.npz"))


def queries_and_gallery(q: int, g: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of varied length (not normalised), a few images to each person."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, (q + g) // 6), d, generator=generator)
    person = torch.randint(len(centres), (q + g,), generator=generator)
    features = centres[person] + 0.5 * torch.randn(q + g, d, generator=generator)
    return features[:q], features[q:]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_distances_are_met(path):
    golden = np.load(path)
    distance = rerank(
        torch.from_numpy(golden["query"]),
        torch.from_numpy(golden["gallery"]),
        int(golden["k1"]),
        int(golden["k2"]),
        float(golden["lambda_value"]),
    )
    np.testing.assert_allclose(distance, golden["distance"], rtol=1e-4, atol=1e-6)


def test_there_is_a_golden_file():
    assert GOLDEN


@pytest.mark.parametrize(
    ("q", "g", "d", "k1", "k2", "lambda_value"),
    [
        (10, 50, 16, 20, 6, 0.3),
        (15, 40, 4, 7, 3, 0.3),
        (5, 60, 8, 9, 1, 0.1),
        (4, 12, 8, 20, 6, 0.3),  # Q + G < k1
        (9, 40, 8, 3, 8, 0.3),  # k2 beyond the reciprocal lists
        (1, 1, 8, 2, 1, 0.5),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_distances_equal_the_literal_definition(q, g, d, k1, k2, lambda_value, seed):
    query, gallery = queries_and_gallery(q, g, d, seed)
    distance = rerank(query, gallery, k1, k2, lambda_value)
    assert distance.shape == (q, g)
    assert distance.dtype == torch.float32
    expected = reference.rerank(query.numpy(), gallery.numpy(), k1, k2, lambda_value)
    np.testing.assert_allclose(distance, expected, rtol=1e-4, atol=2e-6)


def test_blocks_put_together_are_the_whole():
    query, gallery = queries_and_gallery(23, 70, 8, seed=2)
    whole = rerank(query, gallery)
    reranked = Reranked(query, gallery)
    blocks = torch.cat([reranked.block(slice(start, start + 5)) for start in range(0, 23, 5)])
    torch.testing.assert_close(blocks, whole, rtol=1e-6, atol=1e-7)


def test_full_weight_on_the_original_distance_leaves_its_order():
    query, gallery = queries_and_gallery(8, 40, 8, seed=3)
    order = rerank(query, gallery, lambda_value=1.0).argsort(dim=1)
    torch.testing.assert_close(order, torch.cdist(query, gallery).argsort(dim=1))


def test_identical_features_give_finite_distances():
    distance = rerank(torch.ones(3, 4), torch.ones(20, 4), k1=5, k2=2)
    assert torch.isfinite(distance).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_distances_on_cuda_equal_those_on_the_cpu():
    query, gallery = queries_and_gallery(20, 80, 16, seed=4)
    on_device = rerank(query.cuda(), gallery.cuda())
    assert on_device.is_cuda
    torch.testing.assert_close(on_device.cpu(), rerank(query, gallery), rtol=1e-4, atol=2e-6)
