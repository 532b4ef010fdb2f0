"""Images of a split: checked, decoded once, resized, cached, and kept as one uint8 tensor."""

from __future__ import annotations

import errno
import hashlib
import math
import mmap
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from core.errors import UserError
from core.files import replacing
from core.manifest import Manifest, ManifestError

LISTED = 50  # problems that a message lists
Rows = TypeVar("Rows", NDArray[np.int64], Tensor)  # of a split, as a batch names its images
WIDE_MODES = ("I", "F")  # Pillow's pixels of more than 8 bits; their conversion to RGB clips at 255


class UnreadableImages(UserError):
    """Images that are missing or cannot be decoded: ``problems`` holds every one, the message lists the first."""

    def __init__(self, problems: Sequence[tuple[Path, str]]) -> None:
        self.problems = list(problems)
        lines = [f"  {path}: {reason}" for path, reason in self.problems[:LISTED]]
        if len(self.problems) > LISTED:
            lines.append(f"  and {len(self.problems) - LISTED} more")
        listing = "\n".join(lines)
        super().__init__(
            f"{len(self.problems)} image(s) cannot be read; restore or remove them and prepare the "
            f"dataset again:\n{listing}"
        )


def find_unreadable(paths: Sequence[Path], progress: bool = True) -> list[tuple[Path, str]]:
    """Decode every image fully; (path, reason) of all that fail, in the order of ``paths``."""
    return _read_all(paths, lambda row, pixels: None, None, "checking images", progress)


def read_image(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3); with ``size`` = (height, width) resized by Pillow's bicubic filter.

    Raises ValueError for a file of several pictures and for pixels of more than 8 bits, which have no scale that is
    right for all.
    """
    with Image.open(path) as image:
        if image.mode.startswith(WIDE_MODES):
            raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}); save it with 8 bits per channel")
        if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a JPEG with a preview behind it
            raise ValueError("it holds several pictures; save the one that is meant")
        pixels = image.convert("RGB")
    if size is not None:
        pixels = pixels.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(pixels)


def load_images(
    manifest: Manifest,
    split: str,
    height: int,
    width: int,
    cache: Path | None = None,
    progress: bool = True,
) -> NDArray[np.uint8]:
    """All images of a split as uint8 (N, 3, height, width), in manifest order.

    Converted to RGB and resized by Pillow's bicubic filter, as torchvision's Resize does. With a
    ``cache`` folder the result is kept as ``.npy`` and memory-mapped (``np.memmap``), so that N images need no
    N images of memory. Raises UnreadableImages with every image that fails, and ManifestError when their folder is
    gone.
    """
    paths = manifest.paths(split)
    if not manifest.root.is_dir():
        raise ManifestError(
            f"the images of '{manifest.name}' were prepared in {manifest.root}, which is not there now; bring the "
            "folder back or prepare the dataset again"
        )
    shape = (len(paths), 3, height, width)
    if cache is None:
        images = np.empty(shape, np.uint8)

        def keep(row: int, pixels: NDArray[np.uint8]) -> None:
            images[row] = pixels.transpose(2, 0, 1)

        _decode(paths, keep, (height, width), progress)
        return images
    file = cache / f"{manifest.name}-{split}-{_cache_key(manifest, split, height, width)}.npy"
    stored = _open_cache(file, shape)
    if stored is None:
        _write_cache(file, paths, shape, progress)
        stored = _open_cache(file, shape)
    if stored is None:
        raise OSError(f"{file} cannot be read back after writing it; is the disk full or failing?")
    return stored


class ImageStore:
    """The images of a split, on the training device when they fit and in host memory otherwise.

    headroom: share of the device's free memory that must stay free for training. Host images reach
    a CUDA device through a pinned staging buffer per batch; pinning the whole split would lock
    memory without making the gather, which the host does, any faster. Images that are mapped from a file
    (``np.memmap``) may be more than the host's memory: what is asked for is read then, or before, by ``read_ahead``.
    """

    def __init__(self, images: Tensor | NDArray[np.uint8], device: torch.device, headroom: float = 0.5) -> None:
        pixels = torch.as_tensor(images)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"an image store holds uint8 (N, 3, H, W), not {pixels.dtype} {tuple(pixels.shape)}")
        self.device = device
        self.images = pixels.to(device) if fits(pixels.nbytes, device, headroom) else pixels
        self._file: mmap.mmap | None = None
        self._first = 0
        advised = self.images.device.type == "cpu" and hasattr(mmap, "MADV_WILLNEED")  # Windows lacks it
        # The base of a part of a mapped array is that array: rows of it would be sought in the wrong place.
        if advised and isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap):
            self._file, self._first = images.base, images.offset % mmap.ALLOCATIONGRANULARITY

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.images.shape[2], self.images.shape[3]

    def batch(self, indices: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) on the device, in the order of ``indices`` (B,)."""
        indices = indices.to(self.images.device, non_blocking=True)
        if self.images.device.type == "cpu" and self.device.type == "cuda":
            staging = self.images.new_empty((len(indices), *self.images.shape[1:]), pin_memory=True)
            torch.index_select(self.images, 0, indices, out=staging)
            return staging.to(self.device, non_blocking=True)
        return self.images.index_select(0, indices).to(self.device)

    @property
    def reads_ahead(self) -> bool:
        """Whether ``read_ahead`` does anything: the images are in a file, and the system takes advice on it."""
        return self._file is not None

    def read_ahead(self, indices: NDArray[np.int64] | Tensor) -> None:
        """Have the system read these images (B,) from their file meanwhile; nothing where they are in memory anyway.

        It is advice: the pixels that ``batch`` gives are the same with and without.
        """
        if self._file is None:
            return
        size = self.images[0].nbytes
        for row in indices.tolist():
            start = self._first + row * size
            page = start - start % mmap.PAGESIZE
            self._file.madvise(mmap.MADV_WILLNEED, page, start + size - page)


def reading_ahead(batches: Iterable[Rows], images: ImageStore) -> Iterator[Rows]:
    """The ``batches``, rows of ``images``; while one is worked on, those of the next are read."""
    waiting: Rows | None = None
    for rows in batches:
        images.read_ahead(rows)
        if waiting is not None:
            yield waiting
        waiting = rows
    if waiting is not None:
        yield waiting


def fits(size: int, device: torch.device, headroom: float) -> bool:
    """Whether ``size`` bytes leave the share ``headroom`` of the device's free memory untouched."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size <= free * (1 - headroom)


def _read_all(
    paths: Sequence[Path],
    keep: Callable[[int, NDArray[np.uint8]], None],
    size: tuple[int, int] | None,
    title: str,
    progress: bool,
) -> list[tuple[Path, str]]:
    """``keep(row, pixels)`` of every image, in threads; returns (path, reason) of all that fail."""

    def attempt(row: int) -> str | None:
        try:
            # Checked first: opening a named pipe would wait for ever.
            if not stat.S_ISREG(os.stat(paths[row]).st_mode):
                return "it is not a regular file"
            pixels = read_image(paths[row], size)
        except FileNotFoundError:
            return "the file does not exist"
        except MemoryError:
            raise
        # Pillow's decoders raise unrelated types on damaged files (OSError, SyntaxError,
        # ValueError, struct.error, ...); whichever it is, the image cannot be read.
        except Exception as error:
            return _reason(error)
        keep(row, pixels)
        return None

    # Pillow releases the GIL while it decodes and resizes, so threads are enough.
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        results = pool.map(attempt, range(len(paths)))
        bar = tqdm(results, title, len(paths), unit="image", disable=not progress, leave=False)
        return [(path, why) for path, why in zip(paths, bar, strict=True) if why is not None]


def _reason(error: Exception) -> str:
    """Why an image cannot be read, without its name, which stands beside it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _decode(
    paths: Sequence[Path], keep: Callable[[int, NDArray[np.uint8]], None], size: tuple[int, int], progress: bool
) -> None:
    """``keep(row, pixels)`` of every image, resized to (height, width); raises UnreadableImages for all bad ones."""
    problems = _read_all(paths, keep, size, "reading images", progress)
    if problems:
        raise UnreadableImages(problems)


def _cache_key(manifest: Manifest, split: str, height: int, width: int) -> str:
    """Hash of what decides the pixels; ids and cameras are not among it, and must not be."""
    parts = [manifest.fingerprint, f"{height}x{width}", "bicubic", *manifest.split(split)["path"]]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _open_cache(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The cached array, mapped copy-on-write; None when missing, damaged or of another shape."""
    try:
        stored = np.load(file, mmap_mode="c")
    except (OSError, ValueError, EOFError):  # missing, cut short, or no .npy header
        return None
    return stored if stored.shape == shape and stored.dtype == np.uint8 else None


def _write_cache(file: Path, paths: Sequence[Path], shape: tuple[int, int, int, int], progress: bool) -> None:
    """Decode into a file that takes its name when it is whole.

    Its space is taken first, and images are written and not mapped: a full disk is an OSError (a write to a mapped page
    without a block would end the process by SIGBUS).
    """
    size = math.prod(shape[1:])
    with replacing(file) as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
        out.flush()
        start = out.tell()
        _reserve(out.fileno(), start + size * len(paths), file.parent)

        def keep(row: int, pixels: NDArray[np.uint8]) -> None:
            image = pixels.transpose(2, 0, 1).tobytes()
            if os.pwrite(out.fileno(), image, start + size * row) < size:
                raise OSError(errno.ENOSPC, "the disk is full", str(file))

        _decode(paths, keep, shape[2:], progress)


def _reserve(descriptor: int, size: int, folder: Path) -> None:
    """Take ``size`` bytes on disk now; raises OSError that says how much is free when they are not there."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno != errno.ENOSPC:  # a file system that cannot reserve: a full disk shows while writing
            return
        free = shutil.disk_usage(folder).free
        lacking = f"the decoded images need {size / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
        raise OSError(
            errno.ENOSPC, f"the disk is full: {lacking}; make room or choose another --cache", str(folder)
        ) from error
