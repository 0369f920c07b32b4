"""Writes the figures of the last measurements into docs/performance.md: a table, a chart and the JSON behind both.

The text between the two marks in the document is replaced; the rest is written by hand.

    python -m benchmarks.document
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

from benchmarks.place import REPOSITORY
from benchmarks.report import RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCUMENT: Final = REPOSITORY / "docs" / "performance.md"
FIGURES: Final = REPOSITORY / "docs" / "performance.json"
PICTURE: Final = REPOSITORY / "docs" / "images" / "performance.svg"
ORDER: Final = (
    "backfill",
    "peers",
    "layout",
    "growth",
    "start",
    "features",
    "latency",
    "memory",
    "api_memory",
    "http",
    "reading",
    "staleness",
    "ticks",
    "hosts",
    "backup",
    "files",
    "market",
)
_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"
# What a ratio compares, in the words of the chart.
_BARS: Final = {
    "faster than official client, pandas.to_sql": "official client, to_sql",
    "faster than official client, executemany upserts": "official client, executemany upserts",
    "faster than official client, dlt merge of rows": "official client, dlt merge of rows",
    "faster than official client, dlt merge of Arrow": "official client, dlt merge of Arrow",
}


def main() -> int:
    """Write all three files and return the exit code."""
    found = measured()
    if not found:
        print("Nothing was measured yet: make bench.", file=sys.stderr)
        return 1
    FIGURES.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    DOCUMENT.write_text(f"{before}{_BEGIN}\n{table(found)}\n{_END}{after}", encoding="utf-8")
    draw(found)
    return 0


def measured() -> list[dict[str, Any]]:
    """Return the last results of every benchmark: those of this checkout, or else those in the document."""
    known: dict[str, Any] = {}
    if FIGURES.exists():
        known = {each["benchmark"]: each for each in json.loads(FIGURES.read_text(encoding="utf-8"))}
    files = ((name, RESULTS / f"{name}.json") for name in ORDER)
    known |= {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files if file.exists()}
    return [known[name] for name in ORDER if name in known]


def table(found: list[dict[str, Any]]) -> str:
    """Return the figures as Markdown, with the day and the machine of each benchmark."""
    parts = []
    for document in found:
        load = f"{document['processors']} processors, load {document['load']:.0f}"
        lines = [
            f"### `{document['benchmark']}`",
            "",
            f"{document['taken_at'][:10]}, Python {document['python']}, {load}.",
            "",
            "| figure | measured | target | |",
            "|---|---:|---:|---|",
            *_rows(document),
            "",
        ]
        parts.append("\n".join(lines))
    return "\n" + "\n".join(parts)


def _rows(document: dict[str, Any]) -> Iterator[str]:
    for each in document["measurements"]:
        low, high = each["at_least"], each["at_most"]
        target = f"≥ {low:g}" if low is not None else f"≤ {high:g}" if high is not None else ""
        verdict = "" if not target else "reached" if each["reached"] else "missed"
        yield f"| {each['name']} | {each['value']:.2f} {each['unit']} | {target} | {verdict} |"


def draw(found: list[dict[str, Any]]) -> None:
    """Draw seconds relative to the limit's and to the pipeline's, as two panels of one chart."""
    import altair as alt
    import pandas as pd

    value = {each["name"]: each["value"] for document in found for each in document["measurements"]}
    panels = []
    if "ingestion per limit" in value:
        rows = pd.DataFrame(
            {
                "what": ["limit of the machine", "ingestion", "whole, through Dagster"],
                "times": [1.0, value["ingestion per limit"], value["whole through Dagster per limit"]],
            }
        )
        panels.append(_panel(alt, rows, "Seconds of a first backfill, over the limit's"))
    if others := {title: value[name] for name, title in _BARS.items() if name in value}:
        rows = pd.DataFrame({"what": ["this pipeline", *others], "times": [1.0, *others.values()]})
        panels.append(_panel(alt, rows, "Seconds of the same work, over the pipeline's"))
    if panels:
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        alt.vconcat(*panels).save(str(PICTURE))


def _panel(alt: Any, rows: Any, title: str) -> Any:
    what = alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelLimit=240))
    bars = alt.Chart(rows, title=title).mark_bar().encode(alt.X("times:Q", title="times"), what)
    labels = (
        alt.Chart(rows).mark_text(align="left", dx=4).encode(alt.X("times:Q"), what, alt.Text("times:Q", format=".2f"))
    )
    return (bars + labels).properties(width=520, height=26 * len(rows))


if __name__ == "__main__":
    sys.exit(main())
