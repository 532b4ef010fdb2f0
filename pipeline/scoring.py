"""Scores of a trained run at every kept epoch under its dataset's protocol, and the audit of its pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

import datasets
import methods
from core.checkpoint import weights_name
from core.config import Patch, resolve
from core.distributed import ProcessGroup
from core.errors import UserError
from core.files import changed
from core.images import ImageStore, load_images
from core.manifest import Manifest
from core.method import Method, embed_all
from core.neighbors import NonFiniteFeatures, as_float_matrix
from core.precision import weights_dtype
from core.rng import Streams
from evaluation import metrics
from evaluation.audit import audit
from evaluation.distances import DistanceBlock, euclidean_blocks
from evaluation.rerank import Reranked
from evaluation.score import Scored, score
from pipeline.assemble import Sizes, build_method, known_cameras
from pipeline.jobs import ROOT
from pipeline.records import (
    NO_SCORES,
    BestScores,
    EpochScores,
    ResultRecord,
    Selection,
    TrainRecord,
    data_record,
    protocol_record,
    provenance_record,
    read_train,
)
from pipeline.settings import Run, scoring_hash


def score_run(
    trained: Path, manifest: Manifest, group: ProcessGroup, cache: Path, rerank: bool = False
) -> tuple[ResultRecord, pd.DataFrame | None, pd.DataFrame]:
    """Score the run in folder ``trained`` on the manifest's query and gallery.

    Returns the result record (``selection.last`` is the headline, ``selection.best_on_test`` the published habit,
    labelled as such), the per-query table of the last epoch (None for a failed run) and one row per epoch of
    training curves: losses, clusters, the audit against ground truth, and test scores where weights were kept.

    Raises UserError when the run is not there or the dataset cannot test it.
    """
    record = read_whole(trained)
    if reason := shared_people(record, manifest):
        raise UserError(f"{trained} cannot be tested on {manifest.name}: {reason}")
    protocol = datasets.protocol_of(manifest.name)
    if rerank and protocol.gallery_shot != "all":
        raise UserError(f"--rerank needs the whole gallery, and {protocol.name} draws one image per person")
    run, method = load_method(record)
    curves = read_history(trained)
    notes = []
    if "search_recall" in curves:
        notes.append(
            f"pseudo-labels by an approximate search ({run.config.clustering.search}), which found "
            f"{curves['search_recall'].min():.2%} of the exact neighbours or more in every epoch"
        )
    if same_data(record, manifest):
        if reason := unlabelled(manifest, run):
            notes.append(f"no audit of the pseudo-labels: {reason}")
        else:
            curves = curves.merge(audit_labels(trained, manifest, run), how="left", on="epoch")
    test = TestSplit(manifest, run, record, group, cache)
    scores, record = score_epochs(test, method, trained, record)
    selection = select(scores, protocol.headline)
    last = scores[max(scores)] if scores and record.status == "ok" else None
    if record.status == "failed":
        selection = selection.model_copy(update={"last": NO_SCORES})
    if rerank and last is not None:  # the method still holds the last epoch's weights
        reranked = EpochScores(epoch=max(scores), **test.score(method, rerank=True).ranking.summary())
        selection = selection.model_copy(update={"last_reranked": reranked})
    if read_whole(trained).files != record.files:
        raise UserError(f"{trained} was trained again while it was scored; evaluate it again")
    data = record.data
    own = record.run.model_copy(update={"dataset": record.run.dataset.removesuffix(f"-{data.number}")})
    result = ResultRecord(
        **{name: getattr(record, name) for name in TrainRecord.model_fields if name not in ("run", "files")},
        files={},  # by its writer
        run=own,
        fold=data.fold,
        world=data.world,
        protocol=protocol_record(protocol),
        scoring=scoring_hash(protocol),
        tested_on=data_record(manifest),
        selection=selection,
        verification=None if last is None else last.verification,
        notes=tuple(notes),
        evaluated_with=provenance_record(group, ROOT),
    )
    return result, None if last is None else last.ranking.per_query, with_scores(curves, scores)


def score_epochs(
    test: TestSplit, method: Method, trained: Path, record: TrainRecord
) -> tuple[dict[int, Scored], TrainRecord]:
    """Scores of every kept epoch, and the record, ``failed`` when an epoch's features are not finite.

    The method is left with the last epoch's weights.
    """
    scores: dict[int, Scored] = {}
    for epoch, file in tqdm(kept_weights(trained, record).items(), "evaluate", leave=False):
        method.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        try:
            scores[epoch] = test.score(method)
        except NonFiniteFeatures as error:
            failed = {"status": "failed", "reason": f"tested after epoch {epoch}: {error}"}
            record = record.model_copy(update=failed)
    return scores, record


def with_scores(curves: pd.DataFrame, scores: Mapping[int, Scored]) -> pd.DataFrame:
    """The training curves with the test scores of the epochs that have any."""
    rows = pd.DataFrame([{"epoch": epoch, **scored.ranking.summary()} for epoch, scored in scores.items()])
    if not len(rows):
        return curves
    rows = rows.drop(columns=["valid_queries", "skipped_queries"])
    return curves.merge(rows, how="outer", on="epoch").sort_values("epoch")


def select(scores: Mapping[int, Scored], headline: str) -> Selection:
    """The last epoch, and the one with the best ``headline`` on test (the earliest of equals)."""
    found = [EpochScores(epoch=epoch, **scores[epoch].ranking.summary()) for epoch in sorted(scores)] or [NO_SCORES]
    pick = max if metrics.BY_NAME[headline].higher_is_better else min
    best = pick(found, key=lambda epoch: epoch.figure(headline)) if len(found) > 1 else found[0]
    return Selection(last=found[-1], best_on_test=BestScores(**best.model_dump(), chosen_by=headline))


def read_whole(trained: Path) -> TrainRecord:
    """What training wrote of a run; raises UserError when the run is not there or its files are not those recorded."""
    record = read_train(trained)
    if fault := changed(trained, record.files):
        raise UserError(
            f"{trained} does not hold what its train.json recorded: {fault}; run `python -m pipeline.train` again, "
            "or wait for the one that is writing there"
        )
    last = f"weights/{weights_name(record.cost.epochs)}"
    if record.status == "ok" and last not in record.files:
        raise UserError(f"{trained} lacks the last epoch, {last}; run `python -m pipeline.train` again")
    return record


def kept_weights(trained: Path, record: TrainRecord) -> dict[int, Path]:
    """The weights that the run recorded, by epoch."""
    names = sorted(name for name in record.files if name.startswith("weights/"))
    return {int(Path(name).stem.removeprefix("epoch_")): trained / name for name in names}


def same_data(record: TrainRecord, manifest: Manifest) -> bool:
    """Whether the run was trained on the very images of the manifest."""
    return bool(record.data.fingerprint == manifest.fingerprint)


def shared_people(record: TrainRecord, manifest: Manifest) -> str | None:
    """Why a run may have been trained on people that the manifest tests, or None.

    The datasets of one collection (and the folds of one dataset) divide the same people differently.
    """
    if same_data(record, manifest):
        return None
    trained, tested = (collections(name) for name in (record.data.name, datasets.split_pair(manifest.name)[0]))
    if not trained & tested:
        return None
    return (
        f"{min(trained & tested)}'s partitions divide the same people differently, so that people of this test split "
        "may be among those that it was trained on"
    )


def collections(name: str) -> set[str]:
    """Of which collections a dataset, or either side of a pair, is a partition."""
    sides = [datasets.split_number(side)[0] for side in datasets.split_pair(name) if side]
    return {datasets.load(side).collection for side in sides if side in datasets.available()} - {""}


def load_method(record: TrainRecord) -> tuple[Run, Method]:
    """The run and its untrained method, from the record that training wrote."""
    fields = record.run.model_dump(exclude={"config_hash"})
    patch = Patch("train.json", fields.pop("config"), paper=True)
    config = resolve([patch], methods.load(record.run.trains).Settings)
    run = Run(**fields, config=config)
    return run, build_method(run, Sizes(record.capacity, record.source_identities), Streams(record.seed), None)


def read_history(trained: Path) -> pd.DataFrame:
    """The epoch history of a run; empty, with its key column, for a run of no epoch."""
    text = (trained / "history.csv").read_text().strip()
    return pd.read_csv(trained / "history.csv") if text else pd.DataFrame({"epoch": []}, dtype=int)


def unlabelled(manifest: Manifest, run: Run) -> str | None:
    """Why there is no ground truth for the images that the run was trained on, or None."""
    people = manifest.split(methods.load(run.trains).needs(run.config).trains_on)["person_id"]
    unknown = int((people <= 0).sum())
    return f"{unknown} of {len(people)} training images of '{manifest.name}' have no person id" if unknown else None


def audit_labels(trained: Path, manifest: Manifest, run: Run) -> pd.DataFrame:
    """The audit of every epoch's pseudo-labels against ``train``'s ground truth; nothing of it reaches training."""
    labels = np.load(trained / "labels.npz")["labels"]
    rows = manifest.split(methods.load(run.trains).needs(run.config).trains_on)
    people, cameras = rows["person_id"].to_numpy(), rows["camera_id"].to_numpy()
    audited = []
    for epoch, current in enumerate(labels):
        previous = labels[epoch - 1] if epoch else None
        values = audit(current, people, cameras if (cameras >= 0).all() else None, previous)
        values = {f"audit_{name}": value for name, value in values.items()}
        audited.append({"epoch": epoch + 1, **values})
    return pd.DataFrame(audited) if audited else pd.DataFrame({"epoch": []}, dtype=int)


class TestSplit:
    """Query and gallery images of a dataset, decoded once, against which methods are scored by its protocol.

    Junk has a split of its own in a manifest, so that the gallery is without it already.
    """

    __test__ = False  # not a pytest class, whatever its name

    def __init__(self, manifest: Manifest, run: Run, record: TrainRecord, group: ProcessGroup, cache: Path) -> None:
        self.group, self.run, self.manifest = group, run, manifest
        self.protocol = datasets.protocol_of(manifest.name)
        self.splits = {"query": self.protocol.query, "gallery": self.protocol.gallery}
        self.mean, self.std = record.input.mean, record.input.std
        self.needs = methods.load(run.trains).needs(run.config)
        size = run.config.input
        rows = {side: manifest.split(split) for side, split in self.splits.items()}
        self.labels = [
            rows[side][column].to_numpy() for column in ("person_id", "camera_id") for side in ("query", "gallery")
        ]
        self.images = {
            side: ImageStore(load_images(manifest, split, size.height, size.width, cache / "images"), group.device)
            for side, split in self.splits.items()
        }

    def score(self, method: Method, rerank: bool = False) -> Scored:
        """Rank gallery for every query with the method's features and distance; touches no RNG and no BN state."""
        query, gallery = self.embed(method)
        for features in (query["feature"], gallery["feature"]):
            as_float_matrix(features)  # raises NonFiniteFeatures
        reranked = Reranked(query["feature"], gallery["feature"]).block if rerank else None
        blocks = reranked or distance_blocks(method, query, gallery)
        return score(self.protocol, blocks, *self.labels, fold=self.manifest.info.get("fold", 0))

    def embed(self, method: Method) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``embed_all`` of the queries and of the gallery."""
        method.to(self.group.device, weights_dtype(self.run.config.precision)).eval()
        method.to(memory_format=torch.channels_last)
        return self._embed(method, "query"), self._embed(method, "gallery")

    def _embed(self, method: Method, side: str) -> dict[str, Tensor]:
        cameras = None
        if "test" in self.needs.cameras:
            cameras = known_cameras(self.manifest, self.splits[side], self.needs)
        statistics = (self.mean, self.std)
        outputs = embed_all(method, self.images[side], self.run.config, statistics, self.group, cameras)
        if cameras is not None:
            outputs["camera"] = torch.as_tensor(cameras)
        return outputs


def distance_blocks(method: Method, query: dict[str, Tensor], gallery: dict[str, Tensor]) -> DistanceBlock:
    """The method's distance between ``embed_all`` outputs, in blocks of queries; Euclidean where it has none."""
    if type(method).distance is Method.distance:
        return euclidean_blocks(query["feature"].float(), gallery["feature"].float())

    def block(rows: slice) -> Tensor:
        part = {name: value[rows] for name, value in query.items()}
        distance = method.distance(part, gallery)
        assert distance is not None
        return distance.cpu()

    return block
