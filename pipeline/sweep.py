"""Run every job of params.yaml without DVC, several at once, on this machine or on a cluster.

What was made by the same code, settings, data, initial weights, threads and device is left alone: a change of the
evaluation scores a run again and does not train it. Each job is a process of
its own, which ends with the sweep; jobs are dealt out over the visible CUDA devices. One that fails or is killed is
reported with its log, and the others go on. `--engine submitit` and `--engine ray` give the same jobs to SLURM or Ray
(docs/cluster.md). With `--dvc` DVC makes data and warm starts first, and is told of the runs afterwards, so that
`dvc repro`, which runs one stage at a time, finds them done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

import datasets
import methods
from core.config import digest
from core.errors import UserError
from core.files import changed
from core.manifest import read_manifest
from core.tracking import check_tracker
from core.validation import read_mapping
from pipeline import cli, dvc_stages
from pipeline.assemble import Computing, run_key, stream_seed
from pipeline.cluster import ENGINES, Cluster, run_tasks
from pipeline.initial import read_initial
from pipeline.jobs import Job, data_folder, initial_folder, jobs
from pipeline.params import DRAWN, Params, Rendered
from pipeline.processes import LOGS, Step, run_all
from pipeline.records import TrainRecord, read_result, read_train
from pipeline.settings import finetuning, resolve_run, scoring_hash, split_name

Left = TypeVar("Left", bound=TrainRecord)


class JobsFailed(UserError):
    """Some jobs ended with an error; the message names them and their logs."""


@dataclass(frozen=True)
class Machine:
    """How jobs are run: how many at once, on what device, with how many threads, by which settings, watched how.

    cluster: that jobs are given to, None for processes of this machine. start_from: what is said to
    ``pretrain --start-from``; None leaves the profile's.
    """

    parallel: int
    device: str
    threads: int
    params: Path
    profile: str
    track: str | None = None
    cluster: Cluster | None = None
    start_from: str | None = None

    @property
    def kind(self) -> str:
        """``cuda`` or ``cpu``: what jobs compute on."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def run(self, work: Mapping[str, Sequence[Step]]) -> dict[str, str]:
        """Run each job's steps; return why each failed one failed."""
        if self.cluster:
            return run_tasks(work, self.parallel, self.cluster)
        return run_all(work, self.parallel, self.device)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when every job has a result, a recorded failure of training included."""
    arguments = cli.parser("sweep", __doc__ or "")
    add_arguments(arguments)
    arguments.add_argument("--dvc", action="store_true", help="hand the runs of params.yaml over to DVC")
    options = arguments.parse_args(argv)
    params = cli.read_params(options)
    if options.dvc:
        check_dvc(options, params)
        run_for_dvc(jobs(params), params, machine(options, params))
    else:
        run_missing(jobs(params), params, machine(options, params))
    return 0


def add_arguments(arguments: Any) -> None:
    """What a sweep and an ablation share."""
    arguments.add_argument("--jobs", type=int, default=1, help="jobs at once; each takes --threads CPU threads")
    engines = ("local", *ENGINES)
    arguments.add_argument("--engine", choices=engines, default="local", help="what runs them: docs/cluster.md")
    arguments.add_argument("--options", type=Path, help="of a cluster: YAML of submitit's parameters, or of Ray's")
    arguments.add_argument("--group", type=cli.positive, help="of a cluster: most jobs in a task; default: JOBS tasks")
    arguments.add_argument("--retries", type=int, help="of a cluster: how often a lost job is begun again; default: 2")
    arguments.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file")
    cli.add_worlds_argument(arguments)
    arguments.add_argument("--profile", help="a file of profiles/; default: params.yaml's")
    arguments.add_argument("--start-from", help="as of `pretrain`, for warm starts that are not there yet")
    cli.add_track_argument(arguments)
    cli.add_machine_arguments(arguments)


def machine(options: Any, params: Params) -> Machine:
    """The machine that the options of ``add_arguments`` describe."""
    threads = cli.threads(options, params)
    check_tracker(options.track)
    cluster = None if options.engine == "local" else cluster_of(options, threads)
    for name in ("options", "group", "retries"):
        if cluster is None and getattr(options, name) is not None:
            raise UserError(f"--{name} is of a cluster: leave it out, or give --engine submitit or --engine ray too")
    return Machine(
        options.jobs,
        options.device,
        threads,
        options.params,
        params.profile,
        options.track,
        cluster,
        options.start_from,
    )


def cluster_of(options: Any, threads: int) -> Cluster:
    """The cluster that the options of ``add_arguments`` describe."""
    if options.device == "auto":
        raise UserError(
            f"--engine {options.engine} needs --device cuda or --device cpu: this machine may have another than those "
            "that jobs run on, and what they compute on is part of what makes a result current"
        )
    retries = {} if options.retries is None else {"retries": options.retries}
    more = read_mapping(options.options) if options.options else {}
    return Cluster(options.engine, threads, int(options.device == "cuda"), options.group, options=more, **retries)


def check_dvc(options: Any, params: Params) -> None:
    """Raise UserError where a run would not be what dvc.yaml's command would make."""
    usual = {"worlds": None, "profile": None, "start_from": None, "threads": None, "device": "auto"}
    other = [f"--{name.replace('_', '-')}" for name, value in usual.items() if getattr(options, name) != value]
    if options.params.resolve() != Path("params.yaml").resolve():
        other.append("--params")
    if other:
        raise UserError(
            f"--dvc runs what params.yaml says, which is all that DVC knows of: leave {', '.join(other)} out"
        )
    if params.launch != "python":
        raise UserError(
            f"--dvc starts plain processes, but params.yaml asks for `launch: {params.launch}`: use `dvc repro`"
        )


def run_for_dvc(wanted: Sequence[Job], params: Params, on: Machine) -> None:
    """Run what is missing after what DVC makes itself, and tell DVC of every run that is current then."""
    dvc_stages.make(dvc_stages.beginnings(wanted, params))
    failed: JobsFailed | None = None
    try:
        run_missing(wanted, params, on)
    except JobsFailed as some:
        failed = some
    dvc_stages.take(dvc_stages.runs([job for job in wanted if not job_steps(job, params, on)], params))
    if failed:
        raise failed


def run_missing(wanted: Sequence[Job], params: Params, on: Machine) -> None:
    """Prepare, pre-train, train and evaluate what has no current result yet.

    Raises JobsFailed after all that can be done is done, naming each job that failed and its log.
    """
    failed = on.run(preparations(wanted, params, on))
    ready = [job for job in dict.fromkeys(wanted) if f"prepare-{job.dataset}" not in failed]
    failed |= on.run(warm_starts(ready, on))
    ready = [job for job in ready if f"pretrain-{job.dataset}-{job.backbone}-{job.seed}" not in failed]
    failed |= on.run(pretrainings(ready, on))
    ready = [job for job in ready if f"pretrain-{job.name}" not in failed]
    steps = {job.name: job_steps(job, params, on) for job in ready}
    failed |= on.run({name: listed for name, listed in steps.items() if listed})
    if failed:
        waiting = len(set(wanted)) - len(ready)
        also = f" ({waiting} more lack what these should have made)" if waiting else ""
        told = [f"  {LOGS / f'{name}.log'}: {why}" for name, why in failed.items()]
        raise JobsFailed(f"failed: {len(failed)}{also}. The same command does again what failed.\n" + "\n".join(told))


def preparations(wanted: Sequence[Job], params: Params, on: Machine) -> dict[str, list[Step]]:
    """The datasets that are not there yet."""
    steps = {}
    drawn = params.rendered
    drawing = ["--size", drawn.size, "--device", on.kind]
    for dataset in dict.fromkeys(job.dataset for job in wanted):
        if (data_folder(dataset) / "dataset.json").is_file():
            refuse_other_world(dataset, drawn)
        else:
            place = ["--root", params.data_root, "--out", str(data_folder(dataset))]
            steps[f"prepare-{dataset}"] = [Step("prepare", ["--dataset", dataset, *place, *drawing])]
    return steps


def warm_starts(wanted: Sequence[Job], on: Machine) -> dict[str, list[Step]]:
    """Initial weights that are not there yet; they are not made again when settings change (DVC does that)."""
    steps = {}
    for dataset, backbone, seed in dict.fromkeys((job.dataset, job.backbone, job.seed) for job in wanted):
        if not (initial_folder(dataset, backbone, seed) / "initial.json").is_file():
            where = ["--dataset", dataset, "--backbone", backbone, "--seed", str(seed)]
            where += ["--params", str(on.params), "--profile", on.profile]
            where += ["--start-from", on.start_from] if on.start_from else []
            steps[f"pretrain-{dataset}-{backbone}-{seed}"] = [Step("pretrain", [*where, *computing(on)])]
    return steps


def pretrainings(wanted: Sequence[Job], on: Machine) -> dict[str, list[Step]]:
    """What methods pre-train and is not there yet; as with warm starts, settings that change do not make it again."""
    steps = {}
    for job in dict.fromkeys(wanted):
        if finetuning(split_name(job.run)[0]) and not (start_of(job) / "initial.json").is_file():
            where = ["--method", job.run, "--dataset", job.dataset, "--backbone", job.backbone, "--seed", str(job.seed)]
            where += ["--params", str(on.params), "--profile", on.profile]
            steps[f"pretrain-{job.name}"] = [Step("pretrain", [*where, *computing(on)])]
    return steps


def start_of(job: Job) -> Path:
    """Where the weights lie that the job starts from."""
    pretrained_by = job.run if finetuning(split_name(job.run)[0]) else None
    return initial_folder(job.dataset, job.backbone, job.seed, pretrained_by)


def refuse_other_world(dataset: str, drawn: Rendered) -> None:
    """Raise UserError when the prepared world is not the one that params.yaml asks for."""
    name, number = datasets.split_number(dataset)
    info = json.loads((data_folder(dataset) / "dataset.json").read_text()).get("info", {})
    asked = {**drawn.model_dump(), **({} if number is None else {"world": number})}
    there = {key: info.get(key) for key in asked}
    if name == DRAWN and there != asked:
        folder = data_folder(dataset)
        raise UserError(
            f"{folder} holds {there}, but params.yaml asks for {asked}; to prepare it again, remove {folder} and "
            f"initial/{dataset}-*, which were made from it"
        )


def job_steps(job: Job, params: Params, on: Machine) -> list[Step]:
    """Training and evaluation, as far as what they left is not what they would make now."""
    where = ["--method", job.run, "--dataset", job.dataset, "--seed", str(job.seed), "--backbone", job.backbone]
    where += ["--params", str(on.params), *computing(on)]
    watched = ["--track", on.track] if on.track else []
    train, evaluate = Step("train", [*where, "--profile", on.profile, *watched]), Step("evaluate", where)
    run, result = keys(job, params, on)
    scored = left_by(read_result, job.evaluated)
    if scored and (scored.key, scored.scoring) == (run, result):
        return []
    trained = left_by(read_train, job.trained)
    return [evaluate] if trained and trained.key == run else [train, evaluate]


def computing(on: Machine) -> list[str]:
    """Device and threads as entry points take them."""
    return ["--device", on.device, "--threads", str(on.threads)]


def keys(job: Job, params: Params, on: Machine) -> tuple[str, str]:
    """What names all that decides the job's run, and its result beside the run: a change of it makes them stale."""
    run = resolve_run(job.run, job.dataset, params.profile, params.overrides, backbone=job.backbone)
    needs = methods.load(run.trains).needs(run.config)
    manifest = read_manifest(data_folder(job.dataset))
    initial = read_initial(start_of(job)).sha256 if needs.initial else None
    seed = stream_seed(manifest, job.seed)
    key = run_key(run, manifest, needs, initial, seed, Computing(on.kind, on.threads, 1))
    return digest(key), scoring_hash(datasets.protocol_of(manifest.name))


def left_by(read: Callable[[Path], Left], folder: Path) -> Left | None:
    """The record in a folder whose files are those that it speaks of; None where there is none, or another's."""
    try:
        record = read(folder)
    except UserError:  # not there, or of another version of the suite
        return None
    return None if changed(folder, record.files) else record


if __name__ == "__main__":
    cli.run_main(main)
