"""What the checks share: arrays of a golden file as tensors, and a method driven by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data import Batch
from core.method import Method

# Losses and memories: in float64 only the rounding of the golden file is left of the error.
DTYPE = torch.float64

Arrays = Mapping[str, np.ndarray]
Comparison = tuple[str, np.ndarray, np.ndarray]


def built(method: type[Method], settings: object) -> Method:
    """A method with its own settings and the identity for a network: its features are given."""
    return method(SimpleNamespace(settings=settings), nn.Identity(), capacity=1)


def tensor(array: np.ndarray) -> Tensor:
    """In the precision of the comparison."""
    return torch.from_numpy(array).to(DTYPE)


def trained(data: Arrays, method: Method, bank: Callable[[], Tensor]) -> Iterator[Comparison]:
    """Loss, gradient on the inputs and memory after the update, for the file's batches in turn."""
    steps = sum(name.startswith("inputs_") for name in data)
    for step in range(max(steps, 1)):
        inputs = tensor(data[f"inputs_{step}"]).requires_grad_()
        features = F.normalize(inputs, dim=1) if data["normalises_inputs"] else inputs
        targets = torch.from_numpy(data[f"targets_{step}"])
        batch = Batch(
            images=[],
            indices=torch.as_tensor(data.get(f"indices_{step}", np.arange(len(inputs)))),
            targets=targets,
            cameras=None,
            extra={"class": targets},
            epoch=0,
        )
        terms = method.loss({"feature": features}, batch)
        loss = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(loss, inputs)
        method.after_step({"feature": features.detach()}, batch)
        yield f"loss_{step}", loss.detach().numpy(), data[f"loss_{step}"]
        yield f"grad_{step}", gradient.numpy(), data[f"grad_{step}"]
        yield f"memory_{step + 1}", bank().numpy().copy(), data[f"memory_{step + 1}"]


def network_of(dim: int) -> nn.Module:
    """Stands in for an embedder whose features are given."""
    network = nn.Identity()
    network.dim, network.bnneck = dim, nn.Identity()
    return network
