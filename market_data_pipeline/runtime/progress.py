"""How a load looks on the screen: its progress and its result. The figures come from reports.completeness."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAVY
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from market_data_pipeline.domain.series import Tier
from market_data_pipeline.reports.completeness import Held, TierProgress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.progress import Task, TaskID

    from market_data_pipeline.reports.completeness import FailedSeries

_LINES_EVERY: Final = 5.0  # seconds between two lines where the output is a file
_MINUTES_FROM: Final = 180.0  # seconds; a first backfill on the smallest plan takes an hour
_ENOUGH_FOR_A_PACE: Final = 10_000  # bars; with fewer, most of the time goes into starting the runs
_MOST_SYMBOLS: Final = 3  # listed where many failed for the same reason
_WIDE: Final = 110  # columns that a full line needs; a terminal has 80 by default


class _Eta(ProgressColumn):
    """Time left at the pace so far, once there is a pace."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        if left is None or task.finished:
            return Text("")
        shown = f"{left:.0f} s" if left < _MINUTES_FROM else f"{left / 60:.0f} min"
        return Text(f"{shown} left", style="progress.remaining")


@dataclass
class BackfillProgress:
    """A line per tier with its share, pace and failures; a plain line every 5 s where the output is not a terminal."""

    console: Console
    expected: Mapping[Tier, int]

    def __post_init__(self) -> None:
        self._began = monotonic()
        self._said = self._began
        wide = self.console.width >= _WIDE
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28 if wide else 10),
            TextColumn("{task.completed:.0f}/{task.total:.0f}" + (" series" if wide else "")),
            TextColumn("{task.fields[pace]}"),
            *((TimeElapsedColumn(),) if wide else ()),
            _Eta(),
            TextColumn("[red]{task.fields[failures]}[/red]"),
            TextColumn("[dim]{task.fields[symbols]}[/dim]", table_column=rest),
            expand=True,
            console=self.console,
            disable=not self.console.is_terminal,
            refresh_per_second=4,
        )
        self._tasks: dict[Tier, TaskID] = {
            tier: self._progress.add_task(tier, total=count, pace="waiting", failures="", symbols="")
            for tier, count in self.expected.items()
        }

    @contextmanager
    def shown(self) -> Iterator[BackfillProgress]:
        """Show the display while the block runs."""
        with self._progress:
            yield self

    def update(self, totals: Mapping[str, TierProgress]) -> None:
        """Show what has been done so far."""
        elapsed = max(monotonic() - self._began, 1e-3)
        for tier, task in self._tasks.items():
            known = totals.get(tier)
            if known is not None:
                self._progress.update(
                    task,
                    completed=known.done + known.with_gaps + known.failed,
                    pace=f"{known.bars_written / elapsed:,.0f} bars/s",
                    failures=f"{known.failed} failed" if known.failed else "",
                    symbols=known.latest_symbols,
                )
        if not self.console.is_terminal and monotonic() - self._said >= _LINES_EVERY:
            self._said = monotonic()
            done = sum(known.done + known.with_gaps for known in totals.values())
            failed = sum(known.failed for known in totals.values())
            bars = sum(known.bars_written for known in totals.values())
            self.console.print(
                f"  {elapsed:4.0f} s: {done} of {sum(self.expected.values())} series, {bars:,} bars"
                + (f", {failed} failed" if failed else "")
            )


def summary_table(
    expected: Mapping[Tier, int], totals: Mapping[str, TierProgress], held: Mapping[str, Held], seconds: float | None
) -> Table:
    """Return what a load did and what is held now, a column per tier and one for all.

    Args:
        expected: series by tier.
        totals: what was done, by tier.
        held: what is held now, by tier.
        seconds: how long it took; None when there was nothing to do, and every series counts as complete.
    """
    table = Table(title_justify="left", title_style="bold", caption_justify="left", box=SIMPLE_HEAVY)
    # A column per tier and a row per figure fit in 80 columns, however large the figures grow.
    table.add_column("", no_wrap=True)
    for tier in expected:
        table.add_column(tier.value, justify="right", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    done = {tier: TierProgress(tier=tier, done=0 if seconds else count) for tier, count in expected.items()}
    known = [totals.get(tier, done[tier]) for tier in expected]
    kept = [held.get(tier, Held(tier, 0, 0, 0)) for tier in expected]
    table.add_row("Series complete", *_shares([one.done for one in known], list(expected.values())))
    if any(one.failed for one in known):
        table.add_row("Series failed", *_sums([one.failed for one in known]), style="red")
    if any(one.with_gaps for one in known):
        table.add_row("Series with gaps", *_sums([one.with_gaps for one in known]), style="yellow")
    table.add_row("Bars held", *_sums([one.bars for one in kept]))
    table.add_row("Features held", *_sums([one.features for one in kept]))
    if seconds:
        table.add_row("Bars written", *_sums([one.bars_written for one in known]))
        table.add_row("Features written", *_sums([one.features_written for one in known]))
        table.add_row("Requests", *_sums([one.requests for one in known]))
        table.add_row("Refused by rate limit (429)", *_sums([one.rate_limited for one in known]))
        table.add_row("Fetching, s", *_seconds([one.fetch_seconds for one in known]))
        table.add_row("Storing, s", *_seconds([one.store_seconds for one in known]))
        table.add_row("Computing, s", *_seconds([one.compute_seconds for one in known]))
        table.caption = "Seconds are summed over symbols that ran in parallel."
    written = sum(one.bars_written for one in known)
    if not seconds:
        table.title = "Nothing is missing"
    elif written >= _ENOUGH_FOR_A_PACE:
        table.title = f"Backfill: {seconds:.1f} s, {written / seconds:,.0f} bars with features per second"
    elif written:
        table.title = f"Backfill: {seconds:.1f} s"
    elif sum(one.done for one in known) == sum(expected.values()):
        table.title = f"Backfill: {seconds:.1f} s, nothing was missing"
    else:
        table.title = f"Backfill: {seconds:.1f} s, nothing new was stored"
    return table


def failures_table(failures: Sequence[FailedSeries], most: int = 10) -> Table:
    """Return the failed series, a row per reason, the most common first, at most `most` rows."""
    table = Table(
        title=f"Failed: {len(failures)} series",
        title_justify="left",
        title_style="bold red",
        caption_justify="left",
        box=SIMPLE_HEAVY,
        pad_edge=False,
        show_header=False,
    )
    reasons: dict[str, list[FailedSeries]] = {}
    for failed in failures:
        reasons.setdefault(failed.error, []).append(failed)
    most_common = sorted(reasons.items(), key=lambda reason: -len(reason[1]))
    for error, alike in most_common[:most]:
        table.add_row(_named(alike), Text(error))
    if len(most_common) > most:
        table.caption = f"and {len(most_common) - most} more reasons: market-data history shows them"
    return table


def _named(series: Sequence[FailedSeries]) -> str:
    symbols = list(dict.fromkeys(failed.symbol for failed in series))
    if len(symbols) == 1:
        return f"{symbols[0]} {' '.join(failed.timeframe for failed in series)}"
    return f"{len(series)} of {', '.join(symbols[:_MOST_SYMBOLS])}" + (", ..." if len(symbols) > _MOST_SYMBOLS else "")


def _sums(counts: list[int]) -> list[str]:
    return [f"{count:,}" for count in (*counts, sum(counts))]


def _seconds(values: list[float]) -> list[str]:
    return [f"{value:.1f}" for value in (*values, sum(values))]


def _shares(parts: list[int], wholes: list[int]) -> list[str]:
    return [f"{part}/{whole}" for part, whole in zip((*parts, sum(parts)), (*wholes, sum(wholes)), strict=True)]
