"""One page to look at: table, figures and failures of all runs, in a file that needs no network.

`--from results/reference` makes it of the committed results alone; panels whose data a clone lacks say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from core.files import write_text
from pipeline import cli
from reports import external, reference
from reports.page import (
    ablations,
    board,
    cameras,
    cost,
    differences,
    distances,
    drawn_and_real,
    failures,
    outside,
    published,
    queries,
    settings,
    training,
)
from reports.page.material import Material, gather
from reports.page.panel import Panel
from reports.page.render import page
from reports.record import Result

REFERENCE = Path("results/reference")
LARGEST = 4_000_000  # bytes of the page


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print its name and size."""
    arguments = cli.parser("report", __doc__ or "")
    reference.add_source_arguments(arguments)
    arguments.add_argument("--out", type=Path, default=Path("results/report.html"), help="file to write")
    options = arguments.parse_args(argv)
    results = reference.chosen(options)
    material = gather(results)
    beside = outside.panel(external.chosen(options), results)
    text = whole(material, panels(material, options.source or Path("results"), beside), facts(results))
    write_text(options.out, text)
    print(f"wrote {options.out}, {len(text.encode()) / 1e6:.1f} MB")
    return 0


def panels(material: Material, folder: Path, beside: Panel) -> list[Panel]:
    """Every panel of the page but the last, in their order; ``beside`` is that of systems from outside."""
    compared = [board.panel(material), differences.panel(material), beside]
    measured = [module.panel(material) for module in (cost, training, queries, distances, cameras)]
    own = folder / "ablations"
    ablated = ablations.panel(own if any(own.glob("*.csv")) else REFERENCE / "ablations")
    others = [module.panel(material) for module in (published, drawn_and_real, settings)]
    return [*compared, *measured, ablated, *others]


def whole(material: Material, shown: Sequence[Panel], told: Mapping[str, str]) -> str:
    """The page with the pictures of failures that it still has room for below LARGEST bytes."""
    used = len(page(material, shown, told).encode())
    return page(material, [*shown, failures.panel(material, LARGEST - used)], told)


def facts(results: Sequence[Result]) -> dict[str, str]:
    """What stands under the page's title."""
    made = [result.record for result in results if result.ok]
    names = {
        "datasets": sorted({record.tested_on.title for record in made}),
        "profile": sorted({record.run.profile for record in made}),
        "commit": sorted({(record.provenance.commit or "unknown")[:7] for record in made}),
        "device": sorted({record.provenance.device for record in made}),
    }
    return {
        "runs": f"{len(made)} of {len(results)}",
        **{name: ", ".join(found) for name, found in names.items() if found},
    }
