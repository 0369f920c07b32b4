"""The status page: how fresh every series is, and how the pipeline as a whole is doing.

Everyone sees how fresh each series is; failures and executions, whose messages are for operators, are shown only to
those who may see the admin endpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

from market_data_pipeline.domain.errors import DatabaseUnavailableError, UsageError
from market_data_pipeline.domain.objectives import TIER_OBJECTIVES
from market_data_pipeline.domain.series import Tier, Timeframe
from market_data_pipeline.reports.attainment import WINDOWS, rpo_attainment
from market_data_pipeline.reports.executions import execution_history
from market_data_pipeline.reports.health import bar_source, scheduler_health
from market_data_pipeline.reports.overview import ALL, PAGE, State, Wanted, overview
from market_data_pipeline.serving.pages.templates import (
    MARKS,
    UPDATE_EMPTY_EVERY,
    UPDATE_EVERY,
    clock_time,
    life_note,
    render,
    series_url,
    short_span,
    shown_status,
)
from market_data_pipeline.store.connection import snapshot

if TYPE_CHECKING:
    from datetime import datetime

    import sqlalchemy as sa
    from starlette.datastructures import QueryParams

    from market_data_pipeline.reports.dagster_state import DagsterState
    from market_data_pipeline.reports.freshness import TierFreshness
    from market_data_pipeline.reports.models import (
        Attainment,
        BarSource,
        ExecutionHistory,
        SchedulerHealth,
        SeriesFreshness,
    )
    from market_data_pipeline.reports.overview import Overview

EXECUTIONS: Final = 10
_LONGEST_PART: Final = 64  # of a symbol
_MOST_PAGES: Final = 10**6
_ORDERS: Final = {"worst": True, "symbol": False}
# A table of symbols is broken into pieces that stand side by side: three fit a wide screen, and beyond 20 rows the
# column headers would scroll out of sight.
_PIECES: Final = 3
_MOST_ROWS: Final = 20
_FEWEST_ROWS: Final = 3
_ON_TIME: Final = 60  # seconds of staleness that do not count as late: a refresh is under way


@dataclass(frozen=True, slots=True)
class Status:
    """What the page shows."""

    wanted: Wanted
    overview: Overview
    attainment: list[Attainment]
    source: BarSource | None
    health: SchedulerHealth | None  # None for readers who may not see it
    history: ExecutionHistory | None  # None also when Dagster's storage cannot be read


class Cell(NamedTuple):
    """One series in the matrix: its state, the visible text, what its name adds for screen readers, and the tooltip."""

    status: str
    url: str
    shown: str
    said: str
    title: str
    failures: int
    outside_rpo: bool


def wanted_by(query: QueryParams) -> Wanted:
    """Return which symbols an address asks for: `symbol`, `tier`, `state` (any of several), `order` and `page`.

    Raises:
        UsageError: a parameter has a value that it cannot have; the sentence says which it can.
    """
    tier = _one_of("tier", query.get("tier", ""), list(Tier))
    states = [_one_of("state", each, list(State)) for each in query.getlist("state")]
    order = _one_of("order", query.get("order", ""), list(_ORDERS))
    page, part = query.get("page", "") or "1", query.get("symbol", "").strip()
    if (
        not page.isascii()
        or not page.isdecimal()
        or not 1 <= int(page[:8]) <= _MOST_PAGES
        or len(page) > len("1000000")
    ):
        raise UsageError(f"page is a whole number from 1 on, not {page[:20]!r}.")
    if len(part) > _LONGEST_PART or not part.isprintable():
        raise UsageError(f"symbol is a part of a symbol, of at most {_LONGEST_PART} letters.")
    return Wanted(
        part,
        Tier(tier) if tier else None,
        frozenset(State(each) for each in states if each),
        _ORDERS[order] if order else None,
        int(page),
    )


def _one_of(name: str, value: str, known: list[str]) -> str:
    if value and value not in known:
        raise UsageError(f"{name} is one of {', '.join(known)}, not {value[:20]!r}.")
    return value


def address(wanted: Wanted, **changed: Any) -> str:
    """Return the relative address of the symbols that are wanted, with what is `changed`."""
    now = wanted._replace(**changed)
    names = {True: "worst", False: "symbol"}
    query = [
        *([("symbol", now.part)] if now.part else []),
        *([("tier", str(now.tier))] if now.tier else []),
        *(("state", str(state)) for state in State if state in now.states),
        *([("order", names[now.worst_first])] if now.worst_first is not None else []),
        *([("page", str(now.page))] if now.page > 1 else []),
    ]
    return f"./?{urlencode(query)}#matrix" if query else "./#matrix"


def read_status(source: sa.Engine, dagster: DagsterState, wanted: Wanted = ALL, *, for_operator: bool) -> Status:
    """Return what the page shows now.

    Raises:
        DatabaseUnavailableError: the database cannot be used.
    """
    with snapshot(source) as connection:
        found = overview(connection, wanted, of_failures=for_operator)
        if not for_operator:
            return Status(wanted, found, rpo_attainment(connection), bar_source(connection), None, None)
    health = scheduler_health(source, dagster, found.tiers)
    try:
        history = execution_history(source, dagster, EXECUTIONS)
    except DatabaseUnavailableError:
        history = None
    return Status(wanted, found, health.rpo_attainment, health.source, health, history)


def render_status(
    status: Status | None, now: datetime, *, wall: datetime, dagster_url: str | None = None, offer: str = ""
) -> str:
    """Return the page at `now`; `status` None means that the database cannot be reached.

    Args:
        status: what it shows.
        now: the pipeline's now, aware UTC.
        wall: the real time, which Dagster's instants follow in a replay too.
        dagster_url: the address of Dagster's UI, without a trailing slash, for links to runs; None for no links.
        offer: whether the reader may sign `in` or `out`; else empty.
    """
    of_all = _of_all(status.wanted, status.overview) if status else {"tiers": []}
    return render(
        "status.html",
        root="",
        now=now,
        every=UPDATE_EVERY if of_all["tiers"] else UPDATE_EMPTY_EVERY,
        wall=wall,
        status=status,
        dagster_url=dagster_url,
        offer=offer,
        timeframes=list(Timeframe),
        windows=list(WINDOWS),
        attained={(one.tier, one.window): one for one in status.attainment} if status else {},
        **of_all,
    )


def _of_all(wanted: Wanted, found: Overview) -> dict[str, Any]:
    """Return what the template shows of all series: counts, the filter, and a page of symbols."""
    series, outside = found.total("series") + found.total("not_expected"), found.total("outside")
    first = (found.page - 1) * PAGE
    return {
        "found": found,
        "wanted": wanted,
        "address": lambda **changed: address(wanted, **changed),
        "tiers": [_tier(tier, counts, found) for tier, counts in found.tiers.items()],
        "series_count": series,
        "within": series - outside,
        "outside_count": outside,
        "failing_count": found.total("failing"),
        "counts": {name: found.total(name.lower()) for name in MARKS},
        "symbol_count": found.total("symbols"),
        "is_whole": found.pages == 1 and not wanted.is_filtered,
        "first_shown": first + 1,
        "last_shown": first + len(found.symbols),
    }


def _tier(tier: Tier, counts: TierFreshness, found: Overview) -> dict[str, Any]:
    """Return a tier with those of its symbols that are on the page."""
    objective = TIER_OBJECTIVES[tier]
    rows = [
        (symbol, {one.timeframe: _cell(one) for one in series})
        for symbol, series in found.symbols.items()
        if series and series[0].tier == tier
    ]
    total = counts.series + counts.not_expected
    return {
        "key": str(tier),
        "name": tier.replace("_", " "),
        "objective": objective.description,
        "rpo": objective.rpo,
        "symbols": counts.symbols,
        "shown": len(rows),
        "within": total - counts.outside,
        "total": total,
        "counts": {name: getattr(counts, name.lower()) for name in MARKS},
        "pieces": _pieces(rows),
    }


def _pieces(rows: list[Any]) -> list[list[Any]]:
    size = min(max(-(-len(rows) // _PIECES), _FEWEST_ROWS), _MOST_ROWS)
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def _cell(one: SeriesFreshness) -> Cell:
    status, staleness, failures = shown_status(one), one.staleness_seconds, one.consecutive_failures
    shown: str
    if status == "NOT_EXPECTED":
        shown, said = one.life, ", no bars are expected"
    elif staleness is None:
        shown, said = "", "never computed"
    elif staleness < _ON_TIME:
        shown, said = "", "on time"
    else:
        shown, said = short_span(staleness), f" late, {status.lower()}"
    if failures:
        said += f", {failures} {'failure' if failures == 1 else 'failures'} in a row"
    if outside := not one.within_rpo:
        said += ", outside its RPO"
    details = [
        *([life_note(one)] if life_note(one) else []),
        *([f"verified {clock_time(one.verified_at)}"] if one.verified_at else []),
        *([f"next bar due {clock_time(one.next_due_at)}"] if one.next_due_at else []),
    ]
    url = series_url(one.symbol, one.timeframe)
    return Cell(status, url, shown, said, "; ".join(details), failures, outside)
