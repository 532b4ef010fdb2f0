"""The leaderboard for papers and programs: CSV, Markdown, LaTeX and JSON, all of one table.

`--selection best_on_test` writes the numbers picked on the test split, as papers do, to files of that name; the two
rules never share a table, and significance marks exist for `last` only, of which per-query results are kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core import distributed
from core.errors import UserError
from core.files import write_text
from core.provenance import provenance
from evaluation import metrics
from pipeline import cli
from pipeline.jobs import ROOT
from reports.compare import RANKS, TO_BASELINE
from reports.statistics import ALPHA
from reports.table import ADAPTIVE, CEILING, FLOOR, KEY, MAIN, adaptive_rows, notices
from reports.text import counts, markdown_table, number

GROUP = ["dataset", "profile", "backbone"]
NUMBERS = {f"{metric.name}_mean": metric for metric in metrics.BOARD}
MEAN, SD = f"{MAIN.name}_mean", f"{MAIN.name}_sd"
DATA_COLUMNS = [
    *(*KEY, "selection", "worlds", "seeds", MEAN, SD, *RANKS, *list(NUMBERS)[1:]),
    *(f"published_{judge.name}" for judge in metrics.JUDGES),
    *("camera_use", "fidelity", "initial_weights", "status"),
    *TO_BASELINE,
]
BEST = {f"{judge.name}_mean": f"{judge.name}_best_on_test_mean" for judge in metrics.JUDGES}
LAST_ONLY = [
    *(SD, *(name for name in NUMBERS if name not in BEST)),
    *(*RANKS, *TO_BASELINE),
]
ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the four files and print their names."""
    arguments = cli.parser("exports", __doc__ or "")
    arguments.add_argument("--table", type=Path, default=Path("results/leaderboard.csv"), help="the table to export")
    arguments.add_argument("--out", type=Path, default=Path("results/exports"), help="folder to write")
    arguments.add_argument(
        "--selection", choices=["last", "best_on_test"], default="last", help="which epoch's numbers"
    )
    options = arguments.parse_args(argv)
    if not options.table.is_file():
        raise UserError(f"{options.table} does not exist; run `python -m pipeline.leaderboard` first")
    table = choose(pd.read_csv(options.table), options.selection)
    commit = provenance(distributed.start("cpu"), ROOT)["commit"]
    made_from = {"table": options.table.as_posix(), "selection": options.selection, "commit": commit}
    name = "leaderboard" if options.selection == "last" else f"leaderboard_{options.selection}"
    for ending, text in render(table, made_from).items():
        file = options.out / f"{name}.{ending}"
        write_text(file, text)
        print(f"wrote {file}")
    return 0


def choose(table: pd.DataFrame, selection: str) -> pd.DataFrame:
    """DATA_COLUMNS under one selection rule; what the rule has no numbers for is empty.

    Raises UserError when the table lacks columns or was written by another rule than ``last``.
    """
    missing = [name for name in (*DATA_COLUMNS, *BEST.values()) if name not in table]
    if missing:
        raise UserError(f"the table lacks the columns {missing}; write it again with `python -m pipeline.leaderboard`")
    strange = sorted(set(table["selection"]) - {"last"})
    if strange:
        raise UserError(f"the table holds rows selected by {strange}; export the one that `leaderboard` writes")
    if selection == "best_on_test":
        table = table.assign(**{name: table[best] for name, best in BEST.items()}, selection=selection)
        table[LAST_ONLY] = float("nan")
    return table[[*DATA_COLUMNS, *([ADAPTIVE] if ADAPTIVE in table else [])]]


def render(table: pd.DataFrame, made_from: dict[str, Any]) -> dict[str, str]:
    """Text of each format by file ending."""
    source = ", ".join(f"{name} {value}" for name, value in made_from.items())
    rows = json.loads(table.to_json(orient="records"))
    return {
        "csv": table.to_csv(index=False),
        "json": json.dumps({**made_from, "rows": rows}, indent=2, ensure_ascii=False) + "\n",
        "md": markdown(table, source),
        "tex": latex(table, source),
    }


def groups(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The parts of the table whose rows may stand beside each other, with a title."""
    told = adaptive_rows(table).map({False: "", True: ", domain-adaptive"}).rename("group")
    parts = table.groupby([*GROUP, told], sort=False)
    return [
        (f"{dataset}, profile {profile}, {backbone}{group}", part)
        for (dataset, profile, backbone, group), part in parts
    ]


def resolved(row: pd.Series) -> bool:
    """Whether the row is told from its baseline, which is marked."""
    return row["verdict"] in ("better", "worse")


def printed(part: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Text of the numeric cells, and which of them is the best of its column among the methods.

    Warm start and supervised bound are no competitors. Cells that print alike are equally good.
    """
    text = pd.DataFrame(
        {name: [number(value, metric.form) for value in part[name]] for name, metric in NUMBERS.items()},
        index=part.index,
    )
    methods = ~part["method"].isin([FLOOR, CEILING])
    best = {}
    for name, metric in NUMBERS.items():
        competing = part[name][methods]
        top = competing.max() if metric.higher_is_better else competing.min()
        best[name] = methods & part[name].notna() & (text[name] == number(top, metric.form))
    return text, pd.DataFrame(best)


def selection_text(part: pd.DataFrame) -> str:
    """What the caption says about the epoch, the dataset and the profile."""
    last = part["selection"].iloc[0] == "last"
    best = "Best epoch on the test split (best-on-test): optimistic, and not comparable with last-epoch numbers."
    told = notices(part["dataset"].iloc[0], part["profile"].iloc[0])
    return " ".join(["Last epoch." if last else best, *map(sentence, told)])


def sentence(text: str) -> str:
    """``text`` with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def mark_text(part: pd.DataFrame, mark: str) -> str:
    """What the caption says about the mark; nothing where there is no comparison."""
    if part["baseline"].isna().all():
        return ""
    return f" {mark}: differs from its baseline (Holm-corrected p at most {ALPHA})."


def markdown(table: pd.DataFrame, source: str) -> str:
    """One table per group; best in bold, the mark behind the mAP."""
    sections = [f"<!-- {source} -->", ""]
    for title, part in groups(table):
        text, best = printed(part)
        rows = []
        for index, row in part.iterrows():
            cells = {
                metric.short: f"**{text.at[index, name]}**" if best.at[index, name] else text.at[index, name]
                for name, metric in NUMBERS.items()
            }
            cells[MAIN.short] += r"\*" if resolved(row) else ""
            cells["sd"] = number(row[SD], MAIN.form)
            names = {name: str(row[name]) for name in ("method", "variant")}
            made_of = {title: texts[len(rows)] for title, texts in counts(part).items()}
            rows.append({**names, **made_of, **cells, "status": str(row["status"])})
        body = markdown_table(rows)
        note = selection_text(part) + mark_text(part, r"\*")
        sections += [f"## {title}", "", note, "", body, ""]
    return "\n".join(sections)


def latex(table: pd.DataFrame, source: str) -> str:
    """One `table` per group for the booktabs package; best in bold, mark and sd at the mAP."""
    lines = [f"% {source}", r"% needs \usepackage{booktabs}"]
    for title, part in groups(table):
        note = escape(selection_text(part))
        note += mark_text(part, "$^{*}$")
        lines += [
            "",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{escape(title)}. {note}}}",
            f"\\begin{{tabular}}{{ll{'r' * len(NUMBERS)}}}",
            r"\toprule",
            " & ".join(["Method", "Variant", *(metric.short for metric in NUMBERS.values())]) + r" \\",
            r"\midrule",
            *latex_rows(part),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def latex_rows(part: pd.DataFrame) -> list[str]:
    """Body of one tabular; a row without numbers says why in the place of its mAP."""
    text, best = printed(part)
    lines = []
    for index, row in part.iterrows():
        cells = ["--" if value == "-" else value for value in text.loc[index]]
        cells = [
            f"\\textbf{{{value}}}" if best.at[index, name] else value
            for name, value in zip(NUMBERS, cells, strict=True)
        ]
        if not pd.isna(row[SD]):
            cells[0] += f" {{\\scriptsize $\\pm$ {number(row[SD], MAIN.form)}}}"
        numbers = not row[list(NUMBERS)].isna().all()
        cells[0] = cells[0] + "$^{*}$" * resolved(row) if numbers else escape(row["status"].split()[0])
        lines.append(" & ".join([escape(row["method"]), escape(row["variant"]), *cells]) + r" \\")
    return lines


def escape(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(ESCAPES.get(sign, sign) for sign in str(text))
