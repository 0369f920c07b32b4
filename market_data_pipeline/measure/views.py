"""Baselines, load tests and drills on the screen: their tables and charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.measure.baseline_document import Part
from market_data_pipeline.measure.loadtest import CRITICAL_ABOVE, GOOD_BELOW
from market_data_pipeline.reports.objectives import span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import altair as alt

# People who cannot tell red from green can tell these apart (Okabe and Ito, 2008).
_PARTS: Final = {"vendor": "#0072B2", "database": "#E69F00", "computation": "#009E73", "dagster": "#999999"}
_PERCENTILES: Final = {"p50_ms": "#56B4E9", "p95_ms": "#0072B2", "p99_ms": "#D55E00"}
_STAGES: Final = {"fetch_seconds": "vendor", "store_seconds": "database", "compute_seconds": "computation"}


def draw(chart: alt.VConcatChart | alt.HConcatChart, file: Path) -> None:
    """Draw a chart into `file`; the suffix chooses the format: .png, .svg, or a page (.html)."""
    if file.suffix == ".png":
        chart.save(str(file), ppi=144)
    else:
        chart.save(str(file), inline=file.suffix == ".html")


def print_baseline(document: Mapping[str, Any], table: Callable[..., None], say: Callable[[str], None]) -> None:
    """Print a baseline: the cost of each series, then the totals."""
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
        title="Per timeframe: seconds of work, summed over symbols that ran in parallel",
    )
    table(
        ("part", ">share", ">of the wall clock"),
        [(part, f"{value['percent']:.1f} %", f"{value['seconds']:.1f} s") for part, value in document["split"].items()],
        title="Where the time goes",
    )
    jobs, records, requests, slowest = (document[name] for name in ("jobs", "records", "requests", "slowest"))
    say(
        f"{document['duration_seconds']:.1f} s in total, after {document['preparation_seconds']:.1f} s in which "
        "database, vendor and Dagster started."
    )
    say(
        f"{jobs['completed']} of {jobs['total']} jobs completed ({jobs['success_rate']:.1%}) in "
        f"{len(document['runs'])} Dagster runs; {records['inserted']:,} bars, {records['per_second']:,.0f} a second; "
        f"{requests['total']} requests, {requests['rate_limited']} refused by the rate limit."
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


def baseline_chart(document: Mapping[str, Any]) -> alt.VConcatChart:
    """Return a chart: the split of the time, the work per timeframe, and the time of each series."""
    import altair as alt

    colours = alt.Color(
        "part:N", title=None, scale=alt.Scale(domain=list(_PARTS), range=list(_PARTS.values())), sort=list(_PARTS)
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
            alt.X("sum(seconds):Q", title="seconds of work, in parallel"),
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


def print_loadtest(document: Mapping[str, Any], table: Callable[..., None], say: Callable[[str], None]) -> None:
    """Print a load test: a row per scenario, then the verdict."""
    table(
        ("scenario", ">users", ">requests", ">success", ">mean ms", ">P50", ">P95", ">P99", ">per s", ">s", "verdict"),
        [
            (
                one["name"],
                one["users"],
                f"{one['requests']:,}",
                f"{one['success_rate']:.2%}",
                *(_ms(one[name]) for name in ("mean_ms", "p50_ms", "p95_ms", "p99_ms")),
                f"{one['throughput_per_second']:,.0f}",
                f"{one['duration_seconds']:.1f}",
                one["verdict"],
            )
            for one in document["scenarios"]
        ],
    )
    for one in document["scenarios"]:
        if one["failures"]:
            say(f"{one['name']}: {one['failures']} requests failed, the first with: {one['first_failure']}")
    if (ratio := document["refresh_slows_p99_by"]) is not None:
        say(f"P99 during a refresh of all series is {ratio:.1f} times the P99 without one.")
    say(f"The API used at most {document['api_memory_bytes'] / 2**20:.0f} MiB of memory.")
    say(
        f"Verdict: {document['verdict']}. A scenario is good with a P95 of at most {GOOD_BELOW:.0f} s and no failure, "
        f"and critical beyond {CRITICAL_ABOVE:.0f} s or with more than 1 % failures."
    )


def print_drill(document: Mapping[str, Any], table: Callable[..., None]) -> None:
    """Print a drill: a row per outage."""
    table(
        ("outage", ">lasted", ">RTO", "kept", "end"),
        [
            (
                one["outage"],
                None if one["recovery_seconds"] is None else f"{one['recovery_seconds']:.1f} s",
                span(one["rto_seconds"]),
                "yes" if one["kept"] else "NO",
                one["problem"] or one["steps"][-1]["what"],
            )
            for one in document["outages"]
        ],
        title="Recovery",
    )


def loadtest_chart(document: Mapping[str, Any]) -> alt.HConcatChart:
    """Return a chart: percentiles of each scenario, and its requests per second."""
    import altair as alt

    found = [one for one in document["scenarios"] if one["requests"]]
    names = [one["name"] for one in found]
    height = 32 * max(len(found), 1)
    percentiles = (
        alt.Chart(_values([
            {"scenario": one["name"], "percentile": name.removesuffix("_ms").upper(), "ms": max(one[name], 0.1)}
            for one in found
            for name in _PERCENTILES
        ]))
        .mark_circle(size=120, opacity=1)
        .encode(
            alt.X("ms:Q", title="milliseconds (logarithmic)", scale=alt.Scale(type="log")),
            alt.Y("scenario:N", sort=names, title=None),
            alt.Color("percentile:N", title=None, scale=alt.Scale(range=list(_PERCENTILES.values()))),
        )
        .properties(title="Response time", width=420, height=height)
    )  # fmt: skip
    throughput = (
        alt.Chart(_values([
            {"scenario": one["name"], "rate": one["throughput_per_second"]} for one in found
        ]))
        .mark_bar(color="#0072B2")
        .encode(
            alt.X("rate:Q", title="requests per second"),
            alt.Y("scenario:N", sort=names, title=None, axis=alt.Axis(labels=False, ticks=False)),
        )
        .properties(title="Throughput", width=260, height=height)
    )  # fmt: skip
    title = f"Load test: {document['verdict']}, {document['processors']} processors, {document['taken_at']:%Y-%m-%d}"
    chart: alt.HConcatChart = alt.hconcat(percentiles, throughput, title=title)
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


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
