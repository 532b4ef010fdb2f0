import copy

import pytest
import torch
from torch import nn

from core.backbones.batchnorm import (
    GroupedBatchNorm1d,
    GroupedBatchNorm2d,
    chunk_sizes,
    domain,
    per_domain,
    set_bn_groups,
)

CHANNELS = 5
STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def make(kind: str, seed: int = 0) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A grouped and a plain layer with equal random weights, and a batch of 12."""
    generator = torch.Generator().manual_seed(seed)
    grouped_class, plain_class, tail = {
        "1d": (GroupedBatchNorm1d, nn.BatchNorm1d, ()),
        "2d": (GroupedBatchNorm2d, nn.BatchNorm2d, (4, 3)),
    }[kind]
    grouped, plain = grouped_class(CHANNELS).double(), plain_class(CHANNELS).double()
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = torch.rand(CHANNELS, generator=generator).double() + 0.5
        getattr(grouped, name).data.copy_(values)
        getattr(plain, name).data.copy_(values)
    batch = torch.randn(12, CHANNELS, *tail, generator=generator).double()
    return grouped, plain, batch


def separate(plain: nn.Module, batch: torch.Tensor, groups: int) -> tuple[torch.Tensor, nn.Module]:
    """DataParallel, literally: a replica per chunk; the first replica's buffers are kept."""
    replicas = [copy.deepcopy(plain) for _ in batch.chunk(groups)]
    for replica in replicas:
        replica.weight, replica.bias = plain.weight, plain.bias
    chunks = batch.chunk(groups)
    outputs = [replica(chunk) for replica, chunk in zip(replicas, chunks, strict=True)]
    return torch.cat(outputs), replicas[0]


def gradients(layer: nn.Module, batch: torch.Tensor, output: torch.Tensor) -> list[torch.Tensor]:
    upstream = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output).sin()
    return list(torch.autograd.grad(output, [batch, layer.weight, layer.bias], upstream))


@pytest.mark.parametrize("kind", ["1d", "2d"])
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5])
def test_output_gradients_and_statistics_equal_those_of_separate_replicas(kind, groups):
    grouped, plain, batch = make(kind)
    grouped.groups = groups
    batch.requires_grad_()
    output, (wanted, first) = grouped(batch), separate(plain, batch, groups)
    torch.testing.assert_close(output, wanted, rtol=0, atol=0)
    mine, theirs = gradients(grouped, batch, output), gradients(plain, batch, wanted)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(grouped, name), getattr(first, name)), name


@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_one_group_is_torchs_batch_norm_bit_for_bit(kind):
    grouped, plain, batch = make(kind)
    for _ in range(3):
        assert torch.equal(grouped(batch), plain(batch))
    for name, value in plain.state_dict().items():
        assert torch.equal(grouped.state_dict()[name], value)


@pytest.mark.parametrize("kind", ["1d", "2d"])
def test_eval_mode_uses_running_statistics_whatever_the_groups(kind):
    grouped, plain, batch = make(kind)
    grouped.groups = 4
    before = copy.deepcopy(grouped.state_dict())
    assert torch.equal(grouped.eval()(batch), plain.eval()(batch))
    for name, value in before.items():
        assert torch.equal(grouped.state_dict()[name], value)


def test_running_statistics_ignore_all_chunks_but_the_first():
    grouped, _, batch = make("2d")
    other = copy.deepcopy(grouped)
    grouped.groups = other.groups = 3
    changed = batch.clone()
    changed[4:] += 100
    grouped(batch), other(changed)
    assert torch.equal(grouped.running_mean, other.running_mean)
    assert torch.equal(grouped.running_var, other.running_var)


def test_batch_smaller_than_groups_gives_one_chunk_per_sample():
    grouped, plain, batch = make("2d")
    grouped.groups = 8
    torch.testing.assert_close(grouped(batch[:3]), separate(plain, batch[:3], 3)[0])


@pytest.mark.parametrize(("count", "groups"), [(3, 3), (3, 8), (5, 4), (1, 2)])
def test_chunk_of_one_sample_without_pixels_is_an_error_that_tells_the_remedy(count, groups):
    grouped, _, batch = make("1d")
    grouped.groups = groups
    with pytest.raises(ValueError, match=f"batch of {count} .*divisible by bn_groups"):
        grouped(batch[:count])


def test_channels_last_stays_channels_last():
    grouped, plain, batch = make("2d")
    grouped.groups = 3
    output = grouped(batch.contiguous(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, separate(plain, batch, 3)[0])


def test_groups_are_set_in_every_layer_and_survive_no_state_dict():
    network = nn.Sequential(GroupedBatchNorm2d(3), nn.Sequential(GroupedBatchNorm1d(3)))
    keys = set(network.state_dict())
    set_bn_groups(network, 4)
    assert network[0].groups == network[1][0].groups == 4
    assert set(network.state_dict()) == keys


def test_plain_batch_norm_cannot_be_grouped_silently():
    network = nn.Sequential(GroupedBatchNorm2d(3), nn.BatchNorm2d(3))
    set_bn_groups(network, 1)
    with pytest.raises(ValueError, match="'1' is a BatchNorm2d"):
        set_bn_groups(network, 2)
    with pytest.raises(ValueError, match="at least 1"):
        set_bn_groups(network, 0)


@pytest.mark.parametrize("batch", range(1, 20))
@pytest.mark.parametrize("groups", [1, 2, 4, 7])
def test_chunk_sizes_are_those_of_torch_chunk(batch, groups):
    assert chunk_sizes(batch, groups) == [len(c) for c in torch.zeros(batch, 2).chunk(groups)]


def test_each_domain_has_a_batch_norm_of_its_own_that_starts_as_the_targets():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Sequential(GroupedBatchNorm1d(3)))
    network(torch.randn(8, 4))
    plain = copy.deepcopy(network)
    per_domain(network)
    set_bn_groups(network, 2)
    set_bn_groups(plain, 2)
    batch, other = torch.randn(8, 4), torch.randn(8, 4) + 5
    with domain(network, "source"):
        torch.testing.assert_close(network(other), copy.deepcopy(plain)(other))
    torch.testing.assert_close(network(batch), plain(batch))
    torch.testing.assert_close(network.eval()(batch), plain.eval()(batch))
    with domain(network, "source"):
        assert not torch.allclose(network(batch), plain(batch)), "the source's statistics are apart"
    per_domain(network)
    with domain(network, "source"):
        torch.testing.assert_close(network(batch), plain(batch))


def test_gradients_of_a_domain_reach_its_batch_norm_alone_and_an_error_leaves_the_target_active():
    network = nn.Sequential(GroupedBatchNorm1d(3))
    per_domain(network)

    def fails() -> None:
        with domain(network, "source"):
            (network(torch.randn(4, 3)) ** 3).sum().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert network[0].source.weight.grad is not None
    assert network[0].target.weight.grad is None
    assert network[0].active == "target"
    assert set(network.state_dict()) == {f"0.{name}.{key}" for name in ("target", "source") for key in STATE}
