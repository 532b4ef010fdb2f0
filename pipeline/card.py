"""The model card: a README.md that says what a published model is, how it was made, how good it is, and its limits.

Every number comes from the run's own records; what nobody stated is said to be unknown.
"""

from __future__ import annotations

from typing import Any

import yaml

import methods
from core.validation import read_mapping
from evaluation import metrics
from pipeline.records import PublishedRecord

DRAWN = "rendered"


def card(model: PublishedRecord, size: tuple[int, int], onnx: bool) -> str:
    """The card of a model that takes images of ``size`` (height, width)."""
    sections = [
        front_matter(model),
        f"# {model.name}",
        purpose(model),
        use(size, onnx),
        *("## Test results", results(model)),
        *("## Which distance means the same person", thresholds(model)),
        *("## Method", method(model)),
        *("## Data", data(model)),
        *("## How it was trained", training(model)),
        *("## Limits", limits(model)),
        *("## Licence", licence(model)),
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(model: PublishedRecord) -> str:
    """What registries of models read."""
    fields = {
        "license": model.licence or "unknown",
        "tags": ["person-re-identification", "image-feature-extraction", model.run.method, model.run.backbone],
        "datasets": [model.data.title],
        "metrics": [metric.name for metric in metrics.BOARD],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False).strip()}\n---"


def purpose(model: PublishedRecord) -> str:
    """What it does and for whom."""
    return (
        "This model turns a crop of one person into a vector. Crops of the same person, seen by different cameras, "
        "should have vectors that lie near each other.\n\n"
        "**Intended use.** Research on person re-identification: comparison of methods, and search in collections of "
        "images whose people agreed to it. It was not made, and is not fit, to identify or to watch people."
    )


def use(size: tuple[int, int], onnx: bool) -> str:
    """Commands and code."""
    lines = [
        "## How to use it",
        "From the root of the suite, with this folder as `MODEL`:",
        "```\npython -m pipeline search --model MODEL --query people --gallery crops --html strips.html\n```",
        '```python\nfrom pipeline.model import load_model\nmodel = load_model("MODEL")\n'
        'found = model.embed(["a.jpg", "b.jpg"])\nmodel.distance(found, found)\n```',
        f"Images are resized to {size[0]} x {size[1]} (height x width) and normalised by `load_model` itself.",
    ]
    if onnx:
        lines.append(
            f"`model.onnx` takes `images` (N, 3, {size[0]}, {size[1]}), float32 RGB from 0 to 255, already resized, "
            "and gives the same numbers to 1e-4."
        )
    return "\n\n".join(lines)


def results(model: PublishedRecord) -> str:
    """Figures of the dataset's own test."""
    if model.scores is None or model.protocol is None:
        return "The run was not tested."
    rows = [
        f"| {metric.title} | {format(metric.scale * value, metric.form)} |"
        for metric in metrics.BOARD
        if (value := model.scores.figure(metric.name)) is not None
    ]
    told = (
        f"Test split of {model.data.title}, protocol {model.protocol.name} version {model.protocol.version}, last "
        f"epoch ({model.epoch}), {model.scores.valid_queries} queries, in percent. One run: seeds and worlds differ."
    )
    return "\n".join([told, "", "| figure | value |", "|---|---|", *rows])


def thresholds(model: PublishedRecord) -> str:
    """Verification figures with their thresholds."""
    found = model.verification
    if found is None:
        return "Unknown: the run was not tested."
    rows = [f"| equal error rate {100 * found.eer:.2f} % | {found.eer_threshold:.4f} |"]
    for point in found.at:
        if point.threshold is not None and point.tpr is not None:
            rates = f"{100 * point.fpr:g} % false matches, {100 * point.tpr:.1f} % of true ones found"
            rows.append(f"| {rates} | {point.threshold:.4f} |")
    told = (
        f"Over {found.same_pairs} pairs of one person and {found.other_pairs} pairs of different people in the same "
        "test. A pair is taken for one person when its distance is at most the threshold. On other cameras, crops or "
        "people the rates will differ: measure them again before relying on a threshold."
    )
    return "\n".join([told, "", "| rates | threshold |", "|---|---|", *rows])


def method(model: PublishedRecord) -> str:
    """Whose idea it is, as far as the method's folder says."""
    file = methods.folder(model.run.method) / "published.yaml"
    paper: dict[str, Any] = read_mapping(file)["paper"] if file.is_file() else {}
    known = [f"{key}: {value}" for key, value in paper.items() if value]
    told = f"`{model.run.method}`, variant `{model.run.variant}`, on the backbone `{model.run.backbone}`."
    return f"{told} Paper: {'; '.join(known)}." if known else told


def data(model: PublishedRecord) -> str:
    """What it was trained on, and what of the labels it saw."""
    drawn = "Its people are drawn by the suite's renderer; no image shows a real person." * (model.data.name == DRAWN)
    ids = f"person ids of {model.needs.identities}" if model.needs.identities else "no person ids"
    cameras = f"camera labels ({', '.join(model.needs.cameras)})" if model.needs.cameras else "no camera labels"
    lines = [
        f"Trained on {model.data.title} (fingerprint `{model.data.fingerprint}`). {drawn}",
        f"Training saw {ids} and {cameras}.",
        f"It started from: {model.initial.source} (sha256 `{model.initial.sha256}`).",
    ]
    return "\n".join(line.strip() for line in lines)


def training(model: PublishedRecord) -> str:
    """Settings, cost and provenance."""
    config = yaml.safe_dump(model.run.config, sort_keys=True).strip()
    made = model.provenance
    return (
        f"Profile `{model.run.profile}`, seed {model.seed}, {model.epoch} epochs, {model.cost.all_images_seen} images "
        f"seen in {model.cost.seconds_total:.0f} s on {made.device}; commit `{made.commit or 'unknown'}`"
        f"{' with changes' if made.dirty else ''}. The whole record is in `model.json`.\n\n"
        f"<details><summary>Settings</summary>\n\n```yaml\n{config}\n```\n</details>"
    )


def limits(model: PublishedRecord) -> str:
    """What it should not be trusted with."""
    drawn = " Having seen drawn people only, it does not transfer to photographs." * (model.data.name == DRAWN)
    return (
        "- It compares clothing, build and what is carried; people who changed clothes are other people to it.\n"
        f"- It was tested on {model.data.title} alone. Other cameras, countries, seasons and crops lower every figure, "
        f"and by how much is unknown.{drawn}\n"
        "- Errors are not the same for all groups of people, and were not measured by group.\n"
        "- A distance below a threshold is no proof of identity."
    )


def licence(model: PublishedRecord) -> str:
    """Of the weights; that of the data is its owner's."""
    if model.licence:
        return f"Weights: {model.licence}. The suite's code: Apache-2.0."
    return (
        f"No licence of the weights is stated. The terms of {model.data.name} and of the initial weights apply; ask "
        "their owners before using them. The suite's code: Apache-2.0."
    )
