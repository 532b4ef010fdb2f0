"""Checks of what all methods share: pseudo-labels, metrics, style statistics, label smoothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from core.clustering import dbscan
from core.jaccard import jaccard_distance
from core.mixstyle import mixed_statistics
from evaluation.ranking import evaluate_ranking
from evaluation.rerank import rerank
from methods.camera_styles.aibn import AIBN
from tests.parity.arrays import Arrays, Comparison, tensor


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


def style_norm(data: Arrays) -> Iterator[Comparison]:
    """AIBN at several shares, in training and in eval mode, and MixStyle, each with its gradient."""
    for case in range(sum(name.startswith("aibn_input_") for name in data)):
        layer = AIBN(data[f"aibn_input_{case}"].shape[1]).double()
        given = {name: data[f"aibn_{name}_{case}"] for name in ("mix", "weight", "bias", "running_mean", "running_var")}
        layer.load_state_dict({name: tensor(value) for name, value in given.items()}, strict=False)
        layer.eps, layer.momentum = float(data["aibn_eps"]), 1 - float(data["aibn_old_share"])
        inputs = tensor(data[f"aibn_input_{case}"]).requires_grad_()
        output = layer(inputs)
        gradients = torch.autograd.grad((output * tensor(data[f"aibn_upstream_{case}"])).sum(), [inputs, layer.mix])
        found = {"output": output.detach(), "grad": gradients[0], "grad_mix": gradients[1]}
        found |= {f"{name}_after": getattr(layer, name) for name in ("running_mean", "running_var")}
        found["output_eval"] = layer.eval()(inputs).detach()
        yield from (
            (f"aibn_{name}_{case}", value.numpy(), data[f"aibn_{name}_{case}"]) for name, value in found.items()
        )

    inputs = tensor(data["mixstyle_input"]).requires_grad_()
    partners = torch.from_numpy(data["mixstyle_permutation"])
    output = mixed_statistics(inputs, partners, tensor(data["mixstyle_lambda"]))
    (gradient,) = torch.autograd.grad((output * tensor(data["mixstyle_upstream"])).sum(), inputs)
    yield "mixstyle_output", output.detach().numpy(), data["mixstyle_output"]
    yield "mixstyle_grad", gradient.numpy(), data["mixstyle_grad"]
