"""SAL (docs/methods/sal.md): its properties; MAR's numbers are in tests/golden/mar_losses.npz."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.data import Batch, Labels, Needs, TrainingData
from core.distributed import ProcessGroup
from core.engine import Trainer
from core.manifest import Manifest, read_manifest
from core.memory import unit as to_unit
from core.sampling import shuffled_batches
from methods.sal.losses import bridge_contrast, bridges, camera_statistics, log_multilabels, reference_agents
from methods.sal.memory import SoftLabels
from methods.sal.method import SAL, Settings
from methods.sal.pairs import agreement, all_pairs, first_threshold, largest, mined, pair_loss
from pipeline.settings import resolve_run
from tests.adaptation import train_small
from tests.methods.draws import normal, unit
from tests.replay.people import write_dataset

PEOPLE, DIM, IMAGES = 6, 8, 10
ALONE = ProcessGroup(0, 1, torch.device("cpu"))
ALL_ON = {"camera_weight": 1e-3, "pairs_from": 0, "mining_share": 0.2}
OFF = {"reference_weight": 0.0, "consistency_weight": 0.0, "bridge_weight": 0.0}


def sal(generator: torch.Generator, **settings: object) -> SAL:
    """With drawn agents, and what 30 drawn images of three cameras start it with."""
    embedder: Any = nn.Identity()
    embedder.dim = DIM
    method = SAL(SimpleNamespace(settings=Settings(**{**ALL_ON, **settings})), embedder, 1, PEOPLE)
    method.agents = nn.Parameter(3 * normal(generator, PEOPLE, DIM))
    method.begin(unit(generator, 30, DIM), np.arange(30) % 3)
    return method


def batch_of(people: Tensor | None = None) -> Batch:
    rows = torch.arange(IMAGES)
    source = Batch([], rows, rows % PEOPLE if people is None else people, None, {}, 0)
    return Batch([], rows + 5, rows + 5, rows % 3, {}, 0, source=source)


def outputs(method: SAL, generator: torch.Generator) -> dict[str, Tensor]:
    """Unit features of the source and of both views, leaves of the graph."""
    features = {name: unit(generator, IMAGES, DIM) for name in ("source_feature", "feature_0", "feature_1")}
    features = {name: value.requires_grad_() for name, value in features.items()}
    return {**features, "source_logits": method.source_logits(features["source_feature"])}


def test_the_length_of_an_agent_changes_no_loss(generator) -> None:
    method = sal(generator)
    output = outputs(method, generator)
    before = method.loss(output, batch_of())
    with torch.no_grad():
        method.agents *= torch.rand(PEOPLE, 1, generator=generator, dtype=torch.float64) + 0.5
    after = method.loss({**output, "source_logits": method.source_logits(output["source_feature"])}, batch_of())
    assert list(before) == ["source", "reference", "consistency", "bridge", "camera"]
    for name in before:
        torch.testing.assert_close(before[name], after[name])


def test_agents_learn_from_the_source_loss_alone_and_no_target_loss_reaches_the_source(generator) -> None:
    method = sal(generator)
    output = outputs(method, generator)
    leaves = [method.agents, output["source_feature"], output["feature_0"], output["feature_1"]]
    reached = {}
    for name, term in method.loss(output, batch_of()).items():
        found = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
        reached[name] = [gradient is not None and bool(gradient.any()) for gradient in found]
    assert reached == {
        "source": [True, True, False, False],
        "reference": [False, True, True, False],
        "consistency": [False, False, True, False],
        "bridge": [False, False, True, True],
        "camera": [False, False, True, False],
    }


def test_a_multilabel_sums_to_one_and_the_bridge_of_a_certain_one_is_its_agent(generator) -> None:
    agents = unit(generator, PEOPLE, DIM)
    log_q = log_multilabels(unit(generator, IMAGES, DIM), agents, 30.0)
    torch.testing.assert_close(log_q.exp().sum(dim=1), torch.ones(IMAGES, dtype=torch.float64))
    torch.testing.assert_close(bridges(log_q, agents).norm(dim=1), torch.ones(IMAGES, dtype=torch.float64))
    certain = torch.full((PEOPLE, PEOPLE), -torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    torch.testing.assert_close(bridges(certain, agents), agents)


def test_the_bridge_loss_is_symmetric_positive_and_zero_for_one_image(generator) -> None:
    agents = unit(generator, PEOPLE, DIM)
    views = unit(generator, IMAGES, DIM), unit(generator, IMAGES, DIM)
    log_q = tuple(log_multilabels(view, agents, 30.0) for view in views)
    loss = bridge_contrast(views, log_q, agents, 0.1)
    assert loss > 0
    torch.testing.assert_close(loss, bridge_contrast(views[::-1], log_q[::-1], agents, 0.1))
    alone = bridge_contrast((views[0][:1], views[1][:1]), (log_q[0][:1], log_q[1][:1]), agents, 0.1)
    assert float(alone) == 0


def test_the_bridge_loss_asks_for_the_image_that_the_other_views_bridge_comes_from(generator) -> None:
    """Written out image by image: with tau 0.1, of both directions."""
    agents = unit(generator, PEOPLE, DIM)
    first, second = unit(generator, IMAGES, DIM), unit(generator, IMAGES, DIM)
    q = {view: log_multilabels(features, agents, 30.0) for view, features in (("a", first), ("b", second))}
    found = []
    for features, other in ((first, q["b"]), (second, q["a"])):
        for i in range(IMAGES):
            scores = [float(features[i] @ F.normalize(other[j].exp() @ agents, dim=0)) / 0.1 for j in range(IMAGES)]
            found.append(torch.tensor(scores).logsumexp(0) - scores[i])
    expected = float(torch.stack(found).mean())
    assert float(bridge_contrast((first, second), (q["a"], q["b"]), agents, 0.1)) == pytest.approx(expected, rel=1e-5)


def test_a_first_visit_copies_the_multilabel_a_later_one_keeps_nine_tenths_and_others_stay(generator) -> None:
    memory = SoftLabels.empty(5, PEOPLE, torch.zeros(1, dtype=torch.float64))
    first, second = (normal(generator, 2, PEOPLE).softmax(dim=1) for _ in range(2))
    rows = torch.tensor([3, 1])
    assert torch.equal(memory.moved(rows, first), first)
    assert not memory.seen.any()
    memory.store(rows, memory.moved(rows, first))
    memory.store(rows, memory.moved(rows, second))
    torch.testing.assert_close(memory.rows[rows], 0.9 * first + 0.1 * second)
    torch.testing.assert_close(memory.rows[rows].sum(dim=1), torch.ones(2, dtype=torch.float64))
    assert not memory.rows[[0, 2, 4]].any()


def test_agreement_is_one_for_equal_labels_alone_and_zero_for_disjoint_ones(generator) -> None:
    q = normal(generator, 5, PEOPLE).softmax(dim=1)
    found = agreement(q, q)
    torch.testing.assert_close(found.diagonal(), torch.ones(5, dtype=torch.float64))
    assert ((found[~torch.eye(5, dtype=torch.bool)] > 0) & (found[~torch.eye(5, dtype=torch.bool)] < 1)).all()
    assert not agreement(torch.eye(3), torch.eye(3))[0, 1:].any()


def test_the_mined_pairs_are_the_nearest_and_split_by_the_threshold(generator) -> None:
    """By hand; also without positives and without negatives."""
    pairs = all_pairs(unit(generator, IMAGES, DIM), normal(generator, IMAGES, PEOPLE).softmax(dim=1))
    nearest = sorted(range(len(pairs.distance)), key=lambda pair: float(pairs.distance[pair]))[:9]
    closeness = {pair: float(torch.exp(-pairs.distance[pair])) for pair in nearest}
    for threshold in (float(pairs.agreement[nearest].median()), 2.0, -1.0):
        positive = [value for pair, value in closeness.items() if pairs.agreement[pair] > threshold]
        negative = [value for pair, value in closeness.items() if not pairs.agreement[pair] > threshold]
        assert len(positive) in (0, 4, 9)
        n = np.mean(negative) if negative else 0.5
        expected = -np.log(np.mean(positive) / (np.mean(positive) + n)) if positive else np.log(1 + n)
        assert float(pair_loss(pairs, torch.tensor(threshold, dtype=torch.float64), 9)) == pytest.approx(expected)


@pytest.mark.parametrize(("images", "count"), [(1, 0), (2, 1), (12, 1), (64, 10)])
def test_at_least_one_pair_is_mined_where_there_is_one(images: int, count: int) -> None:
    assert mined(0.005, images) == count


def test_the_first_threshold_does_not_depend_on_how_the_pairs_are_cut(generator) -> None:
    q = normal(generator, 23, PEOPLE).softmax(dim=1)
    agreements = agreement(q, q)[tuple(torch.triu_indices(23, 23, offset=1))]
    expected = largest(agreements, int(0.1 * len(agreements)))
    for block in (4, 7, 100):
        torch.testing.assert_close(first_threshold(q, 0.1, block), expected)


def test_the_reference_loss_is_zero_on_the_own_agents_where_no_other_is_near() -> None:
    agents = torch.eye(4, dtype=torch.float64)  # similarities of 0 are below 1 - 1 / 2
    people = torch.tensor([2, 0, 3])
    far = F.normalize(torch.ones(2, 4, dtype=torch.float64), dim=1) * 0.9  # similarities of 0.45
    assert float(reference_agents(agents[people], people, far, agents, margin=1.0)) == 0
    assert float(reference_agents(agents[people], people, agents[people], agents, margin=1.0)) > 0


def test_a_camera_with_one_image_has_no_statistics() -> None:
    log_q = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    means, deviations = camera_statistics(log_q, torch.tensor([7, 2, 7, 4]))
    assert means.tolist() == [[3, 4, 5]]
    torch.testing.assert_close(deviations, torch.full((1, 3), 18**0.5, dtype=torch.float64))
    assert len(camera_statistics(log_q, torch.arange(4))[0]) == 0


def test_views_that_are_equal_are_consistent(generator) -> None:
    method = sal(generator, consistency="views", consistency_weight=1.0)
    output = outputs(method, generator)
    assert method.loss(output, batch_of())["consistency"] > 0
    output["feature_1"] = output["feature_0"]
    assert float(method.loss(output, batch_of())["consistency"].detach()) == pytest.approx(0, abs=1e-12)


def test_the_pair_loss_waits_for_its_epoch_and_then_moves_labels_and_threshold(generator) -> None:
    waiting = sal(generator, pairs_from=1)
    output, batch = outputs(waiting, generator), batch_of()
    assert float(waiting.loss(output, batch)["consistency"]) == 0
    waiting.after_step({}, batch)
    assert not waiting.target.labels.seen.any()
    method = sal(generator)
    before = method.target.threshold
    assert method.loss(outputs(method, generator), batch)["consistency"] > 0
    assert not method.target.labels.seen.any(), "a loss alone changes nothing"
    method.after_step({}, batch)
    assert torch.equal(method.target.labels.seen.nonzero().flatten(), batch.indices)
    assert method.target.threshold != before


def test_cameras_and_the_second_view_are_asked_for_where_a_loss_reads_them() -> None:
    def needs(name: str) -> Needs:
        return SAL.needs(resolve_run(name, "market1501", "published").config)

    assert needs("sal") == Needs(views=2, source=True)
    assert needs("sal-camera") == Needs(cameras=frozenset({"loss"}), views=2, source=True)
    assert needs("sal-no_bridge").views == needs("sal-sup").views == 1


@pytest.mark.parametrize("target", ["market1501", "dukemtmc", "msmt17_v1"])
def test_published_settings_are_mars_less_the_factor_of_fifty(target: str) -> None:
    config = resolve_run("sal", target, "published").config
    assert config.optimiser.lr == pytest.approx(50 * 2e-4 * 64 / 184, rel=0.01)
    assert config.optimiser.weight_decay == pytest.approx(2.5e-2 / 50)
    assert config.settings.consistency_weight == pytest.approx(1 / 50)
    assert [place / config.schedule.epochs for place in config.schedule.milestones] == [5 / 8, 7 / 8]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("people")
    write_dataset(folder, seed=0).write(folder)
    return read_manifest(folder)


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "weights/epoch_002.pt", weights_only=True)


def test_with_every_addition_off_it_is_cosine_softmax_on_the_source_to_the_bit(
    people: Manifest, tmp_path: Path, one_thread
) -> None:
    class Plain(SAL):
        """Written without anything of SAL's but its first agents and its groups of parameters."""

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            features = self.embedder(batch.source.images[0])["feature"]
            return {"source_logits": 30 * (features @ F.normalize(self.agents, dim=1).T)}

        def batches(self, labels: Labels, data: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
            return [np.arange(16)]

        def source_batches(self, source: TrainingData, rng: np.random.Generator) -> Iterable[np.ndarray]:
            return (rows for rows in shuffled_batches(len(source), 16, rng) if len(rows) == 16)

        def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
            return {"source": F.cross_entropy(output["source_logits"], batch.source.targets)}

        def after_step(self, output: dict[str, Tensor], batch: Batch) -> None:
            pass

    for name, method in (("off", SAL), ("plain", Plain)):
        train_small(people, tmp_path / name, ALONE, method, settings=Settings(**OFF))
    train_small(people, tmp_path / "on", ALONE, SAL, settings=Settings())
    off, plain, on = (weights(tmp_path / name) for name in ("off", "plain", "on"))
    assert all(torch.equal(off[name], plain[name]) for name in plain)
    assert not torch.equal(off["agents"], on["agents"])


def test_a_run_in_two_parts_equals_one_with_all_that_it_remembers(
    people: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread
) -> None:
    settings = Settings(**ALL_ON, domain_norm=True)
    train_small(people, tmp_path / "whole", ALONE, SAL, settings=settings)
    trained = Trainer._train

    def interrupted(self: Trainer, epoch: int, labels: Labels) -> dict[str, float]:
        if epoch == 1:
            raise KeyboardInterrupt
        return trained(self, epoch, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_small(people, tmp_path / "parts", ALONE, SAL, settings=settings)
    train_small(people, tmp_path / "parts", ALONE, SAL, settings=settings)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    source, target = (whole[f"embedder.backbone.bn1.{side}.weight"] for side in ("source", "target"))
    assert not torch.equal(source, target)


def test_agents_start_at_the_mean_feature_of_each_source_person() -> None:
    class Source:
        """Stands in for the images of a source: two of each person, features on the axes."""

        identities = np.array([1, 0, 1, 0])

        def extract(self, embed: object) -> dict[str, Tensor]:
            return {"feature": torch.eye(DIM, dtype=torch.float64)[:4]}

    class Data:
        source = Source()

        def features(self) -> Tensor:
            return to_unit(torch.ones(5, DIM, dtype=torch.float64))

        def __len__(self) -> int:
            return 5

    method = sal(torch.Generator().manual_seed(0), camera_weight=0.0)
    method.agents = nn.Parameter(torch.zeros(2, DIM, dtype=torch.float64))
    method.target = None
    with torch.no_grad():
        method.start_epoch(Labels(np.arange(5)), Data(), torch.Generator())
    half = 0.5**0.5
    expected = torch.tensor([[0, half, 0, half], [half, 0, half, 0]], dtype=torch.float64)
    torch.testing.assert_close(method.agents.detach()[:, :4], expected)
