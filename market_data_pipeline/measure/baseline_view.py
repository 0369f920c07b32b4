"""A baseline for people: its tables and its picture.

Keep out: conclusions (baseline_document).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.measure.baseline_advice import Part
from market_data_pipeline.reports.objectives import span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import altair as alt

# Told apart also by those who see red and green alike (Okabe and Ito, 2008).
_COLOURS: Final = {"vendor": "#0072B2", "database": "#E69F00", "computation": "#009E73", "dagster": "#999999"}
_STAGES: Final = {"fetch_seconds": "vendor", "store_seconds": "database", "compute_seconds": "computation"}


def print_baseline(document: Mapping[str, Any], table: Callable[..., None], say: Callable[[str], None]) -> None:
    """Print a baseline: what each series cost, then what it amounts to."""
    table(
        ("symbol", "timeframe", "status", ">requests", ">fetched", ">inserted", ">s", ">vendor", ">database",
         ">compute", "error"),
        [_cells(one["symbol"], one["timeframe"], one["status"], one["requests"], one, one["error"])
         for one in document["series"]],
        title="Per symbol and timeframe: bars, and seconds of work",
    )  # fmt: skip
    table(
        (">jobs", "timeframe", ">fetched", ">inserted", ">s", ">vendor", ">database", ">compute"),
        [_cells(one["jobs"], one["timeframe"], one) for one in document["timeframes_in_all"]],
        title="Per timeframe: seconds of work, summed over symbols side by side",
    )
    table(
        ("part", ">share", ">of the wall clock"),
        [(part, f"{value['percent']:.1f} %", f"{value['seconds']:.1f} s") for part, value in document["split"].items()],
        title="Where the time goes",
    )
    jobs, records, requests, slowest = (document[name] for name in ("jobs", "records", "requests", "slowest"))
    say(
        f"{document['duration_seconds']:.1f} s in all, and {document['preparation_seconds']:.1f} s before for "
        f"database, vendor and Dagster to start."
    )
    say(
        f"{jobs['completed']} of {jobs['total']} jobs completed ({jobs['success_rate']:.1%}) in "
        f"{len(document['runs'])} Dagster runs; {records['inserted']:,} bars, {records['per_second']:,.0f} a second; "
        f"{requests['total']} requests, {requests['rate_limited']} refused for the rate."
    )
    if (job := slowest["job"]) is not None:
        frame = slowest["timeframe"]
        say(
            f"Slowest job: {job['symbol']} {job['timeframe']}, {job['seconds']:.2f} s. "
            f"Slowest timeframe: {frame['timeframe']}, {frame['seconds']:.1f} s of work."
        )
    bottleneck = document["bottleneck"]
    say(f"Bottleneck: {bottleneck['kind']}. {bottleneck['explanation']}")
    for one in bottleneck["recommendations"]:
        say(f"  {one}")


def draw_baseline(document: Mapping[str, Any], file: Path) -> None:
    """Draw a baseline into `file`; the name's end chooses the format: png, svg, or a page (html)."""
    if file.suffix == ".png":
        baseline_chart(document).save(str(file), ppi=144)
    else:
        baseline_chart(document).save(str(file), inline=file.suffix == ".html")


def baseline_chart(document: Mapping[str, Any]) -> alt.VConcatChart:
    """Return the picture: the split of the time, the work per timeframe, and what each series took."""
    import altair as alt

    colours = alt.Color(
        "part:N", title=None, scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())), sort=list(_COLOURS)
    )
    order = alt.Order("place:Q")
    split = (
        alt.Chart(_values([
            {"part": part, "seconds": document["split"][part]["seconds"], "percent": document["split"][part]["percent"],
             "place": place}
            for place, part in enumerate(Part)
        ]))
        .mark_bar(height=34)
        .encode(alt.X("sum(seconds):Q", title="seconds of wall clock"), colours, order)
        .properties(width=760, height=50, title="Where the time goes")
    )  # fmt: skip
    frames = document["timeframes_in_all"]
    names = [one["timeframe"] for one in frames]
    work = (
        alt.Chart(_values([
            {"timeframe": one["timeframe"], "part": part, "seconds": one[stage], "place": place}
            for one in frames
            for place, (stage, part) in enumerate(_STAGES.items())
        ]))
        .mark_bar()
        .encode(
            alt.X("sum(seconds):Q", title="seconds of work, side by side"),
            alt.Y("timeframe:N", sort=names, title=None),
            colours,
            order,
        )
        .properties(width=760, height=24 * len(names), title="Per timeframe")
    )  # fmt: skip
    cells = [{name: one[name] for name in ("symbol", "timeframe", "seconds")} for one in document["series"]]
    series = (
        alt.Chart(_values(cells))
        .mark_rect()
        .encode(
            alt.X("symbol:N", title=None),
            alt.Y("timeframe:N", sort=names, title=None),
            alt.Color("seconds:Q", title="seconds", scale=alt.Scale(scheme="viridis")),
        )
        .properties(width=760, height=24 * len(names), title="Seconds of work of each series")
    )
    title = (
        f"{len(document['symbols'])} symbols x {len(names)} timeframes x {document['days']} days: "
        f"{span(round(document['duration_seconds']))}, {document['records']['per_second']:,.0f} bars a second, "
        f"{document['bottleneck']['kind']}"
    )
    chart: alt.VConcatChart = alt.vconcat(alt.vconcat(split, work), series, title=title).resolve_scale(
        color="independent"
    )
    return chart


def _values(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=rows)  # type: ignore[no-untyped-call]


def _cells(*values: Any) -> tuple[Any, ...]:
    """Return a row; a dict among `values` stands for its counts of rows and its seconds."""
    cells: list[Any] = []
    for value in values:
        if not isinstance(value, dict):
            cells.append(value)
            continue
        cells += [f"{value[name]:,}" for name in ("rows_fetched", "rows_inserted")]
        cells += [f"{value[name]:.2f}" for name in ("seconds", *_STAGES)]
    return tuple(cells)
