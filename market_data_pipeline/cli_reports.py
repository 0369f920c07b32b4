"""The commands that only look: what is promised and what is kept.

Add here: a report. Keep out: how its values come about (operations.reports, operations.objectives).
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from market_data_pipeline.cli_console import console, print_json, print_table, write_json


def register(app: typer.Typer) -> None:
    """Add the reports to the command line `app`."""
    app.command(epilog="Example: market-data objectives --json objectives.json")(objectives)


def objectives(
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the document to FILE; - for standard output."),
    ] = None,
) -> None:
    """Show what is promised: freshness per tier, and recovery per failure."""
    from market_data_pipeline.operations.objectives import objectives_document

    document = objectives_document()
    if json_file is not None:
        if str(json_file) == "-":
            print_json(document)
        else:
            write_json(json_file, document)
            console().print(f"Wrote {json_file}")
        return
    print_table(
        ("tier", "at most behind", "refreshed", "promise"),
        [
            (name, _span(tier["rpo_seconds"]), f"{tier['cron']} {tier['cron_timezone']}", tier["description"])
            for name, tier in document["tiers"].items()
        ],
        title="Freshness per tier (RPO)",
    )
    print_table(
        ("state", "condition", "what the API does"),
        [(name, rule["condition"], rule["action"]) for name, rule in document["freshness"].items()],
        title="States of a series",
    )
    print_table(
        ("failure", "over within", "symptom"),
        [(name, _span(one["rto_seconds"]), one["symptom"]) for name, one in document["recovery"].items()],
        title="Recovery per failure (RTO); the procedures are in the JSON document and docs/operations.md",
    )


def _span(seconds: float) -> str:
    """Return a duration in the units a person would say it in: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    whole = int(timedelta(seconds=seconds).total_seconds())
    parts = [(whole // 86_400, "d"), (whole // 3_600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    spoken = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(spoken[:2]) or "0 s"
