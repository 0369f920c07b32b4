"""A load test for people: its table and its picture. Keep out: verdicts (load_scenarios)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from market_data_pipeline.measure.load_scenarios import CRITICAL_ABOVE, GOOD_BELOW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import altair as alt

# Told apart also by those who see red and green alike (Okabe and Ito, 2008).
_COLOURS: Final = {"p50_ms": "#56B4E9", "p95_ms": "#0072B2", "p99_ms": "#D55E00"}


def print_loadtest(document: Mapping[str, Any], table: Callable[..., None], say: Callable[[str], None]) -> None:
    """Print a load test: a row for each scenario, then what it amounts to."""
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
        say(f"While all series are refreshed, P99 is {ratio:.1f} times the quiet one.")
    say(f"The API's memory: {document['api_memory_bytes'] / 2**20:.0f} MiB at the most.")
    say(
        f"Verdict: {document['verdict']}. A scenario is good with a P95 up to {GOOD_BELOW:.0f} s and no failure, "
        f"critical beyond {CRITICAL_ABOVE:.0f} s or with more than 1 % of failures."
    )


def draw_loadtest(document: Mapping[str, Any], file: Path) -> None:
    """Draw a load test into `file`; the name's end chooses the format: png, svg, or a page (html)."""
    if file.suffix == ".png":
        loadtest_chart(document).save(str(file), ppi=144)
    else:
        loadtest_chart(document).save(str(file), inline=file.suffix == ".html")


def loadtest_chart(document: Mapping[str, Any]) -> alt.HConcatChart:
    """Return the picture: percentiles of each scenario, and how many requests a second it was given."""
    import altair as alt

    found = [one for one in document["scenarios"] if one["requests"]]
    names = [one["name"] for one in found]
    height = 32 * max(len(found), 1)
    percentiles = (
        alt.Chart(_values([
            {"scenario": one["name"], "percentile": name.removesuffix("_ms").upper(), "ms": max(one[name], 0.1)}
            for one in found
            for name in _COLOURS
        ]))
        .mark_circle(size=120, opacity=1)
        .encode(
            alt.X("ms:Q", title="milliseconds (logarithmic)", scale=alt.Scale(type="log")),
            alt.Y("scenario:N", sort=names, title=None),
            alt.Color("percentile:N", title=None, scale=alt.Scale(range=list(_COLOURS.values()))),
        )
        .properties(title="How long an answer takes", width=420, height=height)
    )  # fmt: skip
    throughput = (
        alt.Chart(_values([
            {"scenario": one["name"], "rate": one["throughput_per_second"]} for one in found
        ]))
        .mark_bar(color="#0072B2")
        .encode(
            alt.X("rate:Q", title="requests a second"),
            alt.Y("scenario:N", sort=names, title=None, axis=alt.Axis(labels=False, ticks=False)),
        )
        .properties(title="How many are answered", width=260, height=height)
    )  # fmt: skip
    title = f"Load test: {document['verdict']}, {document['processors']} processors, {document['taken_at']:%Y-%m-%d}"
    chart: alt.HConcatChart = alt.hconcat(percentiles, throughput, title=title)
    return chart


def _values(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=rows)  # type: ignore[no-untyped-call]


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"
