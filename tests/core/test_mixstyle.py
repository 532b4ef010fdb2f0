"""MixStyle: docs/methods/styles.md. Equality with the official code: tests/golden/style_norm.npz."""

from __future__ import annotations

import pytest
import torch

from core.mixstyle import MixStyle, mixed_statistics, of_another_camera


def test_a_partner_is_of_another_camera_where_there_is_one_and_any_of_them() -> None:
    torch.manual_seed(0)
    cameras = torch.tensor([0, 0, 1, 2])
    drawn = torch.stack([of_another_camera(cameras) for _ in range(60)])
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[2, 3], [2, 3], [0, 1, 3], [0, 1, 2]]
    assert of_another_camera(torch.ones(3)).tolist() == [0, 1, 2]


def test_with_the_whole_share_of_its_own_an_image_stays_and_with_none_it_has_its_partner_s_statistics() -> None:
    features = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = features * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None] + 5
    partners = torch.tensor([1, 2, 0])
    torch.testing.assert_close(mixed_statistics(features, partners, torch.ones(3)), features)
    other = mixed_statistics(features, partners, torch.zeros(3))
    torch.testing.assert_close(other.mean(dim=(2, 3)), features.mean(dim=(2, 3))[partners])
    torch.testing.assert_close(other.std(dim=(2, 3)), features.std(dim=(2, 3))[partners], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("probability", "training", "mixed"), [(1.0, True, True), (0.0, True, False), (1.0, False, False)]
)
def test_it_mixes_with_its_probability_and_in_training_alone(probability: float, training: bool, mixed: bool) -> None:
    layer = MixStyle(probability).train(training)
    layer.cameras = torch.arange(4)
    features = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    assert torch.equal(layer(features), features) is not mixed
