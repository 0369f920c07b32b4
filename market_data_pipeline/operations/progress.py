"""A backfill on the screen: while it goes on, and what came of it.

Add here: what a person reads there. Keep out: how it is known (executions).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAVY
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from market_data_pipeline.domain.series import Tier
from market_data_pipeline.operations.executions import TierTotals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.progress import Task, TaskID

    from market_data_pipeline.operations.executions import FailedSeries, Held

_LINES_EVERY: Final = 5.0  # seconds between two lines where the output is a file


class _Eta(ProgressColumn):
    """Time left at the pace so far, once there is a pace."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{int(left)} s left", style="progress.remaining")


@dataclass
class BackfillProgress:
    """A line per tier with its share, pace and failures; plain lines now and then where the output is no terminal."""

    console: Console
    expected: Mapping[Tier, int]

    def __post_init__(self) -> None:
        self._began = monotonic()
        self._said = self._began
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f} series"),
            TextColumn("{task.fields[pace]}"),
            _Eta(),
            TextColumn("[red]{task.fields[failures]}[/red]"),
            TextColumn("[dim]{task.fields[symbols]}[/dim]"),
            TimeElapsedColumn(),
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
        """Show the display for the length of the block."""
        with self._progress:
            yield self

    def update(self, totals: Mapping[str, TierTotals]) -> None:
        """Show what has been done so far."""
        elapsed = max(monotonic() - self._began, 1e-3)
        for tier, task in self._tasks.items():
            known = totals.get(tier)
            if known is not None:
                self._progress.update(
                    task,
                    completed=known.done + known.lacking + known.failed,
                    pace=f"{known.bars_written / elapsed:,.0f} bars/s",
                    failures=f"{known.failed} failed" if known.failed else "",
                    symbols=known.latest_symbols,
                )
        if not self.console.is_terminal and monotonic() - self._said >= _LINES_EVERY:
            self._said = monotonic()
            done = sum(known.done + known.lacking for known in totals.values())
            failed = sum(known.failed for known in totals.values())
            bars = sum(known.bars_written for known in totals.values())
            self.console.print(
                f"  {elapsed:4.0f} s: {done} of {sum(self.expected.values())} series, {bars:,} bars"
                + (f", {failed} failed" if failed else "")
            )


def summary_table(
    expected: Mapping[Tier, int], totals: Mapping[str, TierTotals], held: Mapping[str, Held], seconds: float | None
) -> Table:
    """Return what a backfill did and what is held now, a row per tier and one for all.

    Args:
        expected: series by tier.
        totals: what was done, by tier.
        held: what is held now, by tier.
        seconds: how long it took; None when there was nothing to do, and every series counts as complete.
    """
    table = Table(title_justify="left", caption_justify="left", show_footer=True, box=SIMPLE_HEAVY, pad_edge=False)
    table.caption = "Fetch, store and compute: seconds, summed over symbols that ran side by side."
    done = {tier: TierTotals(tier, done=0 if seconds else count) for tier, count in expected.items()}
    rows = [(tier, totals.get(tier, done[tier]), held.get(tier)) for tier in expected]
    columns = {
        "Tier": ([tier.value for tier, _, _ in rows], "all"),
        "Complete": _share([known.done for _, known, _ in rows], list(expected.values())),
        "Failed": _sums([known.failed for _, known, _ in rows]),
        "Bars held": _sums([kept.bars if kept else 0 for _, _, kept in rows]),
        "New bars": _sums([known.bars_written for _, known, _ in rows]),
        "New features": _sums([known.features_written for _, known, _ in rows]),
        "Requests": _sums([known.requests for _, known, _ in rows]),
        "429s": _sums([known.rate_limited for _, known, _ in rows]),
        "Fetch": _seconds([known.fetch_seconds for _, known, _ in rows]),
        "Store": _seconds([known.store_seconds for _, known, _ in rows]),
        "Compute": _seconds([known.compute_seconds for _, known, _ in rows]),
    }
    for name, (_, footer) in columns.items():
        table.add_column(name, footer=footer, justify="left" if name == "Tier" else "right", no_wrap=True)
    for cells in zip(*(cells for cells, _ in columns.values()), strict=True):
        table.add_row(*cells)
    written = sum(known.bars_written for _, known, _ in rows)
    if not seconds:
        table.title = "Nothing is missing"
    elif written:
        table.title = f"Backfill: {seconds:.1f} s, {written / seconds:,.0f} bars with features per second"
    elif sum(known.done for _, known, _ in rows) == sum(expected.values()):
        table.title = f"Backfill: {seconds:.1f} s, nothing was missing"
    else:
        table.title = f"Backfill: {seconds:.1f} s, nothing new was stored"
    return table


def failures_table(failures: Sequence[FailedSeries], most: int = 10) -> Table:
    """Return the failed series with their reasons, at most `most` of them."""
    table = Table(title=f"Failed: {len(failures)}", title_justify="left", title_style="red", box=SIMPLE_HEAVY)
    for name in ("Series", "Failure", "Reason"):
        table.add_column(name)
    for failed in failures[:most]:
        table.add_row(f"{failed.symbol} {failed.timeframe}", failed.error_class, Text(failed.error))
    if len(failures) > most:
        table.caption = f"and {len(failures) - most} more: market-data history shows them"
    return table


def _sums(counts: list[int]) -> tuple[list[str], str]:
    return [f"{count:,}" for count in counts], f"{sum(counts):,}"


def _seconds(values: list[float]) -> tuple[list[str], str]:
    return [f"{value:.1f}" for value in values], f"{sum(values):.1f}"


def _share(parts: list[int], wholes: list[int]) -> tuple[list[str], str]:
    cells = [f"{part}/{whole}" for part, whole in zip(parts, wholes, strict=True)]
    return cells, f"{sum(parts)}/{sum(wholes)}"
