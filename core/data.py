"""What training code may see of a dataset: images, and labels only at the level a method declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core import augment
from core.augment import Augment, Blur, normalise
from core.config import Config
from core.distributed import ProcessGroup, merge_chunks
from core.images import ImageStore, reading_ahead
from core.precision import autocast, weights_dtype
from core.timing import PhaseTimer

CAMERA_USES = ("sampler", "loss", "clustering", "style", "test")
SPLITS = ("train", "source", "train+source")  # what a method may be trained on


class UndeclaredAccess(RuntimeError):
    """Training code asked for labels that its method does not declare in ``needs``."""


@dataclass(frozen=True)
class Needs:
    """What a method uses beyond images. It is enforced, and stands in its row of the leaderboard.

    cameras: where camera labels are used, a subset of CAMERA_USES; ``style``: to change images into a camera's look.
    identities: the split whose person ids it is given (``train``, ``source``) or None.
    trains_on: the split its images come from; ``train+source`` is both, without ids.
    views: augmented views of each image in a batch.
    source: whether a batch of the labelled source split stands beside the target's in every step.
    source_views: augmented views of each source image.
    initial: whether training starts from the dataset's initial weights; False starts it from random ones.
    """

    cameras: frozenset[str] = frozenset()
    identities: str | None = None
    trains_on: str = "train"
    views: int = 1
    source: bool = False
    source_views: int = 1
    initial: bool = True

    def __post_init__(self) -> None:
        unknown = self.cameras - set(CAMERA_USES)
        assert not unknown, f"unknown camera use {unknown}; known: {CAMERA_USES}"
        assert self.trains_on in SPLITS, f"no method trains on '{self.trains_on}'; known: {SPLITS}"
        assert self.identities in (None, self.trains_on), "ids are those of the images that are trained on"
        assert not self.identities or "+" not in self.trains_on, f"'{self.trains_on}' is read without ids"
        assert not self.source or self.trains_on == "train", "a source stands beside the target alone"

    @property
    def of_source(self) -> Needs:
        """The same needs of the source split, whose ids are known."""
        return Needs(self.cameras, "source", "source", self.source_views)

    @property
    def labelled(self) -> str | None:
        """The split whose person ids are used, beside the target or alone."""
        return "source" if self.source else self.identities


@dataclass
class Labels:
    """Pseudo-labels of one epoch.

    ids: (N,) int64, clusters 0..C-1, -1 = outlier. extra: named (N, ...) tensors that reach the loss as
    ``batch.extra``. new_stage: restart the optimiser before this epoch (methods that merge clusters in stages).
    notes: counts of how the labels came about, for the epoch's row of history.csv.
    """

    ids: np.ndarray
    extra: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)
    new_stage: bool = False

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return int(self.ids.max(initial=-1)) + 1

    @property
    def outliers(self) -> int:
        """Number of images in no cluster."""
        return int((self.ids < 0).sum())


@dataclass
class Batch:
    """One training step's input.

    images: list over views of this rank's normalised (b, 3, H, W) slice. All else covers the full batch of B
    samples on every rank: indices (B,) rows of the training split, targets (B,) pseudo-labels, cameras (B,) where
    the loss declares them, extra named (B, ...). epoch: epochs of the run before this step, the trained part of its own
    included: 2.5 is half-way through the third. part: this rank's rows of the full batch. order: (B,) a random order of
    the batch; shuffled views, and what is computed from them, have sample ``order[i]`` in row i. progress: the share of
    the run before this step, in [0, 1). source: where ``needs.source``, the labelled batch of the source split, whose
    indices are its rows and whose targets are person ids 0..K-1.
    """

    images: list[Tensor]
    indices: Tensor
    targets: Tensor
    cameras: Tensor | None
    extra: dict[str, Tensor]
    epoch: float
    part: slice = field(default_factory=lambda: slice(None))
    order: Tensor | None = None
    progress: float = 0.0
    source: Batch | None = None

    def in_order(self, shuffled: Tensor) -> Tensor:
        """Rows (B, ...) computed from a shuffled view, in the order of all else."""
        assert self.order is not None, "the engine gives every batch an order"
        return shuffled[self.order.argsort()]


class TrainingData:
    """The training split as a method sees it. Person ids are absent unless ``needs.identities`` names a split.

    source: where ``needs.source``, the labelled source split, seen in the same way.
    """

    def __init__(
        self,
        images: ImageStore,
        needs: Needs,
        group: ProcessGroup,
        cameras: np.ndarray | None = None,
        identities: np.ndarray | None = None,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        source: TrainingData | None = None,
    ) -> None:
        self.images, self.needs, self.group = images, needs, group
        self.mean, self.std = mean, std
        self.source = source
        self.timer = PhaseTimer()
        self.notes: dict[str, float] = {}  # of how this epoch's labels came about, for its row of history.csv
        self.config = Config(None)
        self.title: str | None = None  # of the progress bar of an extraction
        self.collective = True
        self._cameras = cameras if needs.cameras else None
        self._identities = identities if needs.identities else None
        self._embed: Callable[[], dict[str, Tensor]] | None = None
        self._embedded: dict[str, Tensor] | None = None
        if source:
            source.timer = self.timer

    def __len__(self) -> int:
        return len(self.images)

    def cameras(self, use: str) -> np.ndarray:
        """(N,) camera ids for ``use`` (one of CAMERA_USES).

        Raises UndeclaredAccess when the method does not declare that use.
        """
        if use not in self.needs.cameras or self._cameras is None:
            raise UndeclaredAccess(
                f"camera labels were asked for by the {use}, but the method declares cameras for "
                f"{sorted(self.needs.cameras) or 'nothing'}; declare it in `needs` so that the table says so"
            )
        return self._cameras

    @property
    def identities(self) -> np.ndarray:
        """(N,) person ids as 0..C-1; raises UndeclaredAccess unless the method declares them."""
        if self._identities is None:
            raise UndeclaredAccess("person ids were asked for by a method that does not declare them")
        return self._identities

    def computed_by(self, config: Config) -> None:
        """Compute as a run of ``config`` does: in its precision, and in extraction batches of its size."""
        self.config = config
        if self.source:
            self.source.computed_by(config)

    @contextmanager
    def extraction(self, allowed: bool) -> Iterator[None]:
        """Whether ``extract`` may be called inside: not where one rank is alone, because it takes all."""
        before, self.collective = self.collective, allowed
        if self.source:
            self.source.collective = allowed
        try:
            yield
        finally:
            self.collective = before
            if self.source:
                self.source.collective = before

    def prepare(self, pixels: Tensor) -> Tensor:
        """uint8 (b, 3, H, W) as the network takes it: normalised, in the run's precision."""
        dtype = weights_dtype(self.config.precision)
        return normalise(pixels, self.mean, self.std).to(dtype, memory_format=torch.channels_last)

    def extract(self, embed: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
        """``embed(pixels, rows)`` of every image of the split, concatenated by name.

        pixels: uint8 (b, 3, H, W) on the device, for ``embed`` to change and ``prepare``; rows: (b,) of the split, in
        order, on the CPU. Runs without gradient and in the run's precision, and the method is in eval mode in
        ``Method.extract`` and ``Method.start_epoch``, which may call it: all ranks must. ``Method.label`` runs on one
        rank, where it is an error.
        """
        if not self.collective:
            raise RuntimeError(
                "`extract` takes all ranks and `label` runs on one: extract in `Method.extract`, whose outputs `label` "
                "finds by name in `data.embedded`"
            )

        def in_precision(pixels: Tensor, rows: Tensor) -> dict[str, Tensor]:
            with autocast(self.config.precision, self.group.device):
                return embed(pixels, rows)

        with self.timer("extract"):
            return extract(in_precision, self.images, self.config.extraction_batch, self.group, self.title)

    def new_epoch(self, embed: Callable[[], dict[str, Tensor]], title: str | None = None) -> None:
        """Forget the features of the last epoch; ``embed`` extracts the new ones when they are first asked for.

        ``title``: of the progress bar of an extraction, None for none.
        """
        self._embed, self._embedded, self.title, self.notes = embed, None, title, {}
        if self.source:
            self.source.title = title

    def embedded(self, key: str) -> Tensor:
        """(N, ...) outputs of ``Method.extract`` by name (those of ``embed``, by default), extracted once an epoch."""
        if self._embedded is None:
            assert self._embed is not None, "new_epoch was not called"
            with self.extraction(allowed=True):  # by several ranks it is done before one is alone
                self._embedded = self._embed()
        return self._embedded[key]

    def features(self) -> Tensor:
        """(N, D) features of the whole training split, as tested."""
        return self.embedded("feature")


@dataclass(frozen=True)
class Pixels:
    """A step's images before augmentation: what ``Method.make_views`` makes its views of.

    rows (B,) of the split of ``data``; order and part as in ``Batch``; stream: a generator of this step by name. Draws
    are made for the whole batch and then cut to ``part``, so that a view does not depend on the number of processes.
    """

    data: TrainingData
    rows: Tensor
    order: Tensor
    part: slice
    stream: Callable[[str], torch.Generator]
    config: Augment
    dtype: torch.dtype

    @property
    def domain(self) -> str:
        """``source`` for the batch beside the target's, or ``target``."""
        return "source" if self.data.needs.trains_on == "source" else "target"

    @property
    def images(self) -> Tensor:
        """uint8 (b, 3, H, W), this rank's."""
        return self.data.images.batch(self.rows[self.part])

    @property
    def cameras(self) -> Tensor:
        """(b,) cameras of ``images``, for their style; raises UndeclaredAccess unless that use is declared."""
        return torch.as_tensor(self.data.cameras("style")[self.rows[self.part].numpy()])

    def augmented(
        self,
        view: int = 0,
        blur: Blur | None = None,
        shuffled: bool = False,
        images: Tensor | None = None,
        config: Augment | None = None,
    ) -> Tensor:
        """(b, 3, h, w) normalised, with the draw number ``view`` of the run's augmentation, and of ``blur``.

        Of the same ``view``, the shuffled images are the others in another order. ``images``: uint8 (b, 3, h, w), what
        was made of this rank's images, in their place: of the same ``view`` and size, they are cropped and flipped
        alike. ``config``: another augmentation than the run's.
        """
        assert images is None or not shuffled, "changed images stand in the order of `images`"
        places = self._places(shuffled)
        pixels = self.data.images.batch(self.rows[places]) if images is None else images
        height, width = pixels.shape[-2:]
        drawn = augment.draw(config or self.config, len(self.rows), height, width, self.stream(f"augment/{view}"))
        if blur:
            drawn["sigma"] = augment.draw_blur(blur, len(self.rows), self.stream(f"blur/{view}"))
        mine = {name: value[places] for name, value in drawn.items()}
        return self._laid_out(augment.apply(pixels, mine, self.data.mean, self.data.std))

    def plain(self, shuffled: bool = False) -> Tensor:
        """(b, 3, H, W) normalised, as tested."""
        pixels = self.data.images.batch(self.rows[self._places(shuffled)])
        return self._laid_out(normalise(pixels, self.data.mean, self.data.std))

    def _places(self, shuffled: bool) -> Tensor | slice:
        return self.order[self.part] if shuffled else self.part

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.to(self.dtype).contiguous(memory_format=torch.channels_last)


def extract(
    embed: Callable[[Tensor, Tensor], dict[str, Tensor]],
    images: ImageStore,
    batch: int,
    group: ProcessGroup,
    describe: str | None = None,
) -> dict[str, Tensor]:
    """Run ``embed(pixels, rows)`` over all images, uint8 on the device, in order and without gradient.

    Chunks are shared out over the ranks whole, so that the result does not depend on how many there are. Touches no
    random stream.
    """
    parts = torch.arange(len(images)).split(batch)
    mine = range(group.rank, len(parts), group.size)
    rows_in_turn = reading_ahead((parts[number] for number in mine), images)
    chunks: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        bar = tqdm(rows_in_turn, describe, len(mine), disable=describe is None, leave=False)
        for number, rows in zip(mine, bar, strict=True):
            chunks[number] = embed(images.batch(rows), rows)
    merged = merge_chunks(chunks, len(parts), group)
    return {name: torch.cat([chunk[name] for chunk in merged]) for name in merged[0]}
