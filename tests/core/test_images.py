import errno
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize
from torchvision.transforms.functional import pil_to_tensor

from core import images as images_module
from core.images import ImageStore, UnreadableImages, find_unreadable, fits, load_images, reading_ahead
from core.manifest import Manifest, build_manifest

SIZES = [(40, 20), (64, 32), (33, 47), (128, 64), (50, 25), (20, 20)]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Six JPEGs of different sizes, one of them grey, over two splits."""
    root = tmp_path / "data"
    root.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        name = f"{number}.jpg"
        (image.convert("L") if number == 2 else image).save(root / name)
        rows.append((name, "query" if number == 5 else "train", number // 2, number % 2))
    return build_manifest(pd.DataFrame(rows, columns=["path", "split", "person_id", "camera_id"]), root, "toy")


def load(manifest: Manifest, cache: Path | None = None) -> torch.Tensor:
    return torch.from_numpy(load_images(manifest, "train", 32, 16, cache, progress=False))


def expected(manifest: Manifest) -> torch.Tensor:
    """What the field's code does: torchvision's Resize on a PIL image, one image at a time."""
    resize = Resize((32, 16), interpolation=InterpolationMode.BICUBIC)
    loaded = [Image.open(path).convert("RGB") for path in manifest.paths("train")]
    return torch.stack([pil_to_tensor(resize(image)) for image in loaded])


def cached_files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


def test_images_equal_torchvisions_bicubic_resize_in_manifest_order(manifest, tmp_path):
    assert torch.equal(load(manifest), expected(manifest))
    assert torch.equal(load(manifest, tmp_path / "cache"), expected(manifest))


def test_second_load_reads_the_cache_and_not_the_images(manifest, tmp_path):
    first = load(manifest, tmp_path / "cache").clone()
    for path in manifest.paths("train"):
        path.unlink()
    assert torch.equal(load(manifest, tmp_path / "cache"), first)


def test_writing_to_loaded_images_does_not_reach_the_cache(manifest, tmp_path):
    load(manifest, tmp_path / "cache").zero_()
    assert torch.equal(load(manifest, tmp_path / "cache"), expected(manifest))


def test_permuted_ids_and_cameras_share_the_cache(manifest, tmp_path):
    load(manifest, tmp_path / "cache")
    table = manifest.table.copy()
    table["person_id"] = table["person_id"].to_numpy()[::-1].copy()
    table["camera_id"] = 1 - table["camera_id"]
    permuted = Manifest(table, manifest.root, manifest.name, manifest.fingerprint)
    assert torch.equal(load(permuted, tmp_path / "cache"), expected(manifest))
    assert len(cached_files(tmp_path / "cache")) == 1


@pytest.mark.parametrize("change", ["fingerprint", "order", "size", "split"])
def test_whatever_decides_the_pixels_gets_its_own_cache_file(manifest, tmp_path, change):
    load(manifest, tmp_path / "cache")
    table, fingerprint, split, size = manifest.table, manifest.fingerprint, "train", (32, 16)
    if change == "fingerprint":
        fingerprint = "another"
    elif change == "order":
        table = table.iloc[::-1]
    elif change == "size":
        size = (16, 32)
    else:
        split = "query"
    other = Manifest(table, manifest.root, manifest.name, fingerprint)
    load_images(other, split, *size, tmp_path / "cache", progress=False)
    assert len(cached_files(tmp_path / "cache")) == 2


@pytest.mark.parametrize("damage", ["cut short", "header only", "garbage", "empty", "other shape"])
def test_damaged_cache_is_rebuilt(manifest, tmp_path, damage):
    load(manifest, tmp_path / "cache")
    (file,) = cached_files(tmp_path / "cache")
    content = file.read_bytes()
    if damage == "other shape":
        with file.open("wb") as stream:
            np.save(stream, np.zeros((5, 3, 2, 2), np.uint8))
    else:
        pieces = {"cut short": content[:-1], "header only": content[:128], "garbage": b"x" * 999}
        file.write_bytes(pieces.get(damage, b""))
    assert torch.equal(load(manifest, tmp_path / "cache"), expected(manifest))
    assert torch.equal(torch.from_numpy(np.load(file)), expected(manifest))


def test_interrupted_write_leaves_no_cache_file(manifest, tmp_path, monkeypatch):
    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(images_module.os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        load(manifest, tmp_path / "cache")
    assert cached_files(tmp_path / "cache") == []


def test_a_disk_too_full_for_the_cache_is_said_before_any_image_is_read(manifest, tmp_path, monkeypatch):
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images_module.os, "posix_fallocate", full)
    monkeypatch.setattr(images_module, "read_image", None)
    with pytest.raises(OSError, match=r"the disk is full: the decoded images need \d+ MiB, [\d,]+ MiB are free"):
        load(manifest, tmp_path / "cache")
    assert cached_files(tmp_path / "cache") == []


def test_a_disk_that_fills_while_images_are_written_is_an_error_and_leaves_nothing(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(images_module.os, "pwrite", lambda descriptor, image, offset: len(image) // 2)
    with pytest.raises(OSError, match="the disk is full"):
        load(manifest, tmp_path / "cache")
    assert cached_files(tmp_path / "cache") == []


def test_all_unreadable_images_are_found_with_their_reasons(manifest):
    paths = manifest.paths("train")
    paths[0].unlink()
    paths[2].write_bytes(paths[2].read_bytes()[:-400])
    paths[3].write_text("not an image")
    problems = dict(find_unreadable(paths, progress=False))
    assert list(problems) == [paths[0], paths[2], paths[3]]
    assert problems[paths[0]] == "the file does not exist"
    assert "truncated" in problems[paths[2]]
    assert "cannot identify" in problems[paths[3]]


def test_loading_names_every_unreadable_image_and_caches_nothing(manifest, tmp_path):
    paths = manifest.paths("train")
    paths[1].unlink()
    paths[4].write_bytes(b"")
    with pytest.raises(UnreadableImages, match=r"2 image\(s\)") as caught:
        load(manifest, tmp_path / "cache")
    assert str(paths[1]) in str(caught.value)
    assert str(paths[4]) in str(caught.value)
    assert cached_files(tmp_path / "cache") == []


def test_readable_images_are_not_reported(manifest):
    assert find_unreadable(manifest.paths("train"), progress=False) == []


def test_store_gives_the_asked_images_in_the_asked_order(manifest):
    store = ImageStore(load(manifest), torch.device("cpu"))
    assert len(store) == 5
    assert store.size == (32, 16)
    batch = store.batch(torch.tensor([3, 0, 3]))
    assert torch.equal(batch, expected(manifest)[[3, 0, 3]])
    batch.zero_()
    assert torch.equal(store.batch(torch.arange(5)), expected(manifest))


def test_store_refuses_anything_but_uint8_images():
    with pytest.raises(ValueError, match="uint8"):
        ImageStore(torch.zeros(4, 3, 8, 8), torch.device("cpu"))


@pytest.fixture
def mapped(tmp_path: Path) -> np.memmap:
    """40 images of 96 KiB, each full of its own number, mapped from a file of which nothing is in memory."""
    file = tmp_path / "images.npy"
    np.save(file, np.repeat(np.arange(40, dtype=np.uint8), 3 * 256 * 128).reshape(40, 3, 256, 128))
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return np.load(file, mmap_mode="c")


def in_memory(mapped: np.memmap, row: int) -> bool:
    """Whether all pages of an image can be read from its file without waiting for the disk."""
    descriptor = os.open(mapped.filename, os.O_RDONLY)
    size = mapped[0].nbytes
    try:
        read = os.preadv(descriptor, [bytearray(size)], mapped.offset + row * size, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return read == size


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="asks Linux what is in memory")
def test_a_mapped_store_reads_the_announced_images_before_they_are_asked_for(mapped):
    store = ImageStore(mapped, torch.device("cpu"))
    if in_memory(mapped, 20):
        pytest.skip("this file system keeps its files in memory")
    store.read_ahead(torch.tensor([20, 3]))
    deadline = time.monotonic() + 20
    while not (in_memory(mapped, 20) and in_memory(mapped, 3)):
        assert time.monotonic() < deadline, "the announced images were not read"
        time.sleep(0.01)
    assert not all(in_memory(mapped, row) for row in range(len(mapped)))
    assert torch.equal(store.batch(torch.tensor([20, 30]))[:, 0, 0, 0], torch.tensor([20, 30], dtype=torch.uint8))


def test_nothing_is_read_ahead_of_images_in_memory_or_of_a_part_of_a_file(mapped):
    for images in (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), np.array(mapped), mapped[4:]):
        store = ImageStore(images, torch.device("cpu"))
        assert not store.reads_ahead
        store.read_ahead(torch.tensor([0]))
    assert ImageStore(mapped, torch.device("cpu")).reads_ahead


@pytest.mark.parametrize("count", [0, 1, 4])
def test_every_batch_is_announced_before_the_one_in_front_of_it_is_given(count):
    events = []
    announcing = type("Announcing", (), {"read_ahead": lambda self, rows: events.append(("announced", rows))})()
    for rows in reading_ahead(range(count), announcing):
        events.append(("given", rows))
    assert [rows for event, rows in events if event == "given"] == list(range(count))
    for number in range(count):
        announced = events.index(("announced", number))
        assert announced < events.index(("given", max(number - 1, 0)))


def test_images_fit_on_a_gpu_only_with_headroom(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    cuda = torch.device("cuda")
    assert fits(600, cuda, headroom=0.4)
    assert not fits(601, cuda, headroom=0.4)
    assert fits(10**15, torch.device("cpu"), headroom=0.4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("headroom", [0.5, 1.0])
def test_store_gives_the_same_batches_from_device_and_host_memory(manifest, headroom):
    store = ImageStore(load(manifest), torch.device("cuda"), headroom)
    assert (store.images.device.type == "cuda") == (headroom < 1)
    batch = store.batch(torch.tensor([3, 0]))
    assert batch.device.type == "cuda"
    assert torch.equal(batch.cpu(), expected(manifest)[[3, 0]])
