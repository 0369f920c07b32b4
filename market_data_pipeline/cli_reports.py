"""The commands that only look: what is promised and what is kept.

Add here: a report. Keep out: how its values come about (operations.reports, operations.objectives).
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from market_data_pipeline.cli_console import (
    console,
    names,
    print_json,
    print_table,
    settings,
    write_json,
    write_text,
)
from market_data_pipeline.domain.failures import UsageError
from market_data_pipeline.domain.series import Timeframe, parse_symbol, parse_timeframe
from market_data_pipeline.operations.objectives import span

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa

    from market_data_pipeline.operations.dagster_state import DagsterState

_AsJson = Annotated[bool, typer.Option("--json", help="Print what the endpoint of the read API answers.")]


def register(app: typer.Typer) -> None:
    """Add the reports to the command line `app`."""
    app.command(epilog="Example: market-data plan --symbols AAPL --days 30")(plan)
    app.command(epilog="Example: market-data staleness --json")(staleness)
    app.command(epilog="Example: market-data health --json")(health)
    app.command(epilog="Example: market-data history --limit 5")(history)
    app.command(epilog="Example: market-data gaps AAPL --timeframe 5m")(gaps)
    app.command(epilog="Example: market-data objectives --json objectives.json")(objectives)


def plan(
    symbols: Annotated[str, typer.Option(help="Comma-separated followed symbols; all when left out.")] = "",
    timeframes: Annotated[str, typer.Option(help="Comma-separated: 5m, 15m, 1h, 4h, 1d; all when left out.")] = "",
    days: Annotated[int | None, typer.Option(min=1, help="Calendar days of history; MARKET_DATA_HISTORY_DAYS.")] = None,
    full: Annotated[bool, typer.Option("--full", help="As if nothing were held.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a backfill would ask the vendor for, and how long that takes; nothing is sent."""
    wanted_symbols = names(symbols, parse_symbol)
    wanted_timeframes = names(timeframes, parse_timeframe)
    from market_data_pipeline.operations.plan import plan_backfill

    made = plan_backfill(settings(), wanted_symbols, wanted_timeframes, days, full=full)
    if as_json:
        print_json(made.document())
        return
    print_table(
        ("symbol", "timeframe", ">sessions", ">calls", ">kB"),
        [
            (one.series.symbol, one.series.timeframe, one.sessions, one.estimate.calls, one.estimate.bytes // 1000)
            for one in made.series
        ],
    )
    if made.market_days:
        at_once = ", ".join(map(str, made.market_days))
        console().print(f"The day bars of {at_once} come for all symbols at once, one call a day.")
    limit = made.plan.calls_per_minute
    console().print(
        f"{made.total.calls} calls, {made.total.pages} pages, {made.total.bytes / 1e6:.1f} MB, "
        f"at least {span(made.seconds)} on the {made.plan.name} plan "
        f"({f'{limit} calls a minute' if limit else 'no limit of calls'})."
    )


def staleness(
    limit: Annotated[int, typer.Option(min=1, help="At most so many series of each state.")] = 50,
    as_json: _AsJson = False,
) -> None:
    """Show how far each series is behind, worst first."""
    from market_data_pipeline.operations.database import reading_engine
    from market_data_pipeline.operations.reports import staleness_report

    report = staleness_report(reading_engine(settings()), limit)
    if as_json:
        print_json(report)
        return
    states = report["by_status"]
    worst_first = [*states["missing"], *states["stale"], *states["aging"], *states["fresh"]]
    print_table(
        ("symbol", "timeframe", "tier", "state", ">behind", "within RPO", "last bar", "last error"),
        [
            (
                one["symbol"],
                one["timeframe"],
                one["tier"],
                one["status"],
                None if one["staleness_seconds"] is None else span(one["staleness_seconds"]),
                "yes" if one["within_rpo"] else "NO",
                _instant(one["last_ts"]),
                one["last_error"],
            )
            for one in worst_first
        ],
    )
    counts = {name: count for name, count in report["summary"].items() if name.endswith("_count")}
    said = ", ".join(f"{count} {name.removesuffix('_count')}" for name, count in counts.items())
    console().print(f"{said} at {_instant(report['timestamp'])}")


def gaps(
    symbol: Annotated[str, typer.Argument(help="A followed symbol, as the vendor writes it.", show_default=False)],
    timeframe: Annotated[str, typer.Option(help="5m or 1d, which are fetched; both when left out.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain every missing stretch of a symbol's history; sends nothing."""
    from market_data_pipeline.operations.gaps import gaps_document, table_rows

    document = gaps_document(settings(), parse_symbol(symbol), names(timeframe, _fetched))
    if as_json:
        print_json(document)
        return
    print_table(("timeframe", "from", "to", ">bars", "reason"), table_rows(document))
    for one in document["timeframes"]:
        unlisted = f"; nights and {one['weekends']} weekends are not listed" if one["weekends"] else ""
        console().print(
            f"{symbol} {one['timeframe']}: {one['bars_held']} bars held and {one['bars_missing']} missing "
            f"of {one['sessions']} sessions since {_instant(one['history_start'])}{unlisted}."
        )
    console().print(f"At {_instant(document['timestamp'])} on the {document['plan']} plan; ", end="")
    console().print(f"the table's times are {document['exchange_timezone']}.")


def _fetched(text: str) -> Timeframe:
    if (timeframe := parse_timeframe(text)).is_base:
        return timeframe
    raise UsageError(f"{timeframe} bars are made of {timeframe.base} ones and lack what those lack; choose 5m or 1d.")


def health(as_json: _AsJson = False) -> None:
    """Show whether daemons, schedules and the newest refresh are as they should be; starts nothing."""
    from market_data_pipeline.operations.attainment import percent
    from market_data_pipeline.operations.reports import scheduler_health

    with _sources(start=False) as (engine, dagster):
        report = scheduler_health(engine, dagster)
    if as_json:
        print_json(report)
        return
    console().print(f"{report['status']} at {_instant(report['timestamp'])}")
    for reason in report["reasons"]:
        console().print(f"  {reason}", markup=False)
    print_table(
        ("daemon", "alive", "last heartbeat"),
        [(one["name"], "yes" if one["alive"] else "NO", _instant(one["last_heartbeat"])) for one in report["daemons"]],
    )
    print_table(
        ("schedule", "cron", "running", "last tick", "outcome"),
        [
            (
                one["name"],
                f"{one['cron']} {one['timezone']}",
                "yes" if one["running"] else "NO",
                _instant(one["last_tick_at"]),
                one["last_tick_status"],
            )
            for one in report["schedules"]
        ],
    )
    print_table(
        ("tier", "within its RPO", ">share of time", ">series ever outside", "worst series", ">its share"),
        [
            (
                one["tier"],
                f"the last {one['window']}",
                percent(one["share"]),
                f"{one['series_outside']} of {one['series']}",
                one["worst_series"] if one["series_outside"] else None,
                percent(one["worst_share"]) if one["series_outside"] else None,
            )
            for one in report["rpo_attainment"]
        ],
    )
    print_table(
        ("failed at", "symbol", "timeframe", "error"),
        [
            (_instant(one["failed_at"]), one["symbol"], one["timeframe"], one["error"])
            for one in report["recent_failures"]
        ],
    )
    print_table(
        ("warned at", "series", ">series in all", "warning"),
        [
            (_instant(one["last_seen_at"]), one["example"], one["series"], one["warning"])
            for one in report["recent_warnings"]
        ],
    )
    rate = report["rate_limit"]
    console().print(
        f"{rate['total_requests']} requests in {rate['window_hours']} h, {rate['rate_limited']} refused for the rate; "
        f"{report['total_symbols_monitored']} symbols, {report['stale_features_count']} stale series."
    )


def history(
    run_id: Annotated[str, typer.Argument(help="Only this run, with each of its series; its first letters do.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many runs.")] = 20,
    as_json: _AsJson = False,
) -> None:
    """Show who ran what, when, why, for which series, and what came of it; newest first."""
    if run_id:
        _run(run_id, as_json=as_json)
        return
    from market_data_pipeline.operations.reports import execution_history

    with _sources(start=True) as (engine, dagster):
        report = execution_history(engine, dagster, limit)
    if as_json:
        print_json(report)
        return
    print_table(
        ("run", "job", "asked for by", "why", "started", ">took", "status", ">symbols", ">failed", ">records", "error"),
        [
            (
                one["execution_id"][:8],
                one["job"],
                one["requested_by"],
                one["reason"],
                _instant(one["started_at"]),
                None if one["duration_seconds"] is None else span(one["duration_seconds"]),
                one["status"],
                one["total_symbols"],
                one["failed_symbols"],
                one["total_records_processed"],
                one["error_message"],
            )
            for one in report["executions"]
        ],
    )


def _run(run_id: str, *, as_json: bool) -> None:
    from market_data_pipeline.operations.run_detail import execution_detail

    with _sources(start=True) as (engine, dagster):
        report = execution_detail(engine, dagster, run_id)
    if as_json:
        print_json(report)
        return
    run = report["execution"]
    took = "" if run["duration_seconds"] is None else f", took {span(run['duration_seconds'])}"
    console().print(f"{run['job']} {run['execution_id']}: {run['status']}", markup=False)
    console().print(f"Asked for by {run['requested_by']} ({run['trigger']}): {run['reason']}", markup=False)
    console().print(f"For {run['series']}", markup=False)
    console().print(f"Started {_instant(run['started_at']) or 'not yet'}{took}")
    print_table(
        ("symbol", "timeframe", "status", ">requests", ">429", ">new", ">changed", ">features", ">seconds", "error"),
        [
            (
                one["symbol"],
                one["timeframe"],
                one["status"],
                one["requests"],
                one["rate_limited"],
                one["rows_inserted"],
                one["rows_updated"],
                one["features_written"],
                f"{one['seconds']:.2f}",
                one["error"] or one["warning"],
            )
            for one in report["results"]
        ],
    )
    if not report["results"]:
        console().print("No series was begun." if not run["error_message"] else run["error_message"], markup=False)


@contextmanager
def _sources(*, start: bool) -> Iterator[tuple[sa.Engine, DagsterState]]:
    """Yield what reports are made of: our database and Dagster's storage."""
    from market_data_pipeline.operations.dagster_state import DagsterState
    from market_data_pipeline.operations.database import reading_engine

    config = settings()
    dagster = DagsterState(config.dagster_home, config.dagster_postgres_url)
    try:
        yield reading_engine(config, start=start), dagster
    finally:
        dagster.close()


def objectives(
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the document to FILE; - for standard output."),
    ] = None,
    markdown_file: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Write it as a page with the procedures; - as above."),
    ] = None,
) -> None:
    """Show what is promised: freshness per tier, and recovery per failure."""
    from market_data_pipeline.operations.objectives import limit, objectives_document, objectives_markdown

    document = objectives_document()
    if json_file is not None:
        write_json(json_file, document)
    if markdown_file is not None:
        write_text(markdown_file, objectives_markdown())
    if json_file is not None or markdown_file is not None:
        return
    print_table(
        ("tier", "at most behind", "refreshed", "promise"),
        [
            (name, span(tier["rpo_seconds"]), f"{tier['cron']} {tier['cron_timezone']}", tier["description"])
            for name, tier in document["tiers"].items()
        ],
        title="Freshness per tier (RPO)",
    )
    print_table(
        ("state", "up to", "condition", "what the API does"),
        [(name, limit(rule), rule["condition"], rule["action"]) for name, rule in document["freshness"].items()],
        title="States of a series",
    )
    print_table(
        ("failure", "over within", "symptom"),
        [(name, span(one["rto_seconds"]), one["symptom"]) for name, one in document["recovery"].items()],
        title="Recovery per failure (RTO)",
    )
    console().print("market-data objectives --markdown - shows what to do about each, market-data drill tries it out.")


def _instant(value: datetime | None) -> str | None:
    """Return an instant to the second, in UTC."""
    return None if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
