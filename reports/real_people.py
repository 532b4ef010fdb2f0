"""Real people beside drawn ones: params.cuhk03.yaml's results as a table, and whether drawn worlds order methods alike.

A run that was not made here is taken from the reference of real people, which `verify --update` writes, if it has it
with the same settings. Writes OUT.md and OUT.csv. A section for each start of the same target; what papers publish for
the target; the order of methods here against that of a reference of drawn people; and the matrix that `cross_domain`
wrote, from --cross-domain or else from the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

import datasets
import methods
from core.errors import UserError
from core.files import write_csv, write_text
from evaluation import metrics
from pipeline import cli
from pipeline.records import ResultRecord, adaptive
from reports import correlation, reference
from reports.compare import NOTE as COMPARISON_NOTE
from reports.compare import compare, difference_table, to_baseline
from reports.leaderboard import ADAPTIVE_NOTE, adaptive_table, main_table, named
from reports.published import rows as published_rows
from reports.record import Result
from reports.table import KEY, MAIN, NOT_RUN, adaptive_rows, leaderboard, read_results, warn_of_unusable
from reports.text import markdown_table, number

HEADING = """\
# CUHK03-NP detected, 64x128 copies: real people on a small machine

MobileNetV2 from ImageNet weights, images of 64x128 pixels, 300 steps on CPU cores (profile `controlled_real`). **These
numbers are not comparable with those of papers**, which train a ResNet-50 at four times the pixels and for many times
the images. They compare methods with each other, on real people. The images are not in this repository.
"""
NOTE = (
    "mAP and the rest in percent, last epoch; a seed is a warm start and a training. Two seeds give no verdict. A row "
    "without numbers says in `status` what became of it."
)
PAPERS = "What papers print for {dataset}, with ResNet-50 or larger at full size:"
ORDER = (
    "Headline variants that both have; mAP in percent. The drawn figures are of {worlds}. A coefficient near 1 says "
    "that drawn people order methods as these real people do, from that start, with that network, after few steps. "
    "p is of one start, and not corrected for their number."
)


CLUSTERS = (
    "Audit of the pseudo-labels by the identities, which no method sees; mean over seeds, in percent. Links across "
    "cameras: of the pairs of images that clusters join, those of two cameras, in the first and in the last epoch. "
    "Purity: of the clustered images, those of their cluster's most frequent person. Outliers: of all training images."
)
LINKS = "links across cameras, last"
AUDIT = {  # titles of columns, and of what in a run's curves
    MAIN.title: (MAIN.name, -1),
    "links across cameras, first": ("audit_cross_camera_link_share", 0),
    LINKS: ("audit_cross_camera_link_share", -1),
    "purity": ("audit_purity", -1),
    "outliers": ("audit_outlier_share", -1),
}

REFERENCE = Path("results/reference/cuhk03np_detected")
CROSS_DOMAIN = "cross_domain"  # folder of a reference


def main(argv: Sequence[str] | None = None) -> int:
    """Write OUT.md and OUT.csv, and print the former."""
    arguments = cli.parser("real_people", __doc__ or "")
    arguments.add_argument("--params", type=Path, default=Path("params.cuhk03.yaml"), help="what was run")
    arguments.add_argument("--reference", type=Path, default=REFERENCE, help="runs that were made earlier or elsewhere")
    arguments.add_argument("--drawn", type=Path, default=Path("results/reference"), help="a reference of drawn people")
    written = "folder that `cross_domain` wrote (default: REFERENCE/cross_domain, if it is there)"
    arguments.add_argument("--cross-domain", type=Path, help=written)
    arguments.add_argument("--out", type=Path, default=Path("results/cuhk03np_detected"), help="files, less .md, .csv")
    options = arguments.parse_args(argv)
    results = with_committed(read_results(cli.read_params(options)), options.reference)
    warn_of_unusable(results)
    table = to_baseline(leaderboard([result.record for result in results]), compare(results))
    made = [result.record for result in results if isinstance(result.record, ResultRecord)]
    commits = sorted({record.provenance.commit or "unknown code" for record in made})
    drawn = leaderboard([result.record for result in reference.read(options.drawn)])
    matrix = matrix_of(options.cross_domain, options.reference)
    text = markdown(table, drawn, commits, matrix, clusters(results))
    write_csv(Path(f"{options.out}.csv"), table)
    write_text(Path(f"{options.out}.md"), text)
    print(text)
    return 0


def matrix_of(folder: Path | None, there: Path) -> str:
    """The matrix in ``folder``, or else of the reference ``there``, if any; UserError for a folder that has none."""
    committed = there / CROSS_DOMAIN
    if folder is None and not committed.is_dir():
        return ""
    file = (folder or committed) / "matrix.md"
    if not file.is_file():
        raise UserError(f"{file} is not there; `python -m pipeline cross_domain --out {file.parent}` writes it")
    return file.read_text()


def with_committed(results: Sequence[Result], folder: Path) -> list[Result]:
    """``results`` with the reference's in place of those that were not run here, where its settings are the same."""
    there = {identity(result): result for result in reference.read(folder)}
    return [there.get(identity(result), result) if result.record.status == NOT_RUN else result for result in results]


def identity(result: Result) -> tuple[object, ...]:
    """What a result is of: its row, settings, world, fold and seed."""
    run = result.record.run
    return *(getattr(run, name) for name in KEY), run.config_hash, *reference.where(result)


def clusters(results: Sequence[Result]) -> dict[str, str]:
    """By dataset, Markdown of what the clusters of each label-free row join, those that join most cameras first."""
    row = ["dataset", "method", "variant"]
    lines = [
        {name: getattr(result.record.run, name) for name in row}
        | {title: 100 * result.curves[name].dropna().iloc[place] for title, (name, place) in AUDIT.items()}
        for result in results
        if clustered(result)
    ]
    means = pd.DataFrame(lines, columns=[*row, *AUDIT]).groupby(row, as_index=False, sort=False).mean()
    means = means.sort_values(LINKS, ascending=False, kind="stable")
    shown = means.assign(**{title: [number(value) for value in means[title]] for title in AUDIT})
    return {str(name): markdown_table(part.drop(columns="dataset")) for name, part in shown.groupby("dataset")}


def clustered(result: Result) -> bool:
    """Whether a run is a label-free one whose pseudo-labels were audited and joined images of one person."""
    if not isinstance(result.record, ResultRecord) or not result.ok or adaptive(result.record):
        return False
    return "audit_pair_recall" in result.curves and bool((result.curves["audit_pair_recall"] > 0).any())


def markdown(
    table: pd.DataFrame,
    drawn: pd.DataFrame,
    commits: Sequence[str] = (),
    matrix: str = "",
    joined: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The page: a section per start, papers, order of methods, and ``matrix`` under a heading of its own.

    ``joined``: by dataset, what its clusters join.
    """
    sections = [HEADING, f"Trained by the code of {', '.join(commits)}.\n" if commits else "", NOTE, ""]
    for dataset, part in table.groupby("dataset", sort=False):
        plain, adapted = part[~adaptive_rows(part)], part[adaptive_rows(part)]
        sections += [f"## {started(str(dataset))}", "", main_table(plain), ""]
        compared = plain.dropna(subset=["baseline"])
        if len(compared):
            sections += [
                "### Differences to the baseline",
                "",
                COMPARISON_NOTE,
                "",
                difference_table(named(compared)),
                "",
            ]
        if dataset in joined:
            sections += ["### What the clusters join", "", CLUSTERS, "", joined[str(dataset)], ""]
        if len(adapted):
            sections += ["### Domain-adaptive methods", "", ADAPTIVE_NOTE, "", adaptive_table(adapted), ""]
    sections += ["## Papers", "", papers(table), "", "## Drawn and real people", "", order(table, drawn), ""]
    sections += ["## Trained here, tested there", "", matrix.partition("\n\n")[2]] if matrix else []
    return "\n".join(sections)


def started(dataset: str) -> str:
    """What a section's trainings start from."""
    target, source = datasets.split_pair(dataset)
    return f"{target}, from ImageNet" + (f", then labelled people of {source}" if source else " alone")


def papers(table: pd.DataFrame) -> str:
    """Published numbers of the targets, of any method, where there are any."""
    targets = {datasets.split_pair(name)[0] for name in table["dataset"]}
    lines = [
        {"method": method, "variant": row.variant, "backbone": row.backbone, "dataset": row.dataset}
        | {metric.title: number(row.figure(metric.name), metric.form) for metric in metrics.JUDGES}
        | {"source": row.source}
        for method in methods.available()
        for row in published_rows(method)
        if row.dataset in targets and row.figure(MAIN.name) is not None
    ]
    told = PAPERS.format(dataset=", ".join(sorted(targets)))
    return f"{told}\n\n{markdown_table(lines)}" if lines else "No paper that was read prints a number for these boxes."


def order(table: pd.DataFrame, drawn: pd.DataFrame) -> str:
    """Rank correlation of every start's methods with those of drawn people, backbone by backbone, and the figures."""
    columns = {
        started(str(dataset)): correlation.headlines(part[~adaptive_rows(part)])
        for dataset, part in table.groupby("dataset", sort=False)
    }
    told = []
    for backbone, rows in drawn[~adaptive_rows(drawn)].groupby("backbone", sort=False):
        theirs = correlation.headlines(rows)
        lines = [
            {"real people": title, **coefficients(correlation.rank_correlation(ours, theirs))}
            for title, ours in columns.items()
        ]
        shared = [name for name in theirs if any(name in ours for ours in columns.values())]
        figures = [
            {"method": name, "drawn": number(theirs[name])}
            | {title: number(ours.get(name)) for title, ours in columns.items()}
            for name in sorted(shared, key=lambda name: -theirs[name])
        ]
        worlds = f"{backbone} in {rows['worlds'].max()} drawn world(s)"
        told += [ORDER.format(worlds=worlds), markdown_table(lines)] + ([markdown_table(figures)] if figures else [])
    return "\n\n".join(told)


def coefficients(found: correlation.RankCorrelation | None) -> dict[str, str]:
    """Cells of one correlation; dashes where fewer than three methods are shared."""
    if found is None:
        return {"methods": f"fewer than {correlation.FEWEST}", "Spearman (p)": "-", "Kendall (p)": "-"}
    return {
        "methods": str(len(found.methods)),
        "Spearman (p)": f"{found.spearman:+.2f} ({found.spearman_p:.3f})",
        "Kendall (p)": f"{found.kendall:+.2f} ({found.kendall_p:.3f})",
    }
