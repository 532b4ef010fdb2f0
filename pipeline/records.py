"""What stages leave for one another and for the tables: the models of initial.json, train.json, result.json
and model.json.

Each has one writer and one reader here. A file that lacks a key, has another or a value of the wrong type is an error
that names file and key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import create_model

from core.data import Needs
from core.errors import UserError
from core.files import write_json
from core.manifest import Manifest
from core.provenance import provenance
from core.validation import Model, Record, RecordError, read, read_json
from evaluation import metrics
from evaluation.protocol import Protocol
from evaluation.verification import Verification
from pipeline.settings import Run

TRAINED, SCORED, STARTED, PUBLISHED = "train.json", "result.json", "initial.json", "model.json"


class InitialRecord(Record):
    """The weights that training starts from, and the pixel statistics per channel that they were made with."""

    source: str
    sha256: str | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images_seen: int = 0  # in pre-training by a method, between the warm start or nothing and these weights
    files: dict[str, str]  # hashes of what lies beside the record, by name


class RunRecord(Record):
    """What was run: ``settings.Run``, its configuration as plain values, and that configuration's hash."""

    name: str
    method: str
    variant: str
    backbone: str
    profile: str
    dataset: str
    config: dict[str, Any]
    config_hash: str
    finetuned_by: str | None = None

    @property
    def trains(self) -> str:
        """The method whose code trained, as in ``settings.Run``."""
        return self.finetuned_by or self.method

    @property
    def setting(self) -> tuple[str, str, str]:
        """What a run shares with its warm start and with the runs it is compared with."""
        return self.dataset, self.profile, self.backbone


class NeedsRecord(Record):
    """What the method may see: where it uses cameras (loss, clustering, sampler, test), and whose ids it is given."""

    cameras: tuple[str, ...]
    identities: str | bool | None


class DataRecord(Record):
    """A manifest's name, fingerprint, number among several folds or drawn worlds, and facts for people."""

    name: str
    fingerprint: str
    fold: int | None = None
    world: int | None = None
    info: dict[str, Any] = {}  # noqa: RUF012

    @property
    def title(self) -> str:
        """The dataset as params.yaml lists it."""
        return self.name if self.number is None else f"{self.name}-{self.number}"

    @property
    def number(self) -> int | None:
        """Which fold or world it is, of data that has several."""
        return self.world if self.fold is None else self.fold


class SourceRecord(Record):
    """Where initial weights came from, their hash, and the images that a method saw to pre-train them."""

    source: str
    sha256: str | None
    images_seen: int = 0


class InputRecord(Record):
    """Pixel statistics per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class CostRecord(Record):
    """What a run took: seconds by phase, and the peak memory of the process or of the device in bytes."""

    images_seen: int
    source_images_seen: int = 0
    seconds_total: float
    epochs: int = 0
    seconds: dict[str, float] = {}  # noqa: RUF012
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None

    @property
    def all_images_seen(self) -> int:
        """Images of the target and of the source."""
        return self.images_seen + self.source_images_seen


class ProvenanceRecord(Record):
    """Commit, libraries and machine."""

    commit: str | None
    device: str
    dirty: bool | None = None
    python: str = ""
    libraries: dict[str, str] = {}  # noqa: RUF012
    platform: str = ""
    threads: int = 0
    processes: int = 1


class TrainRecord(Record):
    """train.json. ``status`` is ``failed`` where training ended without a model, for ``reason``."""

    status: Literal["ok", "failed"]
    reason: str | None
    run: RunRecord
    seed: int
    capacity: int
    source_identities: int | None = None  # people of the source split, of a method with a source
    needs: NeedsRecord
    data: DataRecord
    initial: SourceRecord
    input: InputRecord
    cost: CostRecord
    code: str
    key: str  # digest of all that decides the run's numbers (``assemble.run_key``)
    provenance: ProvenanceRecord
    files: dict[str, str]  # hashes of what lies beside the record, by name


class ProtocolRecord(Record):
    """The protocol that scored, and what it judges by."""

    name: str
    version: int
    metric: str
    headline: str
    folds: int


Figures: Any = create_model("Figures", __base__=Record, **dict.fromkeys(metrics.BY_NAME, (float | None, ...)))


class EpochScores(Figures):
    """The figures of one epoch, as fractions; None where the protocol defines none, or there is no model."""

    epoch: int | None
    valid_queries: int | None
    skipped_queries: int | None

    def figure(self, metric: str) -> float | None:
        """The value of a metric."""
        value: float | None = getattr(self, metric)
        return value


class BestScores(EpochScores):
    """The figures of the epoch that is best on the test split by the figure ``chosen_by``."""

    chosen_by: str


class Selection(Record):
    """The last epoch is the headline; the best on test is the habit of papers, and last_reranked an extra."""

    last: EpochScores
    best_on_test: BestScores
    last_reranked: EpochScores | None = None

    def figure(self, rule: str, metric: str) -> float | None:
        """The value of a metric under a selection rule, ``last`` or ``best_on_test``."""
        chosen: EpochScores = getattr(self, rule)
        return chosen.figure(metric)


class ResultRecord(TrainRecord):
    """result.json: what training recorded, and the scores. ``quarantined``, for ``reason``, is never written: readers
    set it where the files beside it contradict the record."""

    status: Literal["ok", "failed", "quarantined"]  # type: ignore[assignment]
    fold: int | None
    world: int | None  # whose people, warm start and training are its own
    protocol: ProtocolRecord
    scoring: str  # hash of all that decides the scores beside the run (``settings.scoring_hash``)
    tested_on: DataRecord
    selection: Selection
    verification: Verification | None = None  # of the last epoch; None where it has no scores
    notes: tuple[str, ...] = ()
    evaluated_with: ProvenanceRecord


class NearestRecord(Record):
    """What the report shows of a run's ranking, on the data of that ``fingerprint``.

    key, scoring: those of the result that it belongs to. lists: for each query the rows of the gallery that are nearest
    to it. cameras: C numbers, ascending; rank1: (C, C) shares of the ``asked`` queries of a camera whose nearest image
    under another camera shows their person, None where none was asked.
    """

    key: str
    scoring: str
    fingerprint: str
    lists: tuple[tuple[int, ...], ...]
    cameras: tuple[int, ...]
    rank1: tuple[tuple[float | None, ...], ...]
    asked: tuple[tuple[int, ...], ...]


class PublishedRecord(TrainRecord):
    """model.json: what training recorded, and how the weights of ``epoch`` did on the dataset's own test, if tested."""

    name: str
    epoch: int
    licence: str | None  # of the weights
    protocol: ProtocolRecord | None
    scores: EpochScores | None
    verification: Verification | None


class ExternalRecord(Record):
    """result.json of a system from outside, of which nothing but its features is known.

    run: its name, as method too; profile and configuration are not its own. features: the hash of the file. seed: 0, of
    its one result. selection: what was scored is both last and best.
    """

    status: Literal["ok"]
    run: RunRecord
    seed: int
    fold: int | None
    world: int | None
    about: str
    features: str
    normalised: bool
    protocol: ProtocolRecord
    scoring: str
    tested_on: DataRecord
    selection: Selection
    verification: Verification | None
    evaluated_with: ProvenanceRecord
    files: dict[str, str]  # hashes of what lies beside the record, by name


class NotRunRecord(Record):
    """What tables know of a job that has no result; it is never written."""

    status: Literal["not run"]
    reason: None
    run: RunRecord
    needs: NeedsRecord
    fold: int | None
    world: int | None
    seed: int


def adaptive(record: TrainRecord | NotRunRecord) -> bool:
    """Whether a run is domain-adaptive: it trains with ids of the source, or from what a method has pre-trained."""
    return record.needs.identities == "source" or record.run.finetuned_by is not None


NO_SCORES = EpochScores(**dict.fromkeys(EpochScores.model_fields))


def data_record(manifest: Manifest) -> DataRecord:
    """What a record says of the data."""
    info = dict(manifest.info)
    numbers = {name: info.get(name) for name in ("fold", "world")}
    return DataRecord(name=manifest.name, fingerprint=manifest.fingerprint, **numbers, info=info)


def run_record(run: Run) -> RunRecord:
    """What a record says of the run."""
    return read(RunRecord, run.record(), "the run")


def needs_record(needs: Needs) -> NeedsRecord:
    """What a record says of what a method may see."""
    return NeedsRecord(cameras=tuple(sorted(needs.cameras)), identities=needs.labelled)


def provenance_record(*arguments: Any) -> ProvenanceRecord:
    """``core.provenance.provenance`` as a record."""
    return ProvenanceRecord(**provenance(*arguments))


def protocol_record(protocol: Protocol) -> ProtocolRecord:
    """What a record says of the protocol."""
    return ProtocolRecord(**{name: getattr(protocol, name) for name in ProtocolRecord.model_fields})


def write_record(record: Record, file: Path) -> None:
    """Write a record as indented JSON, whole or not at all."""
    write_json(file, record.model_dump(mode="json"))


def read_record(model: type[Model], file: Path, missing: str) -> Model:
    """The record that ``write_record`` left; raises UserError with its fault, or ``missing``: what to run."""
    if not file.is_file():
        raise UserError(missing)
    try:
        return read_json(model, file)
    except RecordError as error:
        raise RecordError(f"{error}; is it of another version of the suite? {missing.partition('; ')[2]}") from error


def read_train(trained: Path) -> TrainRecord:
    """What training wrote of a run; raises UserError when the run is not there."""
    missing = f"{trained} holds no trained run; run `python -m pipeline.train` first"
    return read_record(TrainRecord, trained / TRAINED, missing)


def read_external(folder: Path) -> ExternalRecord:
    """What ``external`` wrote of a system from outside, unchecked; raises UserError when it is not there."""
    file = folder / SCORED
    return read_record(ExternalRecord, file, f"{file} does not exist; run `python -m pipeline.external` first")


def read_result(evaluated: Path) -> ResultRecord:
    """What evaluation wrote of a run, unchecked; raises UserError when it is not there."""
    file = evaluated / SCORED
    return read_record(ResultRecord, file, f"{file} does not exist; run `python -m pipeline.evaluate` first")


def read_nearest(file: Path) -> NearestRecord:
    """The nearest images of a run; raises UserError when the file is not there."""
    return read_record(NearestRecord, file, f"{file} does not exist; run `python -m pipeline nearest` first")
