"""JCL's WaveBlock attention (docs/methods/jcl.md): bands, attention, their place in the network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from core.backbones.batchnorm import GroupedBatchNorm2d
from core.backbones.net import BACKBONES, Embedder, seeded_init
from core.backbones.pooling import POOLINGS
from core.backbones.resnet import STAGES, ResNet
from core.data import Labels
from core.distributed import ProcessGroup
from methods.jcl.attention import NonLocal, ResidualCbam, Wam, WaveAttention, WaveBlock, wave_attention
from tests.methods.draws import unit
from tests.methods.jcl_small import DIM, NO_WAM, Data, batch_of, filled, jcl, seeded


def maps(generator: torch.Generator, batch: int = 6, channels: int = 32, height: int = 16, width: int = 4) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=generator)


def small(seed: int = 0) -> Embedder:
    """A ResNet of 8 to 64 channels with one block per stage."""
    with seeded_init(seeded(seed)):
        backbone = ResNet(BasicBlock, (1, 1, 1, 1), width=8)
        return Embedder(backbone, POOLINGS["avg"](), backbone.dim)


def warm(seed: int = 0) -> Embedder:
    """A network with batch-norm statistics of its own, as after a warm start."""
    embedder = small(seed)
    embedder(images())
    return embedder


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 64, 32, generator=seeded(7))


# WaveBlock


def bands(block: WaveBlock, features: Tensor) -> Tensor:
    """(B, H) ratio of output to input, after checking that it is the same in all channels and columns."""
    ratio = block(features) / features
    torch.testing.assert_close(ratio, ratio[:, :1, :, :1].expand_as(ratio))
    return ratio[:, 0, :, 0]


def starts_of(ratios: Tensor) -> list[int]:
    return [int(torch.isclose(row, torch.ones(())).nonzero()[0]) for row in ratios]


def test_waveblock_in_eval_mode_returns_its_input_and_draws_nothing(generator) -> None:
    features = maps(generator)
    state = torch.get_rng_state()
    assert torch.equal(WaveBlock(0.3, 1.5).eval()(features), features)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("height", "band"), [(32, 10), (16, 5), (8, 2), (4, 1)])
def test_waveblock_keeps_one_band_for_all_samples_and_multiplies_the_other_rows(generator, height, band) -> None:
    features = maps(generator, height=height)
    output = WaveBlock(0.3, 1.5)(features)
    kept = [row for row in range(height) if torch.equal(output[:, :, row], features[:, :, row])]
    assert kept == list(range(kept[0], kept[0] + band))
    for row in set(range(height)) - set(kept):
        assert torch.equal(output[:, :, row], 1.5 * features[:, :, row])


def test_waveblock_with_wave_1_is_the_identity(generator) -> None:
    features = maps(generator)
    assert torch.equal(WaveBlock(0.3, 1.0)(features), features)


def test_the_band_lies_inside_the_map_and_reaches_both_ends(generator) -> None:
    block, features = WaveBlock(0.3, 1.5), maps(generator, batch=1, channels=1, width=1)
    block.draw_from(generator, 1, slice(0, 1))
    seen = {starts_of(bands(block, features))[0] for _ in range(300)}
    assert seen == set(range(16 - 5 + 1))


def test_the_gradient_of_waveblock_is_its_mask(generator) -> None:
    features = maps(generator).requires_grad_()
    output = WaveBlock(0.3, 1.5)(features)
    output.sum().backward()
    torch.testing.assert_close(features.grad, (output / features).detach())


def test_every_batch_norm_group_draws_a_band_of_its_own(generator) -> None:
    block, features = WaveBlock(0.3, 1.5), maps(generator, batch=10, channels=1, width=1)
    block.draw_from(generator, 4, slice(0, 4))
    drawn = [starts_of(bands(block, features)) for _ in range(20)]
    for starts in drawn:  # torch.chunk cuts 10 samples into 3 + 3 + 3 + 1
        assert [len(set(chunk)) for chunk in (starts[:3], starts[3:6], starts[6:9])] == [1, 1, 1]
    assert any(len({starts[0], starts[3], starts[6], starts[9]}) > 2 for starts in drawn)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_bands_do_not_depend_on_the_number_of_processes(generator, size: int) -> None:
    wam, labels, features = Wam(attention="none"), torch.arange(8) % 4, unit(generator, 8, DIM)
    steps = [(stage, maps(generator, batch=8)) for _ in range(5) for stage in wam.stages]
    whole = filled(jcl(small(), bn_groups=4, wam=wam), features, labels)
    shares = [filled(jcl(small(), bn_groups=4, wam=wam), features, labels, rank=r, size=size) for r in range(size)]
    for stage, full in steps:
        parts = [
            method.wam[stage](full[ProcessGroup(r, size, torch.device("cpu")).part(8)])
            for r, method in enumerate(shares)
        ]
        assert torch.equal(torch.cat(parts), whole.wam[stage](full))


def test_bands_follow_the_epochs_generator_and_leave_the_global_stream_alone() -> None:
    method, labels = jcl(warm()), torch.arange(8) % 4
    weights = {name: value.clone() for name, value in method.state_dict().items()}
    batch, outputs = batch_of(labels, pixels=images()), []
    for seed in (0, 0, 1):
        method.load_state_dict(weights)  # the statistics of batch norm have moved
        method.start_epoch(Labels(labels.numpy()), Data(unit(seeded(5), 8, DIM)), seeded(seed))
        torch.manual_seed(len(outputs))
        state = torch.get_rng_state()
        outputs.append([method(batch)["feature"] for _ in range(3)])
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[2], strict=True))


# Attention


def test_a_non_local_block_starts_as_the_identity(generator) -> None:
    features, block = maps(generator), NonLocal(32)
    assert torch.equal(block(features), features)
    assert torch.equal(block.eval()(features), features)


def awake(block: NonLocal) -> NonLocal:
    nn.init.normal_(block.norm.weight, generator=seeded(8))
    nn.init.normal_(block.norm.bias, generator=seeded(9))
    return block


def test_the_non_local_block_equals_its_double_sum(generator) -> None:
    block, features = awake(NonLocal(8)).double(), maps(generator, 3, 8, 4, 2).double()
    theta, phi, g = (conv(features).flatten(2) for conv in (block.theta, block.phi, block.g))
    context = torch.zeros_like(g)
    for b in range(3):
        for i in range(8):
            for j in range(8):
                context[b, :, i] += theta[b, :, i].dot(phi[b, :, j]) * g[b, :, j] / 8
    expected = features + block.norm(block.expand(context.view(3, 4, 4, 2)))
    torch.testing.assert_close(block(features), expected)


def test_cbam_equals_its_two_gates_written_out(generator) -> None:
    block, features = ResidualCbam(32).double().eval(), maps(generator, 2).double()
    expected = torch.empty_like(features)
    for b, image in enumerate(features):
        average, largest = image.flatten(1).mean(1), image.flatten(1).max(1).values
        gated = image * torch.sigmoid(block.channel(average) + block.channel(largest))[:, None, None]
        summary = torch.stack([gated.max(0).values, gated.mean(0)])
        position = torch.sigmoid(block.spatial(summary[None]))[0]
        expected[b] = image + gated * position
    torch.testing.assert_close(block(features), expected)
    assert block.channel[0].out_features == 2
    assert block.spatial[1].momentum == 0.01


def test_pre_attention_with_a_zeroed_cbam_is_the_identity_before_waveblock(generator) -> None:
    module, features = WaveAttention(32, Wam(order="pre", attention="cbam")), maps(generator)
    assert isinstance(module.attention, ResidualCbam)
    nn.init.constant_(module.attention.channel[2].bias, -1e9)  # a channel gate of exactly 0
    assert torch.equal(module.attention(features), features)
    module.wave.draw_from(seeded(4), 1, slice(0, 1))
    through = module(features)
    module.wave.draw_from(seeded(4), 1, slice(0, 1))
    assert torch.equal(through, module.wave(features))


@pytest.mark.parametrize("order", ["pre", "post"])
def test_order_says_whether_attention_comes_before_or_after_waveblock(generator, order: str) -> None:
    module, features = WaveAttention(32, Wam(order=order)), maps(generator)
    awake(module.attention)
    module.wave.draw_from(seeded(4), 1, slice(0, 1))
    through = module(features)
    module.wave.draw_from(seeded(4), 1, slice(0, 1))
    steps = [module.attention, module.wave] if order == "pre" else [module.wave, module.attention]
    torch.testing.assert_close(through, steps[1](steps[0](features)))


def test_the_start_is_the_warm_start_exactly_in_eval_mode() -> None:
    embedder = warm()
    method = jcl(embedder).eval()
    assert torch.equal(method.embed(images())["feature"], embedder.eval()(images())["feature"])


def test_embedding_passes_through_the_attention_but_not_through_waveblock() -> None:
    method = jcl(warm()).eval()
    start = method.embed(images())["feature"]
    for module in method.wam.values():
        awake(module.attention)
    assert not torch.allclose(method.embed(images())["feature"], start)
    without_wave = jcl(warm(), wam=Wam(wave=1.0)).eval()
    without_wave.load_state_dict(method.state_dict())
    assert torch.equal(method.embed(images())["feature"], without_wave.embed(images())["feature"])


def test_training_passes_waveblock_after_layer2_and_layer3() -> None:
    method, embedder = jcl(small(), wam=Wam(attention="none")), small()
    labels = torch.arange(8) % 4
    filled(method, unit(seeded(5), 8, DIM), labels)
    feature = method(batch_of(labels, pixels=images()))["feature"]
    draws, net = seeded(0), embedder.backbone
    features = net.maxpool(net.relu(net.bn1(net.conv1(images()))))
    for name in STAGES:
        features = getattr(net, name)(features)
        if name in ("layer2", "layer3"):
            height = features.shape[2]
            band = round(0.3 * height)
            start = int(torch.randint(height - band + 1, (1,), generator=draws))
            mask = torch.full((height, 1), 1.5)
            mask[start : start + band] = 1
            features = features * mask
    expected = F.normalize(embedder.neck(embedder.pool(features)), dim=1)
    torch.testing.assert_close(feature, expected)


def test_without_the_module_the_network_is_the_embedder_and_has_no_further_parameters() -> None:
    method, labels = jcl(small(), wam=NO_WAM), torch.arange(8) % 4
    assert torch.equal(method(batch_of(labels, pixels=images()))["feature"], small()(images())["feature"])
    assert all(name.startswith("embedder.") for name, _ in method.named_parameters())


@pytest.mark.parametrize("attention", ["nonlocal", "cbam"])
def test_attention_parameters_are_trained_with_the_others_and_normalised_in_their_groups(attention: str) -> None:
    method, labels = jcl(small(), bn_groups=2, wam=Wam(attention=attention)), torch.arange(8) % 4
    own = {id(p) for name, p in method.named_parameters() if name.startswith("wam.")}
    assert own
    (group,) = method.param_groups()
    assert own <= {id(p) for p in group["params"]}
    assert {m.groups for m in method.wam.modules() if isinstance(m, GroupedBatchNorm2d)} == {2}
    filled(method, unit(seeded(5), 8, method.embedder.dim), labels)
    terms = method.loss(method(batch_of(labels, pixels=images())), batch_of(labels))
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in group["params"])


@pytest.mark.parametrize(("name", "channels"), [("resnet50", (512, 1024)), ("resnet18_half", (64, 128))])
def test_modules_have_the_channels_of_their_stages(name: str, channels: tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
        modules = wave_attention(Embedder(backbone, nn.Identity(), backbone.dim), Wam())
    assert {stage: module.attention.g.in_channels for stage, module in modules.items()} == dict(
        zip(("layer2", "layer3"), channels, strict=True)
    )


def test_a_network_without_stages_is_refused_with_what_to_do() -> None:
    embedder = small()
    embedder.backbone = nn.Identity()
    with pytest.raises(ValueError, match=r"between the stages of a ResNet.*settings\.wam\.attention=none"):
        jcl(embedder)
    jcl(embedder, wam=NO_WAM)
