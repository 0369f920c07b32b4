"""What a reader is asked for: which rows and columns, checked as far as possible without the database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

from market_data_pipeline.domain.adjustments import Adjustment
from market_data_pipeline.domain.bars import VALUES
from market_data_pipeline.domain.calendar import calendar_for
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.domain.series import Series, Timeframe, asset_class_of, parse_timeframe
from market_data_pipeline.reading.regular import is_made, read_as

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from market_data_pipeline.domain.adjustments import Adjusted
    from market_data_pipeline.domain.features.definitions import Feature
    from market_data_pipeline.domain.series import AssetClass

    When: TypeAlias = str | date | datetime

Kind = Literal["bars", "features", "records"]
SessionHours = Literal["extended", "regular"]
_SESSIONS: Final = ("extended", "regular")

BEGINNING: Final = datetime(1, 1, 2, tzinfo=UTC)
END: Final = datetime(9999, 12, 30, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Rows and columns, as every source of them is asked.

    Attributes:
        kind: bars, features, or bars each with its features.
        symbols, timeframes: not empty, each once.
        labelled: of `symbol` and `timeframe`, those that are columns of the answer: of which several were asked for.
        start, end: as the caller wrote them; `interval` has the instants of one series.
        as_of: the instant of which bars are read, aware UTC; None for now.
        adjustment: what bars are adjusted for.
        session: which hours of a session: all, or the regular ones.
        bars: the bars' columns of the answer.
        features: the features of the answer, of the 17 and the project's own.
        columns: the names of both in the order of the answer.
    """

    kind: Kind
    symbols: tuple[str, ...]
    timeframes: tuple[Timeframe, ...]
    labelled: tuple[str, ...]
    start: When | None
    end: When | None
    as_of: datetime | None
    adjustment: Adjustment
    session: SessionHours
    bars: tuple[str, ...]
    features: tuple[Feature, ...]
    columns: tuple[str, ...]

    def interval(self, symbol: str) -> tuple[datetime, datetime]:
        """Return [start, end) as instants; what a date means depends on where the symbol trades."""
        return self._intervals[asset_class_of(symbol)]

    @cached_property
    def _intervals(self) -> dict[AssetClass, tuple[datetime, datetime]]:
        return {
            asset_class_of(symbol): (
                BEGINNING if self.start is None else instant("start", self.start, symbol),
                END if self.end is None else instant("end", self.end, symbol),
            )
            for symbol in _one_of_each_market(self.symbols)
        }

    def read_as(self, series: Series) -> Series:
        """Return the stored series that the rows of `series` are read from, or made of."""
        return read_as(series) if self.session == "regular" else series

    def stored_timeframes(self) -> list[Timeframe]:
        """Return the timeframes of all series that are read."""
        return list(dict.fromkeys(self.read_as(series).timeframe for series in self.series()))

    def series(self) -> list[Series]:
        """Return the series in the order of the answer: by symbol, then by timeframe."""
        return [Series(symbol, timeframe) for symbol in self.symbols for timeframe in self.timeframes]


def select(
    kind: Kind,
    symbol: str | Iterable[str],
    timeframe: str | Iterable[str],
    start: When | None,
    end: When | None,
    *,
    as_of: datetime | None = None,
    adjusted: Adjusted = "splits",
    session: SessionHours = "extended",
    columns: Iterable[str] | None = None,
    own: Sequence[Feature] = (),
) -> Selection:
    """Return the selection that a reader's arguments mean.

    Raises:
        UsageError: one of them is wrong; the message says what to write instead.
    """
    symbols = _several(symbol, "Name at least one symbol: 'AAPL', or ['AAPL', 'MSFT'].")
    named = _several(timeframe, "Name at least one timeframe: '1d', or ['5m', '1d'].")
    bars = () if kind == "features" else VALUES
    features = () if kind == "bars" else (*FEATURES, *own)
    chosen = _columns(columns, (*bars, *(feature.name for feature in features)))
    labelled = [name for name, given in (("symbol", symbol), ("timeframe", timeframe)) if not isinstance(given, str)]
    selection = Selection(
        kind=kind,
        symbols=symbols,
        timeframes=tuple(dict.fromkeys(map(parse_timeframe, named))),
        labelled=tuple(labelled),
        start=start,
        end=end,
        as_of=None if as_of is None else instant("as_of", as_of, None),
        adjustment=Adjustment.of(adjusted),
        session=session,
        bars=tuple(name for name in bars if name in chosen),
        features=tuple(feature for feature in features if feature.name in chosen),
        columns=chosen,
    )
    if session not in _SESSIONS:
        raise UsageError(f"session must be one of {', '.join(_SESSIONS)}, not {session!r}.")
    if session == "regular" and selection.features and (made := next(filter(is_made, selection.series()), None)):
        raise UsageError(
            f"There are no features of {made.timeframe} bars of regular hours, which are made when they are read: "
            "features are computed of the stored bars. Read those of 5m, 15m or 1d, or leave session out."
        )
    if start is not None and end is not None:
        for each in _one_of_each_market(symbols):
            first, stop = selection.interval(each)
            if first >= stop:
                raise UsageError(f"start must be before end: {start} is not before {end}.")
    return selection


def _several(given: str | Iterable[str], advice: str) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else ()
    if not texts or not all(isinstance(one, str) for one in texts):
        raise UsageError(advice)
    return tuple(dict.fromkeys(texts))


def _columns(given: Iterable[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return known
    chosen = _several(given, f"Name at least one column, for example columns=[{known[0]!r}]; None reads all.")
    if unknown := [name for name in chosen if name not in known]:
        raise UsageError(f"There is no column {unknown[0]!r} here; known are {', '.join(known)}.")
    return chosen


def _one_of_each_market(symbols: tuple[str, ...]) -> list[str]:
    return list({asset_class_of(symbol): symbol for symbol in symbols}.values())


def instant(what: str, value: When, symbol: str | None) -> datetime:
    """Return an aware UTC instant; a date means midnight where `symbol` trades and is refused without a symbol.

    Raises:
        UsageError: it is not an instant, or has no time zone.
    """
    example = "2026-01-05" if symbol is not None else "2026-01-05T20:00:00Z"
    moment: date | datetime = value if not isinstance(value, str) else _parsed(what, value, example)
    if not isinstance(moment, datetime):
        if not isinstance(moment, date) or symbol is None:
            raise UsageError(f"{what} {value!r} is not an instant; write it with its time zone, for example {example}.")
        moment = datetime.combine(moment, time(), calendar_for(asset_class_of(symbol)).tz)
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise UsageError(f"{what} {value!r} has no time zone; add tzinfo, for example timezone.utc.")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{what} {value!r} is outside the years 1 to 9999.") from None


def _parsed(what: str, text: str, example: str) -> date | datetime:
    try:
        return date.fromisoformat(text) if len(text) <= len("2026-01-05") else datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{what} {text!r} is not an ISO 8601 date or instant such as {example}.") from None
