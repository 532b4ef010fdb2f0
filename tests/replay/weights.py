"""Initial weights of a method without any library's initialiser: each tensor is a function of its name."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from core.backbones.batchnorm import set_bn_groups
from core.method import Method
from tests.replay.draws import integers, uniform


@torch.no_grad()
def fill(method: Method, images: Tensor, cameras: Tensor, seed: int) -> None:
    """Overwrite every parameter and buffer, in float64, and let batch norms know the statistics of ``images``.

    Layers that start at zero are filled like all others: they take part from the first step.
    """
    method.double()
    trained = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
    for name, tensor in method.state_dict().items():
        tensor.copy_(torch.from_numpy(initial(name, tensor, seed, fixed=name not in trained)))
    measure_statistics(method, images, cameras)
    method.weights_loaded()


def initial(name: str, tensor: Tensor, seed: int, fixed: bool) -> np.ndarray:
    """Values of one tensor: matrices by fan-in, as He's rule has it; scales around 1, offsets around 0."""
    shape = tuple(tensor.shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if not tensor.is_floating_point():
        return integers(f"buffer/{name}", shape or (1,), 0, 2**40, seed).reshape(shape)
    if name.endswith("running_mean"):
        return np.zeros(shape)
    if name.endswith("running_var"):
        return np.ones(shape)
    values = uniform(f"weight/{name}", shape, seed)
    if len(shape) > 1:
        return values * math.sqrt(6 / (tensor.numel() // shape[0]))
    if name.endswith(".weight"):
        return 1 + values / 4
    if name.endswith("pooling.p"):
        return 3 + values / 4
    return np.zeros(shape) if fixed else values / 4


def measure_statistics(method: Method, images: Tensor, cameras: Tensor) -> None:
    """Running statistics of the embedder's batch norms become those of ``images``, as a trained network's would."""
    method.eval()
    groups = method.config.backbone.bn_groups
    set_bn_groups(method.embedder, 1)
    norms = [module for module in method.embedder.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    embeds_cameras = getattr(method.embedder.backbone, "sie_embed", None) is not None
    method.embedder(images, cameras if embeds_cameras else None)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if isinstance(norm.num_batches_tracked, Tensor):
            norm.num_batches_tracked.zero_()
    set_bn_groups(method.embedder, groups)
