import pytest
import torch

from core.backbones.pooling import POOLINGS, AveragePooling, GeM


def feature_map(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(seed)).double()


def test_average_pooling_is_the_mean_over_positions():
    values = feature_map()
    wanted = [[values[b, c].sum() / 10 for c in range(4)] for b in range(3)]
    torch.testing.assert_close(AveragePooling()(values), torch.tensor(wanted).double())


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_gem_is_the_root_of_the_mean_of_powers_of_clamped_values(p):
    values = feature_map()
    wanted = torch.zeros(3, 4).double()
    for b in range(3):
        for c in range(4):
            powers = [max(float(v), 1e-6) ** p for v in values[b, c].flatten()]
            wanted[b, c] = (sum(powers) / len(powers)) ** (1 / p)
    torch.testing.assert_close(GeM(p).double()(values), wanted)


def test_gem_learns_its_exponent_from_three():
    pooling = GeM()
    assert pooling.p.item() == 3
    pooling(feature_map().float()).sum().backward()
    assert pooling.p.grad.abs().item() > 0


def test_gem_stays_finite_on_a_dead_channel():
    values = torch.zeros(2, 3, 4, 4, requires_grad=True)
    pooled = GeM()(values)
    pooled.sum().backward()
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize("name", sorted(POOLINGS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_pooling_is_computed_in_float32_at_least(name, dtype):
    # 4096 equal values: their running sum in half precision stalls long before the end.
    values = torch.full((1, 2, 64, 64), 0.75, dtype=dtype)
    pooled = POOLINGS[name]()(values)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.full((1, 2), 0.75), rtol=1e-5, atol=0)
