"""Which security a ticker is: the tickers that a security had, and what a series of it consists of.

A followed symbol stands for the security that has the ticker now or, if none has, had it last. A series is that
security's history: what the ticker was under another security is no part of it, what the security was under another
ticker is. All dates are New York's, and all ranges half-open.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import date, datetime

NOBODY: Final = ""  # in place of a ticker: on that day the security had none, as far as is known


class Tenure(NamedTuple):
    """A ticker that a security had during [start, end); None: before all that is known, or still."""

    ticker: str
    start: date | None = None
    end: date | None = None

    def covers(self, day: date) -> bool:
        """Return whether the security had the ticker on a day."""
        return (self.start is None or self.start <= day) and (self.end is None or day < self.end)


@dataclass(frozen=True, slots=True)
class Identity:
    """A security and the tickers that it had, ascending and disjoint.

    Attributes:
        security: identifies it, see `security_id`.
        tenures: at least one.
        source: `events`, `reference` or `override`.
        reason: why a file of the project says so; None for what the vendor says.
    """

    security: str
    tenures: tuple[Tenure, ...]
    source: str = "events"
    reason: str | None = None

    @property
    def ticker(self) -> str:
        """Its ticker now, or its last one."""
        return self.tenures[-1].ticker

    @property
    def ended(self) -> date | None:
        """The first day on which it had no ticker any more; None while it has one."""
        return self.tenures[-1].end

    def tenure_on(self, day: date) -> int | None:
        """Return the position of the tenure that covers a day; None when none does."""
        return next((at for at, tenure in enumerate(self.tenures) if tenure.covers(day)), None)

    def ticker_on(self, day: date) -> str:
        """Return its ticker on a day, `NOBODY` when it had none."""
        at = self.tenure_on(day)
        return NOBODY if at is None else self.tenures[at].ticker


@dataclass(frozen=True, slots=True)
class Described:
    """What the vendor's reference data say of a security; None where they say nothing.

    Attributes:
        ticker: under which it was described.
        composite_figi, cik, name, type: see `market_data.securities`.
        list_date: its first day.
    """

    ticker: str
    composite_figi: str | None = None
    cik: str | None = None
    name: str | None = None
    type: str | None = None
    list_date: date | None = None

    def is_other_than(self, other: Described) -> bool:
        """Return whether the two are known to be different securities."""
        for name in ("composite_figi", "cik", "name"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs:
                return bool(mine != theirs)
        return False


@dataclass(frozen=True, slots=True)
class Delisted:
    """A security that is not listed any more, as the vendor's reference data describe it.

    Attributes:
        described: under its last ticker.
        last_day: the last day on which it may have traded.
        delisted_at: as the vendor says it, aware UTC.
    """

    described: Described
    last_day: date
    delisted_at: datetime

    @property
    def end(self) -> date:
        """The first day on which it no longer had its ticker."""
        return self.last_day + timedelta(days=1)

    def __str__(self) -> str:
        """Return it in words, with what distinguishes it from another security of its ticker."""
        figi = f", FIGI {self.described.composite_figi}" if self.described.composite_figi else ""
        return f"{self.described.name or self.described.ticker}, delisted on {self.last_day}{figi}"


def security_id(known: Described, first: date | None) -> str:
    """Return what identifies a security: its composite FIGI, else the ticker and its first day."""
    if known.composite_figi:
        return known.composite_figi
    day = known.list_date or first
    return f"{known.ticker}@{day}" if day else known.ticker


def tenures_of(changes: Iterable[tuple[date, str]]) -> tuple[Tenure, ...]:
    """Return the tenures that a security's changes of ticker make: each lasts until the next one.

    Args:
        changes: the day from which a security had a ticker, in any order.
    """
    made: list[tuple[date, str]] = []
    for day, ticker in sorted(changes):
        if made and made[-1][0] == day:
            made[-1] = (day, ticker)  # the vendor lists some days twice
        elif not made or made[-1][1] != ticker:
            made.append((day, ticker))
    ends = [*(day for day, _ in made[1:]), None][: len(made)]
    return tuple(Tenure(ticker, day, end) for (day, ticker), end in zip(made, ends, strict=True))


class Listed(Protocol):
    """A row of a list that names a ticker, such as a split."""

    @property
    def symbol(self) -> str:
        """The ticker."""

    def _replace(self, *, symbol: str) -> Self: ...


_R = TypeVar("_R", bound=Listed)


def tickers_of(identities: Mapping[str, Identity]) -> frozenset[str]:
    """Return all tickers that the securities had."""
    return frozenset(each.ticker for identity in identities.values() for each in identity.tenures)


def of_securities(rows: Iterable[_R], identities: Mapping[str, Identity], day: Callable[[_R], date]) -> Iterator[_R]:
    """Yield rows of a list by ticker under the symbol of the followed security that had the ticker on the row's day.

    A row of a followed ticker that was another security on its day is left out, one of any other ticker stays as it is.

    Args:
        rows: of the vendor's list.
        identities: by followed symbol.
        day: returns the day of a row.
    """
    had: dict[str, list[tuple[str, Tenure]]] = {}
    for symbol, identity in identities.items():
        for tenure in identity.tenures:
            had.setdefault(tenure.ticker, []).append((symbol, tenure))
    for row in rows:
        for symbol, tenure in had.get(row.symbol, ()):
            if tenure.covers(day(row)):
                yield row._replace(symbol=symbol)
        if row.symbol not in identities:
            yield row


def differences(symbol: str, before: Identity | None, now: Identity) -> tuple[str, ...]:
    """Return what became known of a followed symbol, a sentence each, without its symbol and a full stop.

    Args:
        symbol: as it is followed.
        before: what was known; None when nothing was.
        now: what is known.
    """
    found = []
    if before is not None and before.security != now.security:
        found.append(
            f"is another security now ({now.security}, before {before.security}): its series are the history of the "
            "new one, and what they held of the other is kept apart"
        )
    old = () if before is None or before.security != now.security else before.tenures
    if now.ticker != symbol and (not old or old[-1].ticker != now.ticker):
        found.append(f"has traded as {now.ticker} since {now.tenures[-1].start}: its series go on under that ticker")
    earlier = [each for each in now.tenures[:-1] if each.ticker != symbol and each not in old]
    if earlier:
        names = ", ".join(f"{each.ticker} until {each.end}" for each in earlier)
        found.append(f"was {names}: that history is part of its series")
    own = [each for each in now.tenures if each.ticker == symbol]
    starts = {each.start for each in old if each.ticker == symbol}
    if (
        own
        and own[0].start is not None
        and own[0].start not in starts
        and (before is None or before.security == now.security)
    ):
        found.append(f"has been this security since {own[0].start}: what the ticker was before is kept apart")
    return tuple(found)
