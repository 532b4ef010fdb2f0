"""Images per second of every method's training beside a bare loop: `python -m benchmarks.training`.

Works in a folder with the data and the warm starts of `make leaderboard`. Each run of params.yaml trains for two epochs
of a few steps; the second is timed. Before and after, the same backbone is trained without any method, by as many
images a step: forward, a mean for a loss, backward, a step of SGD. `--table` writes the rows into docs/scale.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import methods
from core import distributed
from core.backbones.net import build
from core.checkpoint import Checkpoint
from core.config import Config
from core.distributed import ProcessGroup
from core.engine import Trainer
from core.errors import UserError
from core.files import write_text
from core.precision import autocast, weights_dtype
from core.rng import Streams
from pipeline import needed
from pipeline.assemble import build_method, training_data
from pipeline.jobs import CACHE, ROOT, Job, jobs
from pipeline.params import Params, read_params
from pipeline.settings import resolve_run
from reports.readme import replace_between
from reports.text import markdown_table, number

ROWS = Path(__file__).with_suffix(".csv")
PAGE = ROOT / "docs/scale.md"
COMMAND = "python -m benchmarks.training --table"
NO_GPU = "CUDA: not run."
UNTRAINED = ("warm_start",)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every run of the first dataset, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=ROOT / "params.yaml")
    parser.add_argument("--runs", nargs="+", help="some of the listed runs, by name; default: all")
    parser.add_argument("--steps", type=int, default=20, help="steps of the timed epoch, and of that before it")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16: the latter two on CUDA only")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images; default: the profile's")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file of rows")
    parser.add_argument("--table", action="store_true", help="write docs/scale.md; measure nothing")
    options = parser.parse_args(argv)
    if options.table:
        write_text(PAGE, replace_between(PAGE.read_text(), "training", table(pd.read_csv(options.rows)), COMMAND))
        return 0
    params = read_params(options.params)
    torch.set_num_threads(params.threads)
    group = distributed.start(options.device)
    size = [f"input.height={options.size[0]}", f"input.width={options.size[1]}"] if options.size else []
    changes = [f"precision={options.precision}", "schedule.epochs=2", f"schedule.iterations={options.steps}", *size]
    for job in jobs(params):
        asked = job.run in (options.runs or [job.run]) and job.run not in UNTRAINED
        if asked and job.dataset == params.datasets[0] and job.seed == params.seeds[0]:
            row = {"device": name_of(group), "threads": params.threads} | measure(job, params, changes, group)
            pd.DataFrame([row]).to_csv(options.rows, mode="a", header=not options.rows.exists(), index=False)
            print(row, flush=True)
    return 0


def name_of(group: ProcessGroup) -> str:
    """The card's name, or ``CPU``."""
    return torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "CPU"


def measure(job: Job, params: Params, changes: Sequence[str], group: ProcessGroup) -> dict[str, Any]:
    """One row: images that the network is trained on in a second, by the method and by the bare loop."""
    run = resolve_run(job.run, job.dataset, params.profile, params.overrides, "train", changes, job.backbone)
    manifest = needed.prepared(job.dataset, None)
    initial = needed.initial_weights(job.dataset, job.backbone, job.seed, params.profile, None, None)
    needs = methods.load(run.trains).needs(run.config)
    data, sizes = training_data(run, manifest, needs, initial, group, CACHE)
    method = build_method(run, sizes, Streams(job.seed), initial)
    steps = run.config.schedule.iterations or 1
    before = bare_rate(run.config, run.config.sampler.batch, steps, group)
    with tempfile.TemporaryDirectory() as place, counting(method.embedder.backbone) as trained_on:
        checkpoint = Checkpoint(Path(place), {"name": run.name})
        progress = Trainer(method, data, run.config, Streams(job.seed), checkpoint, group).fit()
    if progress.failure or len(progress.history) < 2:
        raise UserError(f"{job.name} cannot be measured: {progress.failure or 'it ended early'}")
    batch = sum(trained_on) // (2 * steps)
    rate = batch * steps / progress.history[-1]["seconds_train"]
    bare = (before + bare_rate(run.config, batch, steps, group)) / 2
    return {
        "run": job.run,
        "backbone": job.backbone,
        "precision": run.config.precision,
        "height": run.config.input.height,
        "width": run.config.input.width,
        "images_a_step": batch,
        "images_per_second": rate,
        "bare_images_per_second": bare,
        "share": rate / bare,
    }


@contextmanager
def counting(backbone: nn.Module) -> Iterator[list[int]]:
    """Collects how many images the backbone was given wherever gradients were recorded."""
    counts: list[int] = []

    def count(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            counts.append(len(arguments[0]))

    hook = backbone.register_forward_pre_hook(count)
    try:
        yield counts
    finally:
        hook.remove()


def bare_rate(config: Config, batch: int, steps: int, group: ProcessGroup) -> float:
    """Images per second of forward, backward and a step of SGD over ``batch`` images that lie on the device."""
    backbone = config.backbone
    generator = torch.Generator().manual_seed(0)
    made = build(backbone.name, backbone.pooling, backbone.bn_groups, generator=generator, **backbone.options)
    network = made.to(group.device, weights_dtype(config.precision), memory_format=torch.channels_last).train()
    images = torch.randn(batch, 3, config.input.height, config.input.width, generator=generator)
    images = images.to(group.device, weights_dtype(config.precision), memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    start = 0.0
    for step in range(2 * steps):
        if step == steps:
            start = time.perf_counter()
        with autocast(config.precision, group.device):
            feature = network(images)["feature"]
        optimiser.zero_grad(set_to_none=True)
        loss = feature.float().mean()
        loss.backward()
        optimiser.step()
        float(loss)  # waits for the device, as the engine does when it checks its loss
    return batch * steps / (time.perf_counter() - start)


def table(rows: pd.DataFrame) -> str:
    """A line for every row, and a sentence where no GPU was measured."""
    lines = [
        {
            "run": row["run"],
            "backbone": row["backbone"],
            "device": row["device"] if row["device"] != "CPU" else f"CPU, {row['threads']} threads",
            "precision": row["precision"],
            "size": f"{row['height']}x{row['width']}",
            "images a step": str(row["images_a_step"]),
            "images/s": number(row["images_per_second"]),
            "bare loop": number(row["bare_images_per_second"]),
            "share": number(row["share"], ".2f"),
        }
        for _, row in rows.iterrows()
    ]
    missing = [] if (rows["device"] != "CPU").any() else [NO_GPU]
    return "\n\n".join([markdown_table(lines), *missing])


if __name__ == "__main__":
    raise SystemExit(main())
