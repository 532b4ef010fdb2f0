"""The table of real people: a section per start, papers' numbers, and the order of methods beside drawn people's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.errors import UserError
from reports import real_people, verify
from reports.compare import compare, to_baseline
from reports.table import leaderboard, read_results
from tests.reports.synthetic import write_params, write_result

PEOPLE = np.repeat(np.arange(12), 2)
DRAWN = {"warm_start": 0.2, "cluster_contrast": 0.5, "hhcl": 0.6, "spcl": 0.7}
ALIKE, OPPOSITE = "cuhk03np_detected", "cuhk03np_detected-from-cuhk01"


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The leaderboard of synthetic results in two worlds, of which a reference is made."""
    monkeypatch.chdir(tmp_path)
    for name, level in DRAWN.items():
        for world in (0, 1):
            write_result(name, 0, np.full(len(PEOPLE), level + world / 100), PEOPLE, world=world)
    file = write_params(tmp_path, list(DRAWN), [0], [0, 1])
    assert verify.main(["--update"]) == 0
    results = read_results(real_people.cli.read_params_file(file))
    return to_baseline(leaderboard([result.record for result in results]), compare(results))


def test_every_start_has_its_table_and_its_correlation_with_drawn_people(drawn: pd.DataFrame) -> None:
    scores = drawn["mAP_mean"]
    two = [drawn.assign(dataset=ALIKE), drawn.assign(dataset=OPPOSITE, mAP_mean=100 - scores)]
    text = real_people.markdown(pd.concat(two, ignore_index=True), drawn, ["abc"], "# Cross-domain\n\nthe matrix")
    assert "from ImageNet alone\n" in text
    assert "## cuhk03np_detected, from ImageNet, then labelled people of cuhk01\n" in text
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "| cuhk03np_detected, from ImageNet alone | 3 | +1.00 (0.333) | +1.00 (0.333) |" in lines
    assert (
        "| cuhk03np_detected, from ImageNet, then labelled people of cuhk01 | 3 | -1.00 (0.333) | -1.00 (0.333) |"
        in lines
    )
    assert "| hhcl | 60.5 | 60.5 | 39.5 |" in lines
    assert text.index("## Trained here, tested there") < text.index("the matrix")
    assert "not comparable with those of papers" in text


def test_the_command_reads_results_here_and_a_reference_of_drawn_people(drawn: pd.DataFrame) -> None:
    arguments = ["--params", "params.yaml", "--drawn", "results/reference", "--out", "out/real.2"]
    assert real_people.main(arguments) == 0
    written = pd.read_csv("out/real.2.csv")
    assert written["mAP_mean"].tolist() == pytest.approx(drawn["mAP_mean"].tolist())
    assert "| hhcl" in Path("out/real.2.md").read_text()


def test_the_page_says_what_clusters_join_most_cameras_first_and_leaves_out_what_joins_nothing(
    drawn: pd.DataFrame, tmp_path: Path
) -> None:
    shares = {"hhcl": [0.05, 0.02], "cluster_contrast": [0.05, 0.21], "selective_contrastive": [0, 0]}
    for name, links in shares.items():
        audited = {"audit_cross_camera_link_share": links, "audit_pair_recall": links, "audit_purity": [0.5, 0.75]}
        outliers = {"audit_outlier_share": [0.3, 0.1]}
        curves = pd.DataFrame({"epoch": [1, 2], "mAP": [None, 0.5], **audited, **outliers})
        write_result(name, 0, np.full(len(PEOPLE), 0.5), PEOPLE, curves=curves)
    write_result("spcl", 0, np.full(len(PEOPLE), 0.5), PEOPLE)
    params = write_params(tmp_path, [*shares, "spcl"], [0])
    found = real_people.clusters(read_results(real_people.cli.read_params_file(params)))
    (text,) = found.values()
    rows = [" ".join(line.split()) for line in text.splitlines()[2:]]
    assert rows == [
        "| cluster_contrast | sequential | 50.0 | 5.0 | 21.0 | 75.0 | 10.0 |",
        "| hhcl | released | 50.0 | 5.0 | 2.0 | 75.0 | 10.0 |",
    ]
    assert "### What the clusters join" in real_people.markdown(drawn, drawn, joined=found)


def test_the_matrix_is_the_folders_that_is_named_or_else_the_references(drawn: pd.DataFrame) -> None:
    arguments = ["--params", "params.yaml", "--drawn", "results/reference", "--reference", "there", "--out", "out/real"]
    for folder in ("there/cross_domain", "own"):
        Path(folder).mkdir(parents=True)
    Path("there/cross_domain/matrix.md").write_text("# Cross-domain\n\ncommitted cells\n")
    Path("own/matrix.md").write_text("# Cross-domain\n\ncells of this machine\n")
    assert real_people.main(arguments) == 0
    assert "## Trained here, tested there\n\ncommitted cells" in Path("out/real.md").read_text()
    assert real_people.main([*arguments, "--cross-domain", "own"]) == 0
    assert "## Trained here, tested there\n\ncells of this machine" in Path("out/real.md").read_text()
    with pytest.raises(UserError, match=r"own.gone/matrix\.md is not there; .*cross_domain --out own.gone"):
        real_people.main([*arguments, "--cross-domain", "own/gone"])


def test_a_run_that_was_not_made_here_is_taken_from_the_reference_if_its_settings_are_the_same(
    drawn: pd.DataFrame, tmp_path: Path
) -> None:
    shutil.rmtree("results/runs/hhcl-rendered-0-resnet18_half-0")
    shutil.rmtree("results/runs/spcl-rendered-1-resnet18_half-0")
    arguments = ["--params", "params.yaml", "--drawn", "results/reference", "--out", "out/real"]
    assert real_people.main([*arguments, "--reference", "results/reference"]) == 0
    assert pd.read_csv("out/real.csv")["mAP_mean"].tolist() == pytest.approx(drawn["mAP_mean"].tolist())
    file = tmp_path / "params.yaml"
    file.write_text(file.read_text() + "overrides: {clustering: {eps: 0.4}}\n")
    assert real_people.main([*arguments, "--reference", "results/reference"]) == 0
    written = pd.read_csv("out/real.csv").set_index("method")
    assert written.loc["hhcl", "status"] == "not run (1 of 2 runs)"
