"""Checks of methods with supports, a teacher or several views: ISE, ICE, DINO and iBOT."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import Config, Sampler, Schedule
from core.data import Batch
from core.memory import CentroidMemory, ProxyMemory, cluster_means
from core.teacher import Teacher
from methods.ice.method import ICE
from methods.ice.method import Settings as ICESettings
from methods.ise.method import ISE
from methods.ise.method import Settings as ISESettings
from methods.ise.supports import degree
from methods.oriented_kd_ssl import losses as distillation
from tests.parity.arrays import Arrays, Comparison, built, tensor


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
    method.memory = CentroidMemory(tensor(data["memory_0"]), settings.momentum, settings.update)
    for step in range(sum(name.startswith("inputs_") for name in data)):
        inputs, targets = tensor(data[f"inputs_{step}"]).requires_grad_(), torch.from_numpy(data[f"targets_{step}"])
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
    method = built(ICE, settings)
    features = tensor(data["features"])
    method.centroids = cluster_means(features, data["labels"])
    method.fix_proxies(ProxyMemory(features, data["labels"], data["cameras"], momentum=1.0))
    camera_by_camera = np.lexsort([method.proxies.clusters.numpy(), method.proxies.cameras.numpy()])
    yield "centroids", method.centroids.numpy(), data["centroids"]
    yield "proxies", method.proxies.rows.numpy()[camera_by_camera], data["proxies"]
    for step in range(sum(name.startswith("online_") for name in data)):
        online = tensor(data[f"online_{step}"]).requires_grad_()
        given = [torch.from_numpy(data[f"{name}_{step}"]) for name in ("indices", "targets", "batch_cameras")]
        order = torch.randperm(len(online), generator=torch.Generator().manual_seed(step))
        batch = Batch([], *given, extra={}, epoch=0, order=order)
        taught = {name: tensor(data[f"{name}_{step}"])[order] for name in ("momentum", "weak")}
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

    buffers = tensor(data["ema_buffers_0"])
    teacher = Teacher(network(tensor(data["ema_0"]), buffers))
    student = network(tensor(data["ema_online"]), buffers + 1)
    for step in range(1, sum(name.startswith("ema_buffers_") for name in data)):
        teacher.follow(student, momentum)
        yield f"ema_{step}", teacher.network.weight.numpy().copy(), data[f"ema_{step}"]
        yield f"ema_buffers_{step}", teacher.network.statistics.numpy().copy(), data[f"ema_buffers_{step}"]


def dino_ibot(data: Arrays) -> Iterator[Comparison]:
    """DINO's loss of views and iBOT's of hidden tokens, each with its gradient and its centre."""
    temperature, momentum = float(data["student_temperature"]), float(data["center_momentum"])
    crops, views = int(data["global_views"]), int(data["global_views"]) + int(data["local_views"])
    for step in range(sum(name.startswith("dino_loss_") for name in data)):
        student = tensor(data[f"dino_student_{step}"]).requires_grad_()
        teacher = tensor(data[f"dino_teacher_{step}"]).chunk(crops)
        seen = [(view if view < crops else None, logits) for view, logits in enumerate(student.chunk(views))]
        for code, found in (("dino", "dino_loss"), ("ibot", "ibot_loss_cls")):
            centre, warmth = tensor(data[f"{code}_center_{step}"]), float(data[f"dino_teacher_temperature_{step}"])
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
    student = tensor(data[f"ibot_student_patch_{step}"]).requires_grad_()
    teacher, centre = tensor(data[f"ibot_teacher_patch_{step}"]), tensor(data[f"ibot_patch_center_{step}"])
    taught = distillation.sharpened(teacher, centre, float(data[f"ibot_patch_temperature_{step}"]))
    lacking = distillation.cross_entropy(taught, student, temperature)
    hidden = torch.from_numpy(data[f"ibot_mask_{step}"])
    loss = distillation.mean_of_images(distillation.of_hidden(lacking, hidden))
    (gradient,) = torch.autograd.grad(loss, student)
    after = distillation.moved(centre, [teacher.mean(dim=1)], momentum)
    yield f"ibot_loss_patch_{step}", loss.detach().numpy(), data[f"ibot_loss_patch_{step}"]
    yield f"ibot_grad_patch_{step}", gradient.numpy(), data[f"ibot_grad_patch_{step}"]
    yield f"ibot_patch_center_{step + 1}", after.numpy(), data[f"ibot_patch_center_{step + 1}"]
