"""Checks of the systems that adapt to a domain or merge clusters."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from core.data import Batch
from core.losses import smoothed_cross_entropy
from methods.clc.losses import paired_triplet
from methods.fcu.merging import merge
from methods.fcu.method import FCU, Clusters, Patches
from methods.fcu.method import Settings as FCUSettings
from methods.ppan.alignment import coral, gaussian_kernels, identity_weights, local_mmd, unbiased_mmd
from methods.sal.method import SAL
from methods.sal.method import Settings as SALSettings
from tests.parity.arrays import Arrays, Comparison, network_of, tensor


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
    agents = tensor(data["agents"])
    method = SAL(SimpleNamespace(settings=settings), network_of(agents.shape[1]), 1, len(agents))
    method.agents = nn.Parameter(agents)
    method.begin(tensor(data["initial_features"]), data["initial_cameras"])
    for step in range(sum(name.startswith("source_labels_") for name in data)):
        assert method.target is not None
        for name, value in zip(("center_mean", "center_std"), method.target.centres, strict=True):
            yield f"{name}_{step}", value.numpy(), data[f"{name}_{step}"]
        yield f"threshold_{step}", method.target.threshold.numpy(), data[f"threshold_{step}"]
        yield from _mar_step(data, step, method)


def _mar_step(data: Arrays, step: int, method: SAL) -> Iterator[Comparison]:
    source, target = (tensor(data[f"{name}_{step}"]).requires_grad_() for name in ("source", "target"))
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
    source, target = (tensor(data[name]).requires_grad_() for name in ("source", "target"))
    labels, probabilities = torch.from_numpy(data["source_labels"]), tensor(data["target_probabilities"])
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
    weights = identity_weights(tensor(data["target_logits"]), float(data["temperature"]))
    yield "class_weight", weights.numpy(), data["class_weight"]


def repelled(data: Arrays) -> Iterator[Comparison]:
    """FCU as BUC: its loss with the gradient on what dropout left, and V, which starts at zero."""
    settings = FCUSettings(repel_scale=float(data["t"]), attract_weight=0.0, local_weight=0.0)
    rows = tensor(data["memory_0"])
    method = FCU(SimpleNamespace(settings=settings), network_of(rows.shape[1]), 1)
    method.clusters = Clusters(np.arange(len(rows)), rows, rows.clone(), torch.ones(len(rows)))
    for step in range(sum(name.startswith("inputs_") for name in data)):
        inputs = tensor(data[f"inputs_{step}"]).requires_grad_()
        targets = torch.from_numpy(data[f"targets_{step}"])
        batch = Batch([], targets, targets, None, {}, 0)
        loss = method.loss({"dropped": inputs, "global": inputs}, batch)["repelled"]
        (gradient,) = torch.autograd.grad(loss, inputs)
        method.after_step({"dropped": inputs.detach(), "global": inputs.detach()}, batch)
        yield f"loss_{step}", loss.detach().numpy(), data[f"loss_{step}"]
        yield f"grad_{step}", gradient.numpy(), data[f"grad_{step}"]
        yield f"memory_{step + 1}", method.clusters.rows.numpy().copy(), data[f"memory_{step + 1}"]


def merged(data: Arrays) -> Iterator[Comparison]:
    """Labels after every merge, each by features of its own."""
    labels = data["labels_0"]
    for step in range(int(data["steps"])):
        labels = merge(tensor(data[f"features_{step}"]), labels, int(data["merges"]), float(data["size_penalty"]))
        yield f"labels_{step + 1}", labels, data[f"labels_{step + 1}"]


def patches(data: Arrays) -> Iterator[Comparison]:
    """FCU's patch branch as PAUL: both losses with their gradients, patch memory and agents."""
    settings = FCUSettings(
        repel_weight=0.0,
        attract_weight=0.0,
        patch_weight=1.0,
        patch_scale=float(data["scale"]),
        patch_neighbours=int(data["neighbours"]),
        margin=float(data["margin"]),
        candidates=int(data["max_candidates"]),
        nearest=int(data["nearest"]),
        no_negative="released",
        local_momentum=1 - float(data["momentum"]),
    )
    method = FCU(SimpleNamespace(settings=settings), network_of(1), 1)
    memory, width = tensor(data["memory_0"]), data["embedding_0"].shape[1]
    images = memory.shape[1]
    method.local = Patches(memory, memory.new_zeros(images, width), torch.zeros(images, dtype=torch.bool))
    for step in range(sum(name.startswith("embedding_") for name in data)):
        given = tensor(data[f"patches_{step}"]).requires_grad_()
        embedding = tensor(data[f"embedding_{step}"]).requires_grad_()
        indices = torch.from_numpy(data[f"indices_{step}"])
        terms = method.local_terms(given.transpose(0, 1), embedding.view(len(indices), 2, width), indices)
        method.after_step({}, Batch([], indices, indices, None, {}, 0))
        for name, leaf in (("patch", given), ("image", embedding)):
            (gradient,) = torch.autograd.grad(terms[name], leaf)
            yield f"loss_{name}_{step}", terms[name].detach().numpy(), data[f"loss_{name}_{step}"]
            yield f"grad_{name}_{step}", gradient.numpy(), data[f"grad_{name}_{step}"]
        yield f"memory_{step + 1}", method.local.memory.numpy().copy(), data[f"memory_{step + 1}"]
        yield f"agents_{step}", method.local.agents[indices].numpy(), data[f"agents_{step}"]


def hhl_triplet(data: Arrays) -> Iterator[Comparison]:
    """Triplets of one domain and of both together, and CamStyle's label smoothing, each with its gradient."""
    sides = ("source", "target")
    features = {side: tensor(data[side]).requires_grad_() for side in sides}
    labels = {side: torch.from_numpy(data[f"{side}_labels"]) for side in sides}
    margin = float(data["margin"])
    for side in sides:
        loss = paired_triplet(features[side], labels[side], margin)
        yield f"loss_{side}", loss.detach().numpy(), data[f"loss_{side}"]
        if f"grad_{side}" in data:
            yield f"grad_{side}", torch.autograd.grad(loss, features[side])[0].numpy(), data[f"grad_{side}"]
    apart = torch.cat([labels["source"], labels["target"] + labels["source"].max() + 1])
    loss = paired_triplet(torch.cat([features[side] for side in sides]), apart, margin)
    yield "loss_joint", loss.detach().numpy(), data["loss_joint"]
    for side, gradient in zip(sides, torch.autograd.grad(loss, list(features.values())), strict=True):
        yield f"grad_joint_{side}", gradient.numpy(), data[f"grad_joint_{side}"]

    logits = tensor(data["logits"]).requires_grad_()
    loss = smoothed_cross_entropy(logits, torch.from_numpy(data["logit_labels"]), float(data["epsilon"]))
    yield "loss_smoothed", loss.detach().numpy(), data["loss_smoothed"]
    yield "grad_smoothed", torch.autograd.grad(loss, logits)[0].numpy(), data["grad_smoothed"]
