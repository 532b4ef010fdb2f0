"""Gather all runs into one table: CSV for machines, Markdown for people, curves as a picture and for DVC."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from core.files import replacing, write_csv, write_json, write_text
from evaluation import metrics
from pipeline import cli
from reports import external, reference
from reports.compare import NOTE as COMPARISON_NOTE
from reports.compare import RANKS, SOURCE_ALONE, TO_TARGET_ALONE, compare, difference_table, to_baseline
from reports.correlation import beside_papers
from reports.published import rows as published_rows
from reports.record import Result
from reports.summary import curves, summary
from reports.table import KEY, MAIN, NOT_RUN, adaptive_rows, leaderboard, notices
from reports.text import NONE, against, counts, markdown_table, number, text_or_dash
from reports.worlds import world_table

NONE_BESIDE = MappingProxyType[str, str]({})
SHOWN = {
    "method": "method",
    "variant": "variant",
    "backbone": "backbone",
    "worlds": "worlds",
    "seeds": "seeds",
    f"{MAIN.name}_mean": MAIN.title,
    f"{MAIN.name}_sd": "sd",
    "rank": "rank",
    "gain_over_warm_start": "gain",
    **{f"{metric.name}_mean": metric.title for metric in metrics.BOARD[1:] if metric.shown},
    f"{MAIN.name}_best_on_test_mean": f"{MAIN.title} best-on-test",
    "camera_use": "cameras",
    "fidelity": "fidelity",
    "initial_weights": "initial weights",
    "status": "status",
}
COST = {
    "method": "method",
    "variant": "variant",
    "backbone": "backbone",
    "images_seen": "images seen",
    "source_images_seen": "source images seen",
    "pretraining_images_seen": "pre-training images seen",
    "images_per_second": "images/s",
    "seconds_extract": "s extract",
    "seconds_label": "s label",
    "seconds_memories": "s memories",
    "seconds_train": "s train",
    "minutes": "minutes",
    "peak_memory_gib": "peak GiB",
}
COST_NOTE = (
    "Mean over runs of the whole run. Source images are seen beside the others, with their ids; those of pre-training "
    "by a method, before the fine-tuning that the row is of. images/s: images seen in training per second of the run, "
    "labelling included. "
    "`label`: all between extraction and the memories (Jaccard distance, DBSCAN, what the method adds). Peak memory is "
    "the device's on CUDA and the process's on the CPU. Timings of runs that shared a machine are upper bounds."
)
NOTE = (
    f"{', '.join(metric.title for metric in metrics.BOARD if metric.shown)}: in percent, last epoch. "
    "`worlds`: each has drawn people, a warm start and a training of its own. "
    f"`sd`: of {MAIN.title} between worlds, or between seeds where a dataset has no worlds. "
    "`rank`: the ranks among the backbone's methods that no resolved pair excludes; overlapping ranks may be ties. "
    f"`gain`: {MAIN.title} above the backbone's warm start. "
    "`best-on-test` picks the epoch on the test split, as papers do, and is no headline. "
    "`cameras`: where the method uses camera labels."
)
ADAPTIVE_NOTE = (
    "These runs have more than the images of the target: the labels of a source, or a pre-training by a method. Each "
    "is compared with `supervised-source_longer`, the warm start trained on for as many steps on the source alone, and "
    "with Cluster Contrast from the same warm start, on the target alone. A row that is not `better` than the first "
    "has not been shown to learn from the target. Images seen are the mean of a run. The other columns are those "
    "above; ranks are among these rows."
)
PANELS = {MAIN.name: f"test {MAIN.title}", "audit_ari": "pseudo-label ARI", "clusters": "clusters"}
PUBLISHED_NOTE = (
    "What the papers print for photographs. No number above may be compared with them: `rendered` is drawn."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write leaderboard.csv, .md and the other tables and the curves; print the leaderboard."""
    arguments = cli.parser("leaderboard", __doc__ or "")
    reference.add_source_arguments(arguments)
    arguments.add_argument("--out", type=Path, default=Path("results"), help="folder to write")
    options = arguments.parse_args(argv)
    results = reference.chosen(options)
    outside = external.chosen(options)
    for fault in outside.faults:
        print(fault, file=sys.stderr)
    beside = external.compare(outside, results)
    write_csv(options.out / "external.csv", beside)
    text = write_table(results, options.out, external.sections(outside, beside))
    made = [result for result in results if result.record.status != NOT_RUN]
    draw_curves(made, options.out / "curves.png")
    write_csv(options.out / "curves.csv", curves(made))
    write_json(options.out / "summary.json", summary(results))
    print(text)
    return 0


def write_table(results: Sequence[Result], folder: Path, beside: Mapping[str, str] = NONE_BESIDE) -> str:
    """Write leaderboard.csv and .md and worlds.csv, and return the text of the second (``markdown``)."""
    table = compared_table(results)
    write_csv(folder / "leaderboard.csv", table)
    write_csv(folder / "worlds.csv", world_table(results))
    text = markdown(table, beside)
    write_text(folder / "leaderboard.md", text)
    return text


def compared_table(results: Sequence[Result]) -> pd.DataFrame:
    """The leaderboard with every row's difference to its baseline and its ranks in the last columns."""
    return to_baseline(leaderboard([result.record for result in results]), compare(results))


def markdown(table: pd.DataFrame, beside: Mapping[str, str] = NONE_BESIDE) -> str:
    """The leaderboard and the published numbers of its methods, one section per dataset and profile.

    ``beside``: by dataset, what stands below its table: systems from outside.
    """
    sections = ["# Leaderboard", ""]
    for (dataset, profile), part in table.groupby(["dataset", "profile"], sort=False):
        told = [f"Notice: {notice}.\n" for notice in notices(str(dataset), str(profile))]
        plain, adapted = part[~adaptive_rows(part)], part[adaptive_rows(part)]
        sections += [f"## {dataset}, profile {profile}", "", *told, NOTE, "", main_table(plain), ""]
        sections += [beside[dataset]] if dataset in beside else []
        compared = plain.dropna(subset=["baseline"])
        if len(compared):
            title = f"### Differences to the baseline: {dataset}, profile {profile}"
            sections += [title, "", COMPARISON_NOTE, "", difference_table(named(compared)), ""]
        if len(adapted):
            title = f"### Domain-adaptive methods: {dataset}, profile {profile}"
            sections += [title, "", ADAPTIVE_NOTE, "", adaptive_table(adapted), ""]
        sections += [f"### Order here and in the papers: {dataset}, profile {profile}", "", beside_papers(plain), ""]
        sections += [f"### Cost: {dataset}, profile {profile}", "", COST_NOTE, "", cost_table(part), ""]
    names = list(dict.fromkeys(table["method"]))
    sections += ["## Published numbers", "", PUBLISHED_NOTE, "", published_table(names), ""]
    return "\n".join(sections)


def main_table(part: pd.DataFrame) -> str:
    """Markdown of the columns worth reading at a glance."""
    shown = (
        part.assign(**counts(part), rank=rank_texts(part)).reindex(columns=shown_columns(part)).rename(columns=SHOWN)
    )
    formats = {metric.title: metric.form for metric in metrics.BOARD if metric.shown}
    formats |= {"sd": MAIN.form, "gain": f"+{MAIN.form}", f"{MAIN.title} best-on-test": MAIN.form}
    for column, form in formats.items():
        shown[column] = [number(value, form) for value in shown[column]]
    shown[["cameras", "initial weights"]] = shown[["cameras", "initial weights"]].fillna(NONE)
    shown["fidelity"] = [value if isinstance(value, str) else "reference" for value in shown["fidelity"]]
    return markdown_table(shown)


def adaptive_table(part: pd.DataFrame) -> str:
    """Markdown of the domain-adaptive rows: what each has seen, and its differences to both references."""
    source = part.where(part["baseline"] == SOURCE_ALONE)
    target = part[TO_TARGET_ALONE].rename(columns=lambda name: name.removeprefix("target_alone_"))
    return markdown_table(
        {
            **{name: part[name] for name in ("method", "variant", "backbone")},
            **counts(part),
            MAIN.title: [number(value, MAIN.form) for value in part[f"{MAIN.name}_mean"]],
            "sd": [number(value, MAIN.form) for value in part[f"{MAIN.name}_sd"]],
            "rank": rank_texts(part),
            "gain": [number(value, f"+{MAIN.form}") for value in part["gain_over_warm_start"]],
            "target images": [number(value, ".0f") for value in part["images_seen"]],
            "source images": [number(value, ".0f") for value in part["source_images_seen"]],
            "less the source alone": against(source),
            "verdict": text_or_dash(source["verdict"]),
            "less the target alone": against(target),
            "its verdict": text_or_dash(target["verdict"]),
            "fidelity": [value if isinstance(value, str) else "reference" for value in part["fidelity"]],
            "status": part["status"],
        }
    )


def shown_columns(part: pd.DataFrame) -> list[str]:
    """SHOWN, without worlds where the dataset has none."""
    return [name for name in SHOWN if name != "worlds" or part["worlds"].notna().any()]


def rank_texts(part: pd.DataFrame) -> list[str]:
    """``3``, or ``2 to 5``, for each row; a dash for a row without ranks."""
    low, high = ([number(value, ".0f") for value in part[name]] for name in RANKS)
    return [best if best == worst else f"{best} to {worst}" for best, worst in zip(low, high, strict=True)]


def cost_table(part: pd.DataFrame) -> str:
    """Markdown of what each run that trains costs."""
    seen = part[["images_seen", "source_images_seen"]].apply(pd.to_numeric).sum(axis=1)
    shown = part.loc[seen > 0, list(COST)].rename(columns=COST)
    for column in list(COST.values())[3:]:
        form = ".0f" if column.startswith("s ") or "images" in column else ".1f"
        shown[column] = [number(value, form) for value in shown[column]]
    return markdown_table(shown)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Leaderboard rows as `compare` names them: A is the row, B its baseline."""
    titles = [f"{row.method}:{row.variant}@{row.backbone}" for row in table.itertuples()]
    return table.assign(a=titles, b=table["baseline"])


def published_table(names: Sequence[str]) -> str:
    """Markdown of ``published.yaml`` of the named methods, with where each number was read."""
    rows = []
    for name in names:
        for row in published_rows(name):
            numbers = {metric.name: number(row.figure(metric.name), metric.form) for metric in metrics.PUBLISHED}
            rows.append(
                {
                    "method": name,
                    "variant": row.variant,
                    "dataset": row.dataset,
                    "backbone": row.backbone,
                    **numbers,
                    "source": row.source,
                }
            )
    return markdown_table(rows) if rows else "None."


def draw_curves(results: Sequence[Result], file: Path) -> None:
    """Test mAP and pseudo-label quality per epoch: a row of panels per backbone, a line per run (its first result)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first: dict[tuple[str, ...], Result] = {}
    for result in results:
        first.setdefault(tuple(getattr(result.record.run, name) for name in KEY), result)
    shown: dict[str, list[Result]] = {}
    for result in first.values():
        shown.setdefault(result.record.run.backbone, []).append(result)
    height = max(1, len(shown))  # a picture without lines where nothing was run
    figure, rows = pyplot.subplots(height, 3, figsize=(14, 3.8 * height), squeeze=False, layout="constrained")
    for axes, (backbone, listed) in zip(rows, shown.items(), strict=False):
        for colour, result in enumerate(listed):
            draw_run(axes, result, matplotlib.colormaps["tab20"](colour % 20))
        for axis, title in zip(axes, PANELS.values(), strict=True):
            axis.set(title=f"{title}, {backbone}", xlabel="epoch")
        if axes[0].get_lines():  # a protocol without mAP draws none
            axes[2].legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))
    with replacing(file) as picture:
        figure.savefig(picture, format="png", dpi=110)
    pyplot.close(figure)


def draw_run(axes: Sequence[Any], result: Result, colour: Any) -> None:
    """One run's lines; labels that pair no two images (instance discrimination) have no quality to draw."""
    table = result.curves
    paired = "audit_pair_recall" in table and (table["audit_pair_recall"] > 0).any()
    for axis, column in zip(axes, PANELS, strict=True):
        line = table.dropna(subset=[column]) if column in table else table[:0]
        if len(line) > 1 and (column == MAIN.name or paired):
            axis.plot(line["epoch"], line[column], marker=".", color=colour, label=result.record.run.name)
