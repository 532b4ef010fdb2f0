"""Checks of methods that know cameras or parts: camera proxies, agreement of parts, label refinement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.agreement import cross_agreement
from core.config import Config
from core.data import Batch
from core.memory import ProxyMemory
from core.method import Method
from core.part_losses import consistency_smoothed_cross_entropy, refined_cross_entropy
from core.proxy_losses import camera_contrast
from methods.cap.method import CAP
from methods.cap.method import Settings as CAPSettings
from methods.o2cap.method import O2CAP
from methods.o2cap.method import Settings as O2CAPSettings
from methods.pplr.method import PPLR
from methods.pplr.method import Settings as PPLRSettings
from methods.vitc_ureid.method import Settings as ViTCSettings
from methods.vitc_ureid.method import ViTCUReID
from tests.parity.arrays import Arrays, Comparison, built, tensor


def pisl_losses(data: Arrays) -> Iterator[Comparison]:
    """PSC's refined global loss and its part loss, and the camera loss, each with its gradient."""
    targets, scores = torch.from_numpy(data["targets"]), tensor(data["scores"])
    whole = tensor(data["global_logits"]).requires_grad_()
    part = tensor(data["part_logits"]).transpose(1, 2).contiguous().requires_grad_()
    refinement = refined_cross_entropy(whole, part, targets, scores, float(data["lam"]))
    (gradient,) = torch.autograd.grad(refinement, whole)
    yield "refinement_loss", refinement.detach().numpy(), data["refinement_loss"]
    yield "refinement_grad_global", gradient.numpy(), data["refinement_grad_global"]

    smoothing = consistency_smoothed_cross_entropy(part, targets, scores)
    (gradient,) = torch.autograd.grad(smoothing, part)
    yield "smoothing_loss", smoothing.detach().numpy(), data["smoothing_loss"]
    yield "smoothing_grad_part", gradient.transpose(1, 2).numpy(), data["smoothing_grad_part"]

    features = tensor(data["camera_features"]).requires_grad_()
    camera = camera_contrast(
        features,
        torch.from_numpy(data["camera_targets"][:, None] == data["proxy_ids"]),
        torch.from_numpy(data["camera_cams"][:, None] == data["proxy_cams"]),
        tensor(data["proxies"]),
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
    method = built(O2CAP, O2CAPSettings(temperature=temperature, **given))
    yield from _train_proxies(data, method, {"offline": "offline", "online": "online"})
    mode = built(ViTCUReID, ViTCSettings(mode="o2cap", proxy_temperature=temperature, **given))
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
    yield from _train_proxies(data, built(CAP, settings), {"intra": "intra"}, np.argsort(ours))


def _train_proxies(
    data: Arrays, method: Method, names: Mapping[str, str], order: np.ndarray | None = None
) -> Iterator[Comparison]:
    """Terms (``names``: ours -> the file's), loss, gradient and proxies, which start from the file's features.

    order (U,): our row of each of the file's proxies.
    """
    order = np.arange(len(data["proxies_0"])) if order is None else order
    method.proxies = ProxyMemory(
        tensor(data["features"]), data["labels"], data["cameras"], method.config.settings.momentum
    )
    yield "proxies_0", method.proxies.rows.numpy()[order], data["proxies_0"]
    for step in range(sum(name.startswith("inputs_") for name in data)):
        inputs, rows = tensor(data[f"inputs_{step}"]).requires_grad_(), data[f"indices_{step}"]
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
        found = cross_agreement(tensor(data["features"]), tensor(data["parts"]), settings.neighbours)
        yield "agreement", found.numpy(), data["agreement"]
    # Proxies of the file: one image each makes a memory whose rows they are.
    given = [tensor(data["proxies"]), *tensor(data["part_proxies"])]
    clusters, cameras = data["proxy_clusters"], data["proxy_cameras"]
    method.cameras, *method.part_cameras = (ProxyMemory(rows, clusters, cameras, momentum=1.0) for rows in given)
    if "features" in data:
        spaces = [tensor(data["features"]), *tensor(data["parts"]).unbind(dim=1)]
        made = [ProxyMemory(space, data["labels"], data["cameras"], momentum=1.0).rows.numpy() for space in spaces]
        yield "proxies", made[0], data["proxies"]
        yield "part_proxies", np.stack(made[1:]), data["part_proxies"]
    for step in range(sum(name.startswith("indices_") for name in data)):
        yield from _pplr_step(data, step, method, free)


def _pplr_step(data: Arrays, step: int, method: PPLR, free: PPLR) -> Iterator[Comparison]:
    """One batch of PPLR's two trainers."""
    golden = {"embedding": "embedding", "parts": "part_embeddings", "logits": "logits", "part_logits": "part_logits"}
    output = {ours: tensor(data[f"{theirs}_{step}"]).requires_grad_() for ours, theirs in golden.items()}
    rows = data[f"indices_{step}"]
    batch = Batch(
        images=[],
        indices=torch.from_numpy(rows),
        targets=torch.from_numpy(data[f"targets_{step}"]),
        cameras=torch.from_numpy(data[f"batch_cameras_{step}"]),
        extra={"consistency": tensor(data["agreement"][rows])},
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
