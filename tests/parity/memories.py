"""Checks of methods that contrast an image with a memory of clusters or of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from core.config import Config, Schedule
from core.data import Batch
from core.memory import CentroidMemory, InstanceMemory, SlotMemory
from methods.camera_styles.exemplars import exemplar_nll
from methods.camera_styles.method import CameraStyles
from methods.camera_styles.method import Settings as CameraStylesSettings
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.hhcl.method import HHCL
from methods.hhcl.method import Settings as HHCLSettings
from methods.selective_contrastive.contrast import (
    log_probabilities,
    pull_positives,
    released_gradients,
    selective_nll,
    term_weights,
)
from methods.selective_contrastive.selection import select, squared_distance
from methods.spcl.memory import HybridMemory
from methods.spcl.method import Settings as SpCLSettings
from methods.spcl.method import SpCL
from tests.parity.arrays import Arrays, Comparison, built, tensor, trained


def cluster_contrast(update: str) -> Callable[[Arrays], Iterator[Comparison]]:
    """The check of the method's loss and memory for one update rule."""

    def check(data: Arrays) -> Iterator[Comparison]:
        temperature, momentum = float(data["temperature"]), float(data["momentum"])
        method = built(ClusterContrast, ClusterContrastSettings(temperature, momentum, update))
        method.memory = CentroidMemory(tensor(data["memory_0"]), momentum, update)
        yield from trained(data, method, lambda: method.memory.rows)

    return check


def hhcl_released(data: Arrays) -> Iterator[Comparison]:
    """Variant A: C hard rows, then C mean rows; w (L_hard + (1 - w) L_mean)."""
    momentum, weight = float(data["momentum"]), float(data["hard_weight"])
    settings = HHCLSettings(
        hard_memory="momentum",
        temperature=float(data["temperature"]),
        momentum=momentum,
        w_hard=weight,
        w_mean=weight * (1 - weight),
    )
    method = built(HHCL, settings)
    hard, mean = tensor(data["memory_0"]).chunk(2)
    method.hard = CentroidMemory(hard, momentum, "hardest")
    method.mean = CentroidMemory(mean, momentum, "mean")
    yield from trained(data, method, lambda: torch.cat([method.hard.rows, method.mean.rows]))


def hhcl_hybrid(data: Arrays) -> Iterator[Comparison]:
    """Variant B: C centroids, then slot k of cluster c at C + k C + c; w L_c + (1 - w) L_i."""
    momentum, slots = float(data["momentum"]), int(data["num_instances"])
    settings = HHCLSettings(
        hard_memory="slots",
        temperature=float(data["temperature"]),
        momentum=momentum,
        w_centroid=float(data["hard_weight"]),
        slots=slots,
    )
    method = built(HHCL, settings)
    blocks = torch.stack(tensor(data["memory_0"]).chunk(slots + 1), dim=1)
    method.mean = CentroidMemory(blocks[:, 0], momentum, "mean")
    method.hard = SlotMemory(blocks[:, 1:])
    yield from trained(
        data,
        method,
        lambda: torch.cat([method.mean.rows, method.hard.slots.transpose(0, 1).flatten(0, 1)]),
    )


def spcl_hybrid_memory(data: Arrays) -> Iterator[Comparison]:
    """One row per image, updated by index; the inputs are normalised, the targets are the images' labels."""
    labels = torch.from_numpy(data["labels"])
    settings = SpCLSettings(temperature=float(data["temperature"]), momentum=float(data["momentum"]))
    method = SpCL(Config(settings=settings), nn.Identity(), capacity=len(labels))
    method.instances = HybridMemory(tensor(data["memory_0"]), settings.momentum)
    method.instances.assign(labels)
    targets = {name.replace("indices", "targets"): data["labels"][data[name]] for name in data if "indices" in name}
    given = {**data, **targets, "normalises_inputs": True}
    yield from trained(given, method, lambda: method.instances.rows)


def selective_contrastive(data: Arrays) -> Iterator[Comparison]:
    """Selection by global and local banks, one branch's loss with its released gradient, and all three updates."""
    index, cameras = torch.from_numpy(data["index"]), torch.from_numpy(data["cameras"])
    share, negatives = float(data["lambda_global"]), int(data["negatives"])
    views = {
        "global": (tensor(data["global_features"])[:, None], tensor(data["global_0"])[:, None]),
        "local": (tensor(data["local_features"]).transpose(0, 1), tensor(data["local_0"]).transpose(0, 1)),
    }
    distance = share * squared_distance(*views["global"]) + (1 - share) * squared_distance(*views["local"])
    distance += float(data["lambda_camera"]) * (cameras[index][:, None] == cameras)
    selection = select(distance, index, int(data["positives"]), negatives)
    yield "positive_index", selection.positives.numpy(), data["positive_index"]
    yield "negative_index", selection.negatives.numpy(), data["negative_index"]

    weights = term_weights(int(data["positives"]), float(data["lambda_self"]), float(data["alpha"]))
    temperature, mixture = 1 / float(data["scale"]), tensor(data["mixture_0"])
    z = tensor(data["mixture_features"])
    log_p = log_probabilities(z, mixture, selection, temperature)
    gradients = released_gradients({"z": z}, {"z": log_p}, mixture, selection, weights, temperature, 0.5, ["z"])
    yield "coefficients", np.asarray(weights), data["coefficients"]
    yield "loss", selective_nll(log_p, selection.positives, weights).numpy(), data["loss"]
    yield "grad", gradients["z"].numpy(), data["grad"]
    pull_positives(mixture, selection.positives, z, 0.5)
    yield "mixture_1", mixture.numpy(), data["mixture_1"]

    for name, (features, bank) in views.items():
        rows = index[:, None] * features.shape[1] + torch.arange(features.shape[1])
        memory = InstanceMemory(bank.flatten(0, 1), 0.5)
        memory.update(features.flatten(0, 1), rows.flatten())
        updated = memory.rows.view(bank.shape)
        yield f"{name}_1", (updated[:, 0] if name == "global" else updated.transpose(0, 1)).numpy(), data[f"{name}_1"]


def ecn_exemplar(data: Arrays) -> Iterator[Comparison]:
    """ECN's loss before and after neighbours join, with its gradient, and its memory."""
    epochs, temperature, neighbours = 100, float(data["temperature"]), int(data["neighbours"])
    memory = InstanceMemory(tensor(data["memory_0"]), 0.0)
    for step in range(sum(name.startswith("inputs_") for name in data)):
        inputs, rows = tensor(data[f"inputs_{step}"]).requires_grad_(), torch.from_numpy(data[f"indices_{step}"])
        epoch = int(data[f"epoch_{step}"])
        settings = CameraStylesSettings(exemplar_momentum=epochs * float(data["alpha"]), camera_weight=0.0)
        joined = neighbours if epoch >= settings.neighbours_from else 0
        loss = exemplar_nll(inputs, memory.rows, rows, temperature, joined)
        (gradient,) = torch.autograd.grad(loss, inputs)
        yield f"loss_{step}", loss.detach().numpy(), data[f"loss_{step}"]
        yield f"grad_{step}", gradient.numpy(), data[f"grad_{step}"]
        method = CameraStyles(Config(settings, schedule=Schedule(epochs=epochs)), nn.Identity(), len(memory))
        method.memory, method.exemplars = CentroidMemory(memory.rows, 1.0), memory
        batch = Batch([], rows, torch.zeros_like(rows), None, {}, epoch)
        method.after_step({"feature": inputs.detach()}, batch)
        yield f"memory_{step + 1}", memory.rows.numpy().copy(), data[f"memory_{step + 1}"]
