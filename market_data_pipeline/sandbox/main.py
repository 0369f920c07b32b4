"""The command line of the sandbox server."""

from __future__ import annotations

import argparse
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from market_data_pipeline.domain.errors import ConfigurationError, PipelineError
from market_data_pipeline.polygon.plans import PLANS, plan_named
from market_data_pipeline.sandbox.server import run_server
from market_data_pipeline.settings.sandbox import HOST, PORT, SANDBOX_KEY, parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from market_data_pipeline.sandbox.view import Source


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a server as the options say; a refusal to start is one sentence and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        as_of = _instant(options.as_of) if options.as_of else None
        source = open_source(options.replay, options.symbols)
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
            clock=(lambda: as_of) if as_of else (lambda: datetime.now(UTC)),
            plan=plan_named(options.plan).limited_to(options.calls_per_minute),
            latency=timedelta(milliseconds=options.latency_ms),
            gzip=options.gzip,
            access_log=options.access_log,
            idle=timedelta(minutes=options.idle_minutes) if options.idle_minutes else None,
            listening=listening,
            parameters=parameters(as_of, options.plan, options.calls_per_minute, options.replay),
        )
    except PipelineError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def open_source(replay: Path | None, symbols: int = 0) -> Source:
    """Return the recorded bars in `replay`, or the synthetic market with `symbols` load-test tickers in its list.

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m market_data_pipeline.sandbox.server",
        description="A Polygon-compatible market-data server that needs no vendor key.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default=HOST, help="address to listen on")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on")
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, help="serve the recorded bars in this folder instead of synthetic ones")
    parser.add_argument("--symbols", type=int, default=0, help="load-test tickers SYN0000… in whole-market answers")
    parser.add_argument("--plan", default="advanced", choices=tuple(PLANS), help="plan to simulate")
    parser.add_argument("--calls-per-minute", type=int, help="limit instead of the plan's; 0 for none")
    parser.add_argument("--as-of", help="ISO 8601 instant at which the clock stands still")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="milliseconds to wait before every answer")
    parser.add_argument(
        "--idle-minutes", type=float, default=0.0, help="exit after so many minutes without a request; 0 for never"
    )
    parser.add_argument("--gzip", action="store_true", help="compress answers for clients that accept it")
    parser.add_argument("--access-log", action="store_true", help="log every request")
    return parser
