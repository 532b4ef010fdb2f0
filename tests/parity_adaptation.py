"""Checks of golden files of the systems that adapt to a domain or merge clusters, for tests/parity.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from core.data import Batch
from methods.ppan.alignment import coral, gaussian_kernels, identity_weights, local_mmd, unbiased_mmd
from methods.sal.method import SAL
from methods.sal.method import Settings as SALSettings

Arrays = Mapping[str, np.ndarray]
Comparison = tuple[str, np.ndarray, np.ndarray]


def mar(data: Arrays) -> Iterator[Comparison]:
    """SAL with the four losses that are MAR's, each with its gradients, and what it remembers of the target."""
    settings = SALSettings(
        scale=float(data["scale"]),
        reference_weight=1.0,
        margin=float(data["margin"]),
        consistency_weight=1.0,
        mining_share=float(data["mining_ratio"]),
        pairs_from=0,
        bridge_weight=0.0,
        camera_weight=1.0,
        camera_rate=int(data["batch_size"]) / 10_000,
    )
    agents = _tensor(data["agents"])
    method = SAL(SimpleNamespace(settings=settings), _network(agents.shape[1]), 1, len(agents))
    method.agents = nn.Parameter(agents)
    method.begin(_tensor(data["initial_features"]), data["initial_cameras"])
    for step in range(sum(name.startswith("source_labels_") for name in data)):
        assert method.target is not None
        for name, value in zip(("center_mean", "center_std"), method.target.centres, strict=True):
            yield f"{name}_{step}", value.numpy(), data[f"{name}_{step}"]
        yield f"threshold_{step}", method.target.threshold.numpy(), data[f"threshold_{step}"]
        yield from _mar_step(data, step, method)


def _mar_step(data: Arrays, step: int, method: SAL) -> Iterator[Comparison]:
    source, target = (_tensor(data[f"{name}_{step}"]).requires_grad_() for name in ("source", "target"))
    indices, cameras, labels = (
        torch.from_numpy(data[f"{name}_{step}"]) for name in ("indices", "cameras", "source_labels")
    )
    beside = Batch([], torch.arange(len(labels)), labels, None, {}, 0)
    batch = Batch([], indices, indices, cameras, {}, 0, source=beside)
    output = {"source_feature": source, "source_logits": method.source_logits(source), "feature_0": target}
    terms = method.loss(output, batch)
    method.after_step({}, batch)
    for name, golden in {"source": "sup", "reference": "rj", "consistency": "con", "camera": "cml"}.items():
        yield f"loss_{golden}_{step}", terms[name].detach().numpy(), data[f"loss_{golden}_{step}"]
        asked = [("source", source), ("target", target)]
        for side, features in [pair for pair in asked if f"grad_{golden}_{pair[0]}_{step}" in data]:
            (gradient,) = torch.autograd.grad(terms[name], features, retain_graph=True)
            yield f"grad_{golden}_{side}_{step}", gradient.numpy(), data[f"grad_{golden}_{side}_{step}"]
    assert method.target is not None
    yield f"multilabels_{step}", method.target.labels.rows[indices].numpy(), data[f"multilabels_{step}"]


def alignment(data: Arrays) -> Iterator[Comparison]:
    """DAN's MK-MMD, CORAL and DSAN's LMMD with their gradients on both domains, and PADA's class weights."""
    source, target = (_tensor(data[name]).requires_grad_() for name in ("source", "target"))
    labels, probabilities = torch.from_numpy(data["source_labels"]), _tensor(data["target_probabilities"])
    equal = torch.ones(int(data["classes"]), dtype=torch.float64)
    losses = {
        "mkmmd": unbiased_mmd(gaussian_kernels(source, target, with_diagonal=True)),
        "coral": coral(source, target),
        "lmmd": local_mmd(gaussian_kernels(source, target), labels, probabilities, equal, "dsan"),
    }
    for name, loss in losses.items():
        yield f"loss_{name}", loss.detach().numpy(), data[f"loss_{name}"]
        for side, gradient in zip(("source", "target"), torch.autograd.grad(loss, (source, target)), strict=True):
            yield f"grad_{name}_{side}", gradient.numpy(), data[f"grad_{name}_{side}"]
    weights = identity_weights(_tensor(data["target_logits"]), float(data["temperature"]))
    yield "class_weight", weights.numpy(), data["class_weight"]


KINDS: dict[str, Callable[[Arrays], Iterator[Comparison]]] = {"alignment": alignment, "mar_losses": mar}


def _network(dim: int) -> nn.Module:
    """Stands in for an embedder whose features are given."""
    network = nn.Identity()
    network.dim = dim
    return network


def _tensor(array: np.ndarray) -> Tensor:
    """In float64, as the official code ran."""
    return torch.from_numpy(array).double()
