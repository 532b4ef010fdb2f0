"""Search a folder of crops for the people of another: for each query image the most alike images of the gallery.

Where the model's test is known, each answer says whether its distance is below the thresholds at which 1 % and 0.1 % of
the test's pairs of different people were taken for one person. No labels are needed. Images of a query's own file are
ranked like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.files import write_csv, write_text
from pipeline import cli
from pipeline.crops import Crops, embed_folder
from pipeline.embed import shown, tell_unreadable
from pipeline.model import Model, load_model
from pipeline.strips import page


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 when the ranked lists are written."""
    arguments = cli.parser("search", __doc__ or "")
    arguments.add_argument("--query", type=Path, required=True, help="folder of crops of the people to look for")
    arguments.add_argument("--gallery", type=Path, required=True, help="folder of crops to look in")
    arguments.add_argument("--top", type=cli.positive, default=10, help="answers per query")
    arguments.add_argument("--html", type=Path, help="a page with thumbnails to write; it needs no other file")
    arguments.add_argument("--csv", type=Path, help="a table to write: query, rank, gallery, distance and thresholds")
    arguments.add_argument(
        "--shown", type=cli.positive, default=100, help="queries that the page shows, the first ones"
    )
    cli.add_model_arguments(arguments)
    options = arguments.parse_args(argv)
    if not options.html and not options.csv:
        arguments.error("name what to write: --html FILE.html, --csv FILE.csv or both")
    model = load_model(options.model, options.device)
    shown(model)
    query, gallery = (
        embed_folder(model, folder, options.batch, options.strict) for folder in (options.query, options.gallery)
    )
    for crops in (query, gallery):
        tell_unreadable(crops)
    answers = ranked(model, query, gallery, options.top)
    if options.csv:
        write_csv(options.csv, answers)
    if options.html:
        write_text(options.html, page(model, query, gallery, answers, options.shown))
    print(f"{len(query.files)} queries, {len(gallery.files)} gallery images, the {options.top} most alike of each")
    for line in threshold_lines(model):
        print(line)
    print("\n".join(f"-> {file}" for file in (options.html, options.csv) if file))
    return 0


def ranked(model: Model, query: Crops, gallery: Crops, top: int) -> pd.DataFrame:
    """A row for each answer: ``query``, ``rank`` from 1, ``gallery``, ``distance``, and whether it is below thresholds.

    There is a column for each known one, as ``below_fpr_0.01``. Of equal distances the earlier file ranks first.
    """
    tables = []
    for rows, distance in model.distances(query.embedded, gallery.embedded):
        order = np.argsort(distance, axis=1, kind="stable")[:, :top]
        count = order.shape[1]
        table = {
            "query": np.repeat(query.files[rows], count),
            "rank": np.tile(np.arange(1, count + 1), len(order)),
            "gallery": np.array(gallery.files)[order.ravel()],
            "distance": np.take_along_axis(distance, order, axis=1).ravel(),
        }
        tables.append(pd.DataFrame(table))
    answers = pd.concat(tables, ignore_index=True)
    below = {f"below_fpr_{fpr:g}": answers["distance"] <= limit for fpr, limit in model.thresholds.items()}
    return answers.assign(**below)


def threshold_lines(model: Model) -> list[str]:
    """What the thresholds are, for people."""
    if not model.thresholds:
        return ["no thresholds are known: the model was not tested, or on too few pairs"]
    return [
        f"distance <= {limit:.4f}: {100 * fpr:g} % of the pairs of different people in its test are as near"
        for fpr, limit in model.thresholds.items()
    ]


if __name__ == "__main__":
    cli.run_main(main)
