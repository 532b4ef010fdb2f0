"""What training code may see of a dataset: images, and labels only at the level a method declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core import augment
from core.augment import Augment, Blur, normalise
from core.distributed import ProcessGroup, merge_chunks
from core.images import ImageStore
from core.timing import PhaseTimer

CAMERA_USES = ("sampler", "loss", "clustering", "test")


class UndeclaredAccess(RuntimeError):
    """Training code asked for labels that its method does not declare in ``needs``."""


@dataclass(frozen=True)
class Needs:
    """What a method uses beyond images. It is enforced, and stands in its row of the leaderboard.

    cameras: where camera labels are used, a subset of CAMERA_USES.
    identities: the split whose person ids it is given (``train``, ``source``) or None.
    trains_on: the split its images come from.
    views: augmented views of each image in a batch.
    """

    cameras: frozenset[str] = frozenset()
    identities: str | None = None
    trains_on: str = "train"
    views: int = 1

    def __post_init__(self) -> None:
        unknown = self.cameras - set(CAMERA_USES)
        assert not unknown, f"unknown camera use {unknown}; known: {CAMERA_USES}"


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
    the batch; shuffled views, and what is computed from them, have sample ``order[i]`` in row i.
    """

    images: list[Tensor]
    indices: Tensor
    targets: Tensor
    cameras: Tensor | None
    extra: dict[str, Tensor]
    epoch: float
    part: slice = field(default_factory=lambda: slice(None))
    order: Tensor | None = None

    def in_order(self, shuffled: Tensor) -> Tensor:
        """Rows (B, ...) computed from a shuffled view, in the order of all else."""
        assert self.order is not None, "the engine gives every batch an order"
        return shuffled[self.order.argsort()]


class TrainingData:
    """The training split as a method sees it. Person ids are absent unless ``needs.identities`` names a split."""

    def __init__(
        self,
        images: ImageStore,
        needs: Needs,
        group: ProcessGroup,
        cameras: np.ndarray | None = None,
        identities: np.ndarray | None = None,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
    ) -> None:
        self.images, self.needs, self.group = images, needs, group
        self.mean, self.std = mean, std
        self.timer = PhaseTimer()
        self._cameras = cameras if needs.cameras else None
        self._identities = identities if needs.identities else None
        self._embed: Callable[[], dict[str, Tensor]] | None = None
        self._embedded: dict[str, Tensor] | None = None

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

    def new_epoch(self, embed: Callable[[], dict[str, Tensor]]) -> None:
        """Forget the features of the last epoch; ``embed`` extracts the new ones when they are first asked for."""
        self._embed, self._embedded = embed, None

    def embedded(self, key: str) -> Tensor:
        """(N, ...) eval-mode outputs of ``Method.embed`` by name, for the whole training split, extracted once."""
        if self._embedded is None:
            assert self._embed is not None, "new_epoch was not called"
            with self.timer("extract"):
                self._embedded = self._embed()
        return self._embedded[key]

    def features(self) -> Tensor:
        """(N, D) features of the whole training split, as tested."""
        return self.embedded("feature")


@dataclass(frozen=True)
class Pixels:
    """A step's images before augmentation: what ``Method.make_views`` makes its views of.

    rows (B,) of the training split; order and part as in ``Batch``; stream: a generator of this step by name. Draws are
    made for the whole batch, so that a view does not depend on the number of processes.
    """

    data: TrainingData
    rows: Tensor
    order: Tensor
    part: slice
    stream: Callable[[str], torch.Generator]
    config: Augment
    dtype: torch.dtype

    def augmented(self, view: int = 0, blur: Blur | None = None, shuffled: bool = False) -> Tensor:
        """(b, 3, H, W) normalised, with the draw number ``view`` of the run's augmentation, and of ``blur``.

        Of the same ``view``, the shuffled images are the others in another order.
        """
        places = self._places(shuffled)
        pixels = self.data.images.batch(self.rows[places])
        height, width = pixels.shape[-2:]
        drawn = augment.draw(self.config, len(self.rows), height, width, self.stream(f"augment/{view}"))
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
    embed: Callable[[Tensor, Tensor | None], dict[str, Tensor]],
    images: ImageStore,
    batch: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    group: ProcessGroup,
    cameras: np.ndarray | None = None,
    dtype: torch.dtype = torch.float32,
    describe: str | None = None,
) -> dict[str, Tensor]:
    """Run ``embed`` over all images, in order and in eval mode; chunks are shared out over the ranks whole, so
    that the result does not depend on how many there are. Touches no random stream and no BN state."""
    starts = range(0, len(images), batch)
    mine = [(number, start) for number, start in enumerate(starts) if number % group.size == group.rank]
    chunks: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        for number, start in tqdm(mine, desc=describe, disable=describe is None, leave=False):
            rows = torch.arange(start, min(start + batch, len(images)))
            pixels = normalise(images.batch(rows), mean, std).to(dtype, memory_format=torch.channels_last)
            seen = None if cameras is None else torch.as_tensor(cameras[rows.numpy()]).to(pixels.device)
            chunks[number] = embed(pixels, seen)
    merged = merge_chunks(chunks, len(starts), group)
    return {name: torch.cat([chunk[name] for chunk in merged]) for name in merged[0]}
