"""Compare the implementation with golden files: ``python -m tests.parity DIR``.

Every ``*.npz`` in DIR holds inputs and outputs of an official implementation, as described in
``tests/golden/README.md``; its kind is the longest prefix of its name that stands in KINDS. A kind
is a function that yields (what, ours, golden) for everything the file lets it compare. A ``lockstep_*`` file is a
whole training of an official release (tests/lockstep.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.agreement import cross_agreement
from core.clustering import dbscan
from core.config import Config, Sampler, Schedule
from core.data import Batch
from core.jaccard import jaccard_distance
from core.losses import smoothed_cross_entropy
from core.memory import CentroidMemory, InstanceMemory, ProxyMemory, SlotMemory, cluster_means
from core.method import Method
from core.mixstyle import mixed_statistics
from core.part_losses import consistency_smoothed_cross_entropy, refined_cross_entropy
from core.proxy_losses import camera_contrast
from core.teacher import Teacher
from evaluation.ranking import evaluate_ranking
from evaluation.rerank import rerank
from methods.camera_styles.aibn import AIBN
from methods.camera_styles.exemplars import exemplar_nll
from methods.camera_styles.method import CameraStyles
from methods.camera_styles.method import Settings as CameraStylesSettings
from methods.cap.method import CAP
from methods.cap.method import Settings as CAPSettings
from methods.clc.losses import paired_triplet
from methods.cluster_contrast.method import ClusterContrast
from methods.cluster_contrast.method import Settings as ClusterContrastSettings
from methods.hhcl.method import HHCL
from methods.hhcl.method import Settings as HHCLSettings
from methods.ice.method import ICE
from methods.ice.method import Settings as ICESettings
from methods.ise.method import ISE
from methods.ise.method import Settings as ISESettings
from methods.ise.supports import degree
from methods.o2cap.method import O2CAP
from methods.o2cap.method import Settings as O2CAPSettings
from methods.oriented_kd_ssl import losses as distillation
from methods.pplr.method import PPLR
from methods.pplr.method import Settings as PPLRSettings
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
from methods.vitc_ureid.method import Settings as ViTCSettings
from methods.vitc_ureid.method import ViTCUReID
from tests import parity_adaptation
from tests.lockstep import lockstep

RTOL, ATOL = 1e-4, 1e-6
LOCKSTEP_ATOL = 1e-9  # of whole trainings, in float64 on both sides
# Losses and memories: in float64 only the rounding of the golden file is left of the error.
DTYPE = torch.float64

Arrays = Mapping[str, np.ndarray]
Comparison = tuple[str, np.ndarray, np.ndarray]


class Result(NamedTuple):
    """Outcome for one file: pass, FAIL or unknown kind."""

    name: str
    status: str
    error: float | None = None
    remark: str = ""

    @property
    def failed(self) -> bool:
        """Whether this file makes the whole comparison fail."""
        return self.status in ("FAIL", "unknown kind")


def jaccard(data: Arrays) -> Iterator[Comparison]:
    """Sparse distance (a pair that is not stored is at 1) and DBSCAN labels on it."""
    graph = jaccard_distance(torch.from_numpy(data["features"]), int(data["k1"]), int(data["k2"]))
    entries = graph.tocoo()
    dense = np.ones(graph.shape)
    dense[entries.row, entries.col] = entries.data
    yield "distance", dense, data["distance"]
    labels = dbscan(graph, float(data["eps"]), int(data["min_samples"]))
    yield "labels", labels, data["labels"]


def market_metric(data: Arrays) -> Iterator[Comparison]:
    """mAP and CMC of a given distance matrix, junk left in."""
    distance = data["distance"]
    scores = evaluate_ranking(
        lambda rows: distance[rows],
        data["query_ids"],
        data["gallery_ids"],
        data["query_cams"],
        data["gallery_cams"],
    )
    yield "mAP", np.asarray(scores.mAP), data["mAP"]
    yield "cmc", scores.cmc, data["cmc"]


def reranking(data: Arrays) -> Iterator[Comparison]:
    """k-reciprocal re-ranked distance."""
    query, gallery = torch.from_numpy(data["query"]), torch.from_numpy(data["gallery"])
    k1, k2, lambda_value = int(data["k1"]), int(data["k2"]), float(data["lambda_value"])
    yield "distance", rerank(query, gallery, k1, k2, lambda_value).numpy(), data["distance"]


def cluster_contrast(update: str) -> Callable[[Arrays], Iterator[Comparison]]:
    """The check of the method's loss and memory for one update rule."""

    def check(data: Arrays) -> Iterator[Comparison]:
        temperature, momentum = float(data["temperature"]), float(data["momentum"])
        method = _build(ClusterContrast, ClusterContrastSettings(temperature, momentum, update))
        method.memory = CentroidMemory(_tensor(data["memory_0"]), momentum, update)
        yield from _train(data, method, lambda: method.memory.rows)

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
    method = _build(HHCL, settings)
    hard, mean = _tensor(data["memory_0"]).chunk(2)
    method.hard = CentroidMemory(hard, momentum, "hardest")
    method.mean = CentroidMemory(mean, momentum, "mean")
    yield from _train(data, method, lambda: torch.cat([method.hard.rows, method.mean.rows]))


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
    method = _build(HHCL, settings)
    blocks = torch.stack(_tensor(data["memory_0"]).chunk(slots + 1), dim=1)
    method.mean = CentroidMemory(blocks[:, 0], momentum, "mean")
    method.hard = SlotMemory(blocks[:, 1:])
    yield from _train(
        data,
        method,
        lambda: torch.cat([method.mean.rows, method.hard.slots.transpose(0, 1).flatten(0, 1)]),
    )


def spcl_hybrid_memory(data: Arrays) -> Iterator[Comparison]:
    """One row per image, updated by index; the inputs are normalised, the targets are the images' labels."""
    labels = torch.from_numpy(data["labels"])
    settings = SpCLSettings(temperature=float(data["temperature"]), momentum=float(data["momentum"]))
    method = SpCL(Config(settings=settings), nn.Identity(), capacity=len(labels))
    method.instances = HybridMemory(_tensor(data["memory_0"]), settings.momentum)
    method.instances.assign(labels)
    targets = {name.replace("indices", "targets"): data["labels"][data[name]] for name in data if "indices" in name}
    given = {**data, **targets, "normalises_inputs": True}
    yield from _train(given, method, lambda: method.instances.rows)


def selective_contrastive(data: Arrays) -> Iterator[Comparison]:
    """Selection by global and local banks, one branch's loss with its released gradient, and all three updates."""
    index, cameras = torch.from_numpy(data["index"]), torch.from_numpy(data["cameras"])
    share, negatives = float(data["lambda_global"]), int(data["negatives"])
    views = {
        "global": (_tensor(data["global_features"])[:, None], _tensor(data["global_0"])[:, None]),
        "local": (_tensor(data["local_features"]).transpose(0, 1), _tensor(data["local_0"]).transpose(0, 1)),
    }
    distance = share * squared_distance(*views["global"]) + (1 - share) * squared_distance(*views["local"])
    distance += float(data["lambda_camera"]) * (cameras[index][:, None] == cameras)
    selection = select(distance, index, int(data["positives"]), negatives)
    yield "positive_index", selection.positives.numpy(), data["positive_index"]
    yield "negative_index", selection.negatives.numpy(), data["negative_index"]

    weights = term_weights(int(data["positives"]), float(data["lambda_self"]), float(data["alpha"]))
    temperature, mixture = 1 / float(data["scale"]), _tensor(data["mixture_0"])
    z = _tensor(data["mixture_features"])
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


def pisl_losses(data: Arrays) -> Iterator[Comparison]:
    """PSC's refined global loss and its part loss, and the camera loss, each with its gradient."""
    targets, scores = torch.from_numpy(data["targets"]), _tensor(data["scores"])
    whole = _tensor(data["global_logits"]).requires_grad_()
    part = _tensor(data["part_logits"]).transpose(1, 2).contiguous().requires_grad_()
    refinement = refined_cross_entropy(whole, part, targets, scores, float(data["lam"]))
    (gradient,) = torch.autograd.grad(refinement, whole)
    yield "refinement_loss", refinement.detach().numpy(), data["refinement_loss"]
    yield "refinement_grad_global", gradient.numpy(), data["refinement_grad_global"]

    smoothing = consistency_smoothed_cross_entropy(part, targets, scores)
    (gradient,) = torch.autograd.grad(smoothing, part)
    yield "smoothing_loss", smoothing.detach().numpy(), data["smoothing_loss"]
    yield "smoothing_grad_part", gradient.transpose(1, 2).numpy(), data["smoothing_grad_part"]

    features = _tensor(data["camera_features"]).requires_grad_()
    camera = camera_contrast(
        features,
        torch.from_numpy(data["camera_targets"][:, None] == data["proxy_ids"]),
        torch.from_numpy(data["camera_cams"][:, None] == data["proxy_cams"]),
        _tensor(data["proxies"]),
        float(data["camera_temperature"]),
        int(data["num_hard_negatives"]),
    )
    (gradient,) = torch.autograd.grad(camera, features)
    yield "camera_loss", camera.detach().numpy(), data["camera_loss"]
    yield "camera_grad", gradient.numpy(), data["camera_grad"]


def o2cap(data: Arrays) -> Iterator[Comparison]:
    """O2CAP's two terms, by its own method and by the mode of ViTC-UReID."""
    given = {
        "momentum": float(data["momentum"]),
        "negatives": int(data["hard_negatives"]),
        "online_positives": int(data["online_positives"]),
        "association_weight": float(data["association_weight"]),
    }
    temperature = float(data["temperature"])
    method = _build(O2CAP, O2CAPSettings(temperature=temperature, **given))
    yield from _train_proxies(data, method, {"offline": "offline", "online": "online"})
    mode = _build(ViTCUReID, ViTCSettings(mode="o2cap", proxy_temperature=temperature, **given))
    yield from _train_proxies(data, mode, {"inter": "offline", "online": "online"})


def cap(data: Arrays) -> Iterator[Comparison]:
    """CAP's two terms as released, its loss by epoch, and its proxies, which the file orders camera by camera."""
    settings = CAPSettings(
        temperature=float(data["temperature"]),
        momentum=float(data["momentum"]),
        w_inter=float(data["inter_weight"]),
        inter_start=float(data["inter_start"]),
        negatives=int(data["hard_negatives"]),
        few_negatives="refilled",
    )
    order = np.lexsort((data["proxy_clusters"], data["proxy_cameras"]))
    ours = np.lexsort((data["proxy_cameras"], data["proxy_clusters"]))  # cluster by cluster
    assert (order == np.arange(len(order))).all(), "the file is not camera by camera"
    yield from _train_proxies(data, _build(CAP, settings), {"intra": "intra"}, np.argsort(ours))


def _train_proxies(
    data: Arrays, method: Method, names: Mapping[str, str], order: np.ndarray | None = None
) -> Iterator[Comparison]:
    """Terms (``names``: ours -> the file's), loss, gradient and proxies, which start from the file's features.

    order (U,): our row of each of the file's proxies.
    """
    order = np.arange(len(data["proxies_0"])) if order is None else order
    method.proxies = ProxyMemory(
        _tensor(data["features"]), data["labels"], data["cameras"], method.config.settings.momentum
    )
    yield "proxies_0", method.proxies.rows.numpy()[order], data["proxies_0"]
    for step in range(sum(name.startswith("inputs_") for name in data)):
        inputs, rows = _tensor(data[f"inputs_{step}"]).requires_grad_(), data[f"indices_{step}"]
        given = [torch.from_numpy(array) for array in (rows, data["labels"][rows], data["cameras"][rows])]
        batch = Batch([], *given, extra={}, epoch=int(data.get(f"epoch_{step}", 0)))
        features = F.normalize(inputs, dim=1)
        terms = method.loss({"feature": features}, batch)
        loss = torch.stack(list(terms.values())).sum()
        (gradient,) = torch.autograd.grad(loss, inputs)
        method.after_step({"feature": features.detach()}, batch)
        for name, theirs in names.items():
            yield f"{theirs}_{step}", terms[name].detach().numpy(), data[f"{theirs}_{step}"]
        yield f"loss_{step}", loss.detach().numpy(), data[f"loss_{step}"]
        yield f"grad_{step}", gradient.numpy(), data[f"grad_{step}"]
        yield f"proxies_{step + 1}", method.proxies.rows.numpy()[order], data[f"proxies_{step + 1}"]


def pplr(data: Arrays) -> Iterator[Comparison]:
    """Agreement and proxies, where the file has features; and the four losses with their gradients, as released."""
    settings = PPLRSettings(
        parts=data["agreement"].shape[1],
        neighbours=int(data["neighbours"]),
        own_label_share=float(data["own_share"]),
        consistency_from=float(data["agreement_from"]),
        label_smoothing=float(data["smoothing"]),
        camera_weight=float(data["camera_weight"]),
        camera_temperature=float(data["camera_temperature"]),
        camera_negatives=int(data["hard_negatives"]),
        few_negatives="refilled",
    )
    network = nn.Identity()
    network.dim = data["proxies"].shape[1]
    method = PPLR(Config(settings=settings), network, capacity=len(data["labels"]))
    free = PPLR(Config(settings=replace(settings, camera_weight=0.0)), network, capacity=len(data["labels"]))
    if "features" in data:
        found = cross_agreement(_tensor(data["features"]), _tensor(data["parts"]), settings.neighbours)
        yield "agreement", found.numpy(), data["agreement"]
    # Proxies of the file: one image each makes a memory whose rows they are.
    given = [_tensor(data["proxies"]), *_tensor(data["part_proxies"])]
    clusters, cameras = data["proxy_clusters"], data["proxy_cameras"]
    method.cameras, *method.part_cameras = (ProxyMemory(rows, clusters, cameras, momentum=1.0) for rows in given)
    if "features" in data:
        spaces = [_tensor(data["features"]), *_tensor(data["parts"]).unbind(dim=1)]
        made = [ProxyMemory(space, data["labels"], data["cameras"], momentum=1.0).rows.numpy() for space in spaces]
        yield "proxies", made[0], data["proxies"]
        yield "part_proxies", np.stack(made[1:]), data["part_proxies"]
    for step in range(sum(name.startswith("indices_") for name in data)):
        yield from _pplr_step(data, step, method, free)


def _pplr_step(data: Arrays, step: int, method: PPLR, free: PPLR) -> Iterator[Comparison]:
    """One batch of PPLR's two trainers."""
    golden = {"embedding": "embedding", "parts": "part_embeddings", "logits": "logits", "part_logits": "part_logits"}
    output = {ours: _tensor(data[f"{theirs}_{step}"]).requires_grad_() for ours, theirs in golden.items()}
    rows = data[f"indices_{step}"]
    batch = Batch(
        images=[],
        indices=torch.from_numpy(rows),
        targets=torch.from_numpy(data[f"targets_{step}"]),
        cameras=torch.from_numpy(data[f"batch_cameras_{step}"]),
        extra={"consistency": _tensor(data["agreement"][rows])},
        epoch=int(data[f"epoch_{step}"]),
    )
    terms, terms_free = method.loss(output, batch), free.loss(output, batch)
    for name in ("global", "part", "triplet"):
        yield f"{name}_loss_{step}", terms[name].detach().numpy(), data[f"{name}_loss_{step}"]
    camera = terms["camera"].detach().numpy() / float(data["camera_weight"])
    yield f"camera_loss_{step}", camera, data[f"camera_loss_{step}"]
    loss, loss_free = (torch.stack(list(found.values())).sum() for found in (terms, terms_free))
    yield f"loss_{step}", loss.detach().numpy(), data[f"loss_{step}"]
    yield f"loss_free_{step}", loss_free.detach().numpy(), data[f"loss_free_{step}"]
    gradients = torch.autograd.grad(loss, list(output.values()), retain_graph=True)
    for theirs, gradient in zip(golden.values(), gradients, strict=True):
        yield f"{theirs}_grad_{step}", gradient.numpy(), data[f"{theirs}_grad_{step}"]
    (gradient,) = torch.autograd.grad(loss_free, output["embedding"])
    yield f"embedding_grad_free_{step}", gradient.numpy(), data[f"embedding_grad_free_{step}"]


def ise(data: Arrays) -> Iterator[Comparison]:
    """Degree, supports, both terms with their gradients, and the memory, at the file's places in a run."""
    epoch, epochs, iterations = (int(data[name]) for name in ("epoch", "epochs", "iterations"))
    settings = ISESettings(
        temperature=float(data["temperature"]),
        momentum=float(data["momentum"]),
        update=str(data["update"]),
        base_lambda=float(data["base_lambda"]),
        nearest=int(data["nearest"]),
        lp_weight=float(data["lp_weight"]),
        lp_temperature=float(data["lp_temperature"]),
    )
    config = Config(settings, sampler=Sampler(instances=int(data["instances"])), schedule=Schedule(epochs=epochs))
    method = ISE(config, nn.Identity(), capacity=1)
    method.memory = CentroidMemory(_tensor(data["memory_0"]), settings.momentum, settings.update)
    for step in range(sum(name.startswith("inputs_") for name in data)):
        inputs, targets = _tensor(data[f"inputs_{step}"]).requires_grad_(), torch.from_numpy(data[f"targets_{step}"])
        place = (epoch * iterations + step) / iterations
        batch = Batch([], torch.arange(len(targets)), targets, None, {}, epoch=place)
        features = F.normalize(inputs, dim=1)
        yield f"lambda_{step}", np.asarray(degree(place / epochs, settings.base_lambda)), data[f"lambda_{step}"]
        yield f"supports_{step}", method.supports(features, batch).detach().numpy(), data[f"supports_{step}"]
        terms = method.loss({"feature": features}, batch)
        preserving = terms["label_preserving"] / settings.lp_weight
        loss = torch.stack(list(terms.values())).sum()
        (lp_gradient,) = torch.autograd.grad(preserving, inputs, retain_graph=True)
        (gradient,) = torch.autograd.grad(loss, inputs)
        method.after_step({"feature": features.detach()}, batch)
        yield f"cluster_loss_{step}", terms["cluster"].detach().numpy(), data[f"cluster_loss_{step}"]
        yield f"lp_loss_{step}", preserving.detach().numpy(), data[f"lp_loss_{step}"]
        yield f"loss_{step}", loss.detach().numpy(), data[f"loss_{step}"]
        yield f"grad_{step}", gradient.numpy(), data[f"grad_{step}"]
        yield f"lp_grad_{step}", lp_gradient.numpy(), data[f"lp_grad_{step}"]
        yield f"memory_{step + 1}", method.memory.rows.numpy().copy(), data[f"memory_{step + 1}"]


def ice(data: Arrays) -> Iterator[Comparison]:
    """Centroids, proxies, the four losses with their gradients on the online features, and the teacher's steps."""
    settings = ICESettings(
        tau_centroid=float(data["tau_centroid"]),
        smoothing=float(data["smoothing"]),
        proxy_weight=float(data["proxy_weight"]),
        tau_proxy=float(data["tau_proxy"]),
        negatives=int(data["hard_negatives"]),
        tau_instance=float(data["tau_instance"]),
        consistency_weight=float(data["consistency_weight"]),
        tau_consistency=float(data["tau_consistency"]),
    )
    method = _build(ICE, settings)
    features = _tensor(data["features"])
    method.centroids = cluster_means(features, data["labels"])
    method.fix_proxies(ProxyMemory(features, data["labels"], data["cameras"], momentum=1.0))
    camera_by_camera = np.lexsort([method.proxies.clusters.numpy(), method.proxies.cameras.numpy()])
    yield "centroids", method.centroids.numpy(), data["centroids"]
    yield "proxies", method.proxies.rows.numpy()[camera_by_camera], data["proxies"]
    for step in range(sum(name.startswith("online_") for name in data)):
        online = _tensor(data[f"online_{step}"]).requires_grad_()
        given = [torch.from_numpy(data[f"{name}_{step}"]) for name in ("indices", "targets", "batch_cameras")]
        order = torch.randperm(len(online), generator=torch.Generator().manual_seed(step))
        batch = Batch([], *given, extra={}, epoch=0, order=order)
        taught = {name: _tensor(data[f"{name}_{step}"])[order] for name in ("momentum", "weak")}
        terms = method.loss({"online": online, **taught}, batch)
        terms["total"] = torch.stack(list(terms.values())).sum()
        for name, value in terms.items():
            prefix = "" if name == "total" else f"{name}_"
            (gradient,) = torch.autograd.grad(value, online, retain_graph=True)
            yield f"{prefix}loss_{step}", value.detach().numpy(), data[f"{prefix}loss_{step}"]
            yield f"{prefix}grad_{step}", gradient.numpy(), data[f"{prefix}grad_{step}"]
    if "ema_alpha" in data:
        yield from _followed(data, float(data["ema_alpha"]))


def _followed(data: Arrays, momentum: float) -> Iterator[Comparison]:
    """The parameters and buffers of a teacher that follows one student for the file's steps."""

    def network(parameters: Tensor, buffers: Tensor) -> nn.Module:
        made = nn.Module()
        made.weight = nn.Parameter(parameters)
        made.register_buffer("statistics", buffers)
        return made

    buffers = _tensor(data["ema_buffers_0"])
    teacher = Teacher(network(_tensor(data["ema_0"]), buffers))
    student = network(_tensor(data["ema_online"]), buffers + 1)
    for step in range(1, sum(name.startswith("ema_buffers_") for name in data)):
        teacher.follow(student, momentum)
        yield f"ema_{step}", teacher.network.weight.numpy().copy(), data[f"ema_{step}"]
        yield f"ema_buffers_{step}", teacher.network.statistics.numpy().copy(), data[f"ema_buffers_{step}"]


def style_norm(data: Arrays) -> Iterator[Comparison]:
    """AIBN at several shares, in training and in eval mode, and MixStyle, each with its gradient."""
    for case in range(sum(name.startswith("aibn_input_") for name in data)):
        layer = AIBN(data[f"aibn_input_{case}"].shape[1]).double()
        given = {name: data[f"aibn_{name}_{case}"] for name in ("mix", "weight", "bias", "running_mean", "running_var")}
        layer.load_state_dict({name: _tensor(value) for name, value in given.items()}, strict=False)
        layer.eps, layer.momentum = float(data["aibn_eps"]), 1 - float(data["aibn_old_share"])
        inputs = _tensor(data[f"aibn_input_{case}"]).requires_grad_()
        output = layer(inputs)
        gradients = torch.autograd.grad((output * _tensor(data[f"aibn_upstream_{case}"])).sum(), [inputs, layer.mix])
        found = {"output": output.detach(), "grad": gradients[0], "grad_mix": gradients[1]}
        found |= {f"{name}_after": getattr(layer, name) for name in ("running_mean", "running_var")}
        found["output_eval"] = layer.eval()(inputs).detach()
        yield from (
            (f"aibn_{name}_{case}", value.numpy(), data[f"aibn_{name}_{case}"]) for name, value in found.items()
        )

    inputs = _tensor(data["mixstyle_input"]).requires_grad_()
    partners = torch.from_numpy(data["mixstyle_permutation"])
    output = mixed_statistics(inputs, partners, _tensor(data["mixstyle_lambda"]))
    (gradient,) = torch.autograd.grad((output * _tensor(data["mixstyle_upstream"])).sum(), inputs)
    yield "mixstyle_output", output.detach().numpy(), data["mixstyle_output"]
    yield "mixstyle_grad", gradient.numpy(), data["mixstyle_grad"]


def ecn_exemplar(data: Arrays) -> Iterator[Comparison]:
    """ECN's loss before and after neighbours join, with its gradient, and its memory."""
    epochs, temperature, neighbours = 100, float(data["temperature"]), int(data["neighbours"])
    memory = InstanceMemory(_tensor(data["memory_0"]), 0.0)
    for step in range(sum(name.startswith("inputs_") for name in data)):
        inputs, rows = _tensor(data[f"inputs_{step}"]).requires_grad_(), torch.from_numpy(data[f"indices_{step}"])
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


def dino_ibot(data: Arrays) -> Iterator[Comparison]:
    """DINO's loss of views and iBOT's of hidden tokens, each with its gradient and its centre."""
    temperature, momentum = float(data["student_temperature"]), float(data["center_momentum"])
    crops, views = int(data["global_views"]), int(data["global_views"]) + int(data["local_views"])
    for step in range(sum(name.startswith("dino_loss_") for name in data)):
        student = _tensor(data[f"dino_student_{step}"]).requires_grad_()
        teacher = _tensor(data[f"dino_teacher_{step}"]).chunk(crops)
        seen = [(view if view < crops else None, logits) for view, logits in enumerate(student.chunk(views))]
        for code, found in (("dino", "dino_loss"), ("ibot", "ibot_loss_cls")):
            centre, warmth = _tensor(data[f"{code}_center_{step}"]), float(data[f"dino_teacher_temperature_{step}"])
            taught = [distillation.sharpened(logits, centre, warmth) for logits in teacher]
            loss = distillation.alignment(taught, seen, temperature)
            yield f"{found}_{step}", loss.detach().numpy(), data[f"{found}_{step}"]
            after = distillation.moved(centre, teacher, momentum)
            yield f"{code}_center_{step + 1}", after.numpy(), data[f"{code}_center_{step + 1}"]
            if code == "dino":
                (gradient,) = torch.autograd.grad(loss, student)
                yield f"dino_grad_{step}", gradient.numpy(), data[f"dino_grad_{step}"]
        yield from _ibot_tokens(data, step, temperature, momentum)


def _ibot_tokens(data: Arrays, step: int, temperature: float, momentum: float) -> Iterator[Comparison]:
    student = _tensor(data[f"ibot_student_patch_{step}"]).requires_grad_()
    teacher, centre = _tensor(data[f"ibot_teacher_patch_{step}"]), _tensor(data[f"ibot_patch_center_{step}"])
    taught = distillation.sharpened(teacher, centre, float(data[f"ibot_patch_temperature_{step}"]))
    lacking = distillation.cross_entropy(taught, student, temperature)
    hidden = torch.from_numpy(data[f"ibot_mask_{step}"])
    loss = distillation.mean_of_images(distillation.of_hidden(lacking, hidden))
    (gradient,) = torch.autograd.grad(loss, student)
    after = distillation.moved(centre, [teacher.mean(dim=1)], momentum)
    yield f"ibot_loss_patch_{step}", loss.detach().numpy(), data[f"ibot_loss_patch_{step}"]
    yield f"ibot_grad_patch_{step}", gradient.numpy(), data[f"ibot_grad_patch_{step}"]
    yield f"ibot_patch_center_{step + 1}", after.numpy(), data[f"ibot_patch_center_{step + 1}"]


def hhl_triplet(data: Arrays) -> Iterator[Comparison]:
    """Triplets of one domain and of both together, and CamStyle's label smoothing, each with its gradient."""
    sides = ("source", "target")
    features = {side: _tensor(data[side]).requires_grad_() for side in sides}
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

    logits = _tensor(data["logits"]).requires_grad_()
    loss = smoothed_cross_entropy(logits, torch.from_numpy(data["logit_labels"]), float(data["epsilon"]))
    yield "loss_smoothed", loss.detach().numpy(), data["loss_smoothed"]
    yield "grad_smoothed", torch.autograd.grad(loss, logits)[0].numpy(), data["grad_smoothed"]


KINDS: dict[str, Callable[[Arrays], Iterator[Comparison]]] = {
    "jaccard": jaccard,
    "market_metric": market_metric,
    "rerank": reranking,
    "cluster_contrast_cm": cluster_contrast("sequential"),
    "cluster_contrast_hard": cluster_contrast("hardest"),
    "hhcl_released": hhcl_released,
    "hhcl_hybrid": hhcl_hybrid,
    "spcl_hybrid_memory": spcl_hybrid_memory,
    "selective_contrastive": selective_contrastive,
    "pisl_losses": pisl_losses,
    "o2cap": o2cap,
    "cap": cap,
    "pplr": pplr,
    "ice": ice,
    "ise": ise,
    "style_norm": style_norm,
    "hhl_triplet": hhl_triplet,
    "ecn_exemplar": ecn_exemplar,
    "dino_ibot": dino_ibot,
    "lockstep_cluster_contrast": lockstep,
    "lockstep_hhcl": lockstep,
    "lockstep_spcl": lockstep,
    **parity_adaptation.KINDS,
}


def _build(method: type[Method], settings: object) -> Method:
    """A method with its own settings and the identity for a network: its features are given."""
    return method(SimpleNamespace(settings=settings), nn.Identity(), capacity=1)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(DTYPE)


def _train(data: Arrays, method: Method, bank: Callable[[], Tensor]) -> Iterator[Comparison]:
    """Loss, gradient on the inputs and memory after the update, for the file's batches in turn."""
    steps = sum(name.startswith("inputs_") for name in data)
    for step in range(max(steps, 1)):
        inputs = _tensor(data[f"inputs_{step}"]).requires_grad_()
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


def compare_file(path: Path) -> Result:
    """Run the check of one file's kind."""
    kinds = [kind for kind in KINDS if path.name.startswith(kind)]
    if not kinds:
        return Result(path.name, "unknown kind", remark=f"known are {', '.join(KINDS)}")
    check = KINDS[max(kinds, key=len)]
    rtol, atol = (0.0, LOCKSTEP_ATOL) if check is lockstep else (RTOL, ATOL)
    try:
        with np.load(path) as data:
            comparisons = list(check(data))
    except Exception as error:  # whatever a damaged file provokes fails that file alone
        return Result(path.name, "FAIL", remark=f"{type(error).__name__}: {error}")
    worst, wrong = 0.0, []
    for what, ours, golden in comparisons:
        if ours.shape != golden.shape:
            wrong.append(f"{what} has shape {ours.shape} instead of {golden.shape}")
            continue
        error = np.abs(ours.astype(np.float64) - golden)
        # Written so that a NaN on either side fails.
        if not (error <= atol + rtol * np.abs(golden)).all():
            wrong.append(what)
        worst = max(worst, float(np.nan_to_num(error, nan=np.inf).max()))
    return Result(path.name, "FAIL" if wrong else "pass", worst, ", ".join(wrong))


def main(arguments: list[str] | None = None) -> int:
    """Print one line per file; 0 when no file failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of golden .npz files")
    folder = parser.parse_args(arguments).folder
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        print(f"{folder} holds no .npz file; name a folder such as tests/golden", file=sys.stderr)
        return 2
    width = max(len(path.name) for path in paths)
    failures = 0
    for path in paths:
        result = compare_file(path)
        failures += result.failed
        error = "" if result.error is None else f"{result.error:.1e}"
        print(f"{result.name:{width}}  {error:>7}  {result.status}  {result.remark}".rstrip())
    print(f"{len(paths)} files, {failures} failed (rtol {RTOL:g}, atol {ATOL:g}; lockstep: atol {LOCKSTEP_ATOL:g})")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
