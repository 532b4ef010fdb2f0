"""The golden files pass, and the comparison notices what it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity import arrays
from tests.parity.files import KINDS, compare_file, main

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
FILES = sorted(GOLDEN.glob("*.npz"))


def rewritten(name: str, folder: Path, **changes: np.ndarray) -> Path:
    """A copy of a golden file in ``folder`` with some arrays replaced."""
    with np.load(GOLDEN / name) as data:
        np.savez(folder / name, **{**data, **changes})
    return folder / name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_file_is_reproduced(path: Path) -> None:
    result = compare_file(path)
    assert result.status == "pass", result


@pytest.mark.parametrize("kind", ["cluster_contrast_cm", "cluster_contrast_hard", "hhcl_released", "hhcl_hybrid"])
def test_memories_and_losses_reach_the_tolerance_in_float32_as_in_training(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "DTYPE", torch.float32)
    assert compare_file(GOLDEN / f"{kind}.npz").status == "pass"


def test_a_training_in_lockstep_agrees_to_the_last_digits_on_one_thread_as_well() -> None:
    torch.set_num_threads(1)
    result = compare_file(GOLDEN / "lockstep_hhcl.npz")
    assert result.status == "pass", result
    assert result.error is not None
    assert result.error < 1e-12


def test_a_training_with_momentum_0_11_instead_of_0_1_is_refused(tmp_path: Path) -> None:
    """The control: how far a small mistake moves what the other tests hold to 1e-9."""
    name = "lockstep_cluster_contrast.npz"
    with np.load(GOLDEN / name) as data:
        assert data["momentum"] == 0.1
    result = compare_file(rewritten(name, tmp_path, momentum=np.float64(0.11)))
    assert result.status == "FAIL"
    assert result.error is not None
    assert result.error > 1e-3
    assert "loss" in result.remark
    assert "memory" in result.remark


def test_a_lockstep_run_whose_labels_differ_ends_there_and_says_so(tmp_path: Path) -> None:
    name = "lockstep_spcl.npz"
    with np.load(GOLDEN / name) as data:
        eps = data["eps"] - 0.1
    result = compare_file(rewritten(name, tmp_path, eps=eps))
    assert result.status == "FAIL"
    assert result.remark == "labels_0"


def test_a_lockstep_file_of_a_method_without_a_driver_is_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "lockstep_ice.npz").write_bytes((GOLDEN / "lockstep_hhcl.npz").read_bytes())
    assert compare_file(tmp_path / "lockstep_ice.npz").status == "unknown kind"


def test_every_kind_is_covered_by_a_golden_file() -> None:
    stems = [path.stem for path in FILES]
    assert all(any(stem.startswith(kind) for stem in stems) for kind in KINDS)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("jaccard_n150_k15_1.npz", "distance"),
        ("jaccard_n150_k15_1.npz", "labels"),
        ("market_metric_q15_g60.npz", "cmc"),
        ("market_metric_q15_g60.npz", "mAP"),
        ("rerank.npz", "distance"),
        ("cluster_contrast_cm.npz", "memory_1"),
        ("cluster_contrast_hard.npz", "loss_2"),
        ("hhcl_released.npz", "grad_1"),
        ("hhcl_hybrid.npz", "memory_3"),
    ],
)
def test_one_changed_value_fails_its_file(name: str, array: str, tmp_path: Path) -> None:
    with np.load(GOLDEN / name) as data:
        changed = data[array].copy()
    changed.flat[0] += 1 if changed.dtype.kind == "i" else 1e-3
    result = compare_file(rewritten(name, tmp_path, **{array: changed}))
    assert result.status == "FAIL"
    assert array in result.remark


def test_a_nan_in_a_golden_file_fails_it(tmp_path: Path) -> None:
    with np.load(GOLDEN / "rerank.npz") as data:
        distance = data["distance"].copy()
    distance[0, 0] = np.nan
    assert compare_file(rewritten("rerank.npz", tmp_path, distance=distance)).failed


@pytest.mark.parametrize("update", ["cm", "hard"])
def test_the_update_rules_of_cluster_contrast_are_told_apart(update: str, tmp_path: Path) -> None:
    """The file of one rule under the name of the other does not pass."""
    other = {"cm": "hard", "hard": "cm"}[update]
    content = (GOLDEN / f"cluster_contrast_{update}.npz").read_bytes()
    swapped = tmp_path / f"cluster_contrast_{other}.npz"
    swapped.write_bytes(content)
    assert compare_file(swapped).status == "FAIL"


@pytest.mark.parametrize("content", [b"", b"not an archive", None], ids=["empty", "text", "short"])
def test_a_damaged_file_fails_with_its_reason_instead_of_a_crash(content: bytes | None, tmp_path: Path) -> None:
    damaged = tmp_path / "rerank_7.npz"
    damaged.write_bytes((GOLDEN / "rerank.npz").read_bytes()[:2000] if content is None else content)
    result = compare_file(damaged)
    assert result.status == "FAIL"
    assert result.remark


def test_a_file_without_the_arrays_of_its_kind_fails(tmp_path: Path) -> None:
    np.savez(tmp_path / "cluster_contrast_cm_9.npz", temperature=0.05, momentum=0.1)
    result = compare_file(tmp_path / "cluster_contrast_cm_9.npz")
    assert result.status == "FAIL"
    assert "memory_0" in result.remark


def test_a_file_of_an_unknown_kind_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "newest.npz").write_bytes(b"")
    assert main([str(tmp_path)]) == 1
    assert "unknown kind" in capsys.readouterr().out


def test_a_folder_without_golden_files_is_an_error_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert main([str(folder)]) == 2
        assert "no .npz file" in capsys.readouterr().err


def test_the_command_line_exits_non_zero_for_a_corrupted_file(tmp_path: Path) -> None:
    with np.load(GOLDEN / "rerank.npz") as data:
        distance = data["distance"] + np.float32(0.01)
    rewritten("rerank.npz", tmp_path, distance=distance)
    command = [sys.executable, "-m", "tests.parity"]
    run = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert "FAIL" in run.stdout
