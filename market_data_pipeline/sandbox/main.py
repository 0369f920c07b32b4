"""The command line of the sandbox server."""

from __future__ import annotations

import argparse
import math
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from market_data_pipeline.domain.errors import ConfigurationError, PipelineError
from market_data_pipeline.polygon.plans import PLANS, plan_named
from market_data_pipeline.sandbox.scenario import read_scenario
from market_data_pipeline.sandbox.server import run_server
from market_data_pipeline.sandbox.staged import staged
from market_data_pipeline.settings.sandbox import HOST, PORT, SANDBOX_KEY, parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from market_data_pipeline.sandbox.view import Source


Number = TypeVar("Number", int, float)


def main(
    arguments: Sequence[str] | None = None, *, default_as_of: Callable[[], datetime | None] = lambda: None
) -> None:
    """Run a server with these options; an error is one sentence and exit code 2.

    Args:
        arguments: of the command line; by default this process's.
        default_as_of: returns the instant at which the clock stands still without `--as-of`; None for the real clock.
    """
    options = _parser().parse_args(arguments)
    try:
        as_of = _instant(options.as_of) if options.as_of else default_as_of()
        clock = (lambda: as_of) if as_of else (lambda: datetime.now(UTC))
        source = open_source(options.replay, options.symbols)
        if options.scenario:
            source = staged(source, read_scenario(options.scenario), clock)
        listening = socket.socket(fileno=options.fd) if options.fd is not None else None
        if listening is None:
            print(
                f"Sandbox at http://{options.host}:{options.port}, key {SANDBOX_KEY!r}: {source.description}.",
                flush=True,
            )
        run_server(
            source,
            host=options.host,
            port=options.port,
            clock=clock,
            plan=plan_named(options.plan).limited_to(options.calls_per_minute),
            latency=timedelta(milliseconds=options.latency_ms),
            gzip=options.gzip,
            gone=frozenset(options.gone),
            access_log=options.access_log,
            idle=timedelta(minutes=options.idle_minutes) if options.idle_minutes else None,
            listening=listening,
            parameters=parameters(as_of, options.plan, options.calls_per_minute, options.replay, options.scenario),
        )
    except PipelineError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def open_source(replay: Path | None, symbols: int = 0) -> Source:
    """Return the recorded bars in `replay`, or the synthetic market that lists `symbols` load-test tickers.

    Raises:
        ConfigurationError: the folder holds no recorded bars.
    """
    if replay is not None:
        from market_data_pipeline.sandbox.replay import Replay

        return Replay(replay)
    from market_data_pipeline.sandbox.market import SyntheticMarket

    return SyntheticMarket(symbols)


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise ConfigurationError(f"--as-of {text!r} is not an instant; write for example 2025-03-14T15:30:00-04:00.")
    return instant.astimezone(UTC)


def _between(kind: type[Number], low: float, high: float = math.inf) -> Callable[[str], Number]:
    """Return a parser of numbers from `low` to `high`, both included."""

    def parse(text: str) -> Number:
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= number <= high:
            limits = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return number

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="market-data sandbox",
        description="Run the Polygon-compatible sandbox server until Ctrl-C; it needs no key.",
        epilog="Example: market-data sandbox --port 8900 --plan basic",
        add_help=False,
    )
    add, whole = parser.add_argument, _between(int, 0)
    add("--host", default=HOST, help="Address to listen on; %(default)s by default.")
    add("--port", type=_between(int, 1, 65_535), default=PORT, help="Port to listen on; %(default)s by default.")
    add("--fd", type=int, help=argparse.SUPPRESS)
    add("--replay", type=Path, help="Serve the recorded bars in this folder instead of synthetic ones.")
    add(
        "--scenario",
        type=Path,
        help="TOML file of what happens on top: listings, delistings, renames, closings, halts, splits, dividends, and "
        "withheld, repeated and stray bars; docs/examples/nine_nights.toml is one.",
    )
    add("--symbols", type=whole, default=0, help="Number of load-test tickers, SYN0000 on, in whole-market answers.")
    add("--plan", default="advanced", choices=tuple(PLANS), help="Plan to simulate; %(default)s by default.")
    add("--calls-per-minute", type=whole, help="Limit instead of the plan's; 0 for none.")
    add("--as-of", help="ISO 8601 instant at which the clock stands still; MARKET_DATA_AS_OF by default.")
    add("--latency-ms", type=_between(float, 0), default=0.0, help="Milliseconds to wait before every answer.")
    add(
        "--idle-minutes",
        type=_between(float, 0),
        default=0.0,
        help="Exit after this long without a request; 0 for never.",
    )
    add("--gzip", action="store_true", help="Compress answers for clients that accept it.")
    add(
        "--gone",
        action="append",
        default=[],
        metavar="PATH",
        help="Endpoint to answer with 404, such as /v3/reference/splits; repeat it for several.",
    )
    add("--access-log", action="store_true", help="Log every request.")
    add("--help", action="help", help="Show this message and exit.")
    return parser
