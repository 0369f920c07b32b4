"""The client: what the readers answer from the database, answered over HTTP."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain.adjustments import Adjustment
from market_data_pipeline.domain.bars import VALUES
from market_data_pipeline.domain.errors import UsageError
from market_data_pipeline.domain.features.definitions import FEATURES
from market_data_pipeline.http_client.transport import Transport
from market_data_pipeline.reading.database import PIECE_ROWS
from market_data_pipeline.reading.selection import select
from market_data_pipeline.reading.tables import to_pandas, to_polars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import pyarrow as pa

    from market_data_pipeline.domain.adjustments import Adjusted
    from market_data_pipeline.reading.selection import Kind, Selection, SessionHours, When

ARROW: Final = "application/vnd.apache.arrow.stream"
_PATHS: Final = {"bars": "/api/v1/bars", "features": "/api/v1/features/quant"}
_KEYS: Final = ["symbol", "timeframe", "ts"]
_PAGE: Final = 10_000  # records, the API's maximum
_SYMBOLS_AT_ONCE: Final = 200  # so that their names and a cursor fit into an address
# Of what bars are adjusted for, the parameter that an API of any version knows, where there is one.
_PARAMETERS: Final = {
    Adjustment.RAW: {"adjusted": "false"},
    Adjustment.SPLITS: {"adjusted": "true"},
    Adjustment.ALL: {"adjustment": "all"},
}
_LABELS: Final = {feature.name: feature.labels for feature in FEATURES if feature.labels}


class _Asked(NamedTuple):
    """What a call asks for, and the form of its answer."""

    selection: Selection
    columns: list[str] | None
    form: Callable[[pa.Table], Any]


def _as_they_are(found: pa.Table) -> pa.Table:
    return found


class Client:
    """Reads from one read API.

    Args:
        base_url: where the API is, with its path prefix if it has one.
        token: sent in the header Authorization, never in an address; None for none. Series need none, unless a proxy
            in front of the API asks for one.
        timeout: seconds without a byte after which a request has failed.

    Raises:
        UsageError: the URL is not the address of an API.

    Example:
        >>> from market_data_pipeline.http_client import Client
        >>> Client("http://127.0.0.1:8000")
        Client('http://127.0.0.1:8000')
    """

    def __init__(self, base_url: str, *, token: str | None = None, timeout: float = 60.0) -> None:
        self._transport = Transport(base_url, token, timeout)
        self._base_url = base_url

    def __repr__(self) -> str:
        return f"Client({self._base_url!r})"

    def symbols(self, tier: str | None = None) -> list[str]:
        """Return the symbols that are followed, or those of one tier, in alphabetical order.

        Raises:
            ApiError: one of its classes.
        """
        pages = self._transport.pages("/api/v1/symbols", {"tier": tier, "limit": _PAGE}, "application/json")
        return [one["symbol"] for page in pages for one in json.loads(page)["symbols"]]

    def read_bars(
        self,
        symbol: str | Iterable[str],
        timeframe: str | Iterable[str],
        start: When | None = None,
        end: When | None = None,
        *,
        adjusted: Adjusted = "splits",
        as_of: datetime | None = None,
        session: SessionHours = "extended",
        columns: Iterable[str] | None = None,
        as_arrow: bool = False,
        as_polars: bool = False,
    ) -> Any:
        """Return the bars of one or more series that start in [start, end), as `market_data_pipeline.read_bars` does.

        Raises:
            UsageError: an argument is wrong; NotTrackedError and WrongRequestError are among its classes.
            ApiError: the API failed; ApiUnavailableError when the same call may succeed later.
        """
        return self._read(
            "bars",
            symbol,
            timeframe,
            start,
            end,
            columns,
            as_arrow,
            as_polars,
            adjusted=adjusted,
            as_of=as_of,
            session=session,
        )

    def read_features(
        self,
        symbol: str | Iterable[str],
        timeframe: str | Iterable[str],
        start: When | None = None,
        end: When | None = None,
        *,
        session: SessionHours = "extended",
        columns: Iterable[str] | None = None,
        as_arrow: bool = False,
        as_polars: bool = False,
    ) -> Any:
        """Return the features, as `market_data_pipeline.read_features` does; raises as `read_bars`."""
        return self._read("features", symbol, timeframe, start, end, columns, as_arrow, as_polars, session=session)

    def read_records(
        self,
        symbol: str | Iterable[str],
        timeframe: str | Iterable[str],
        start: When | None = None,
        end: When | None = None,
        *,
        adjusted: Adjusted = "splits",
        session: SessionHours = "extended",
        columns: Iterable[str] | None = None,
        as_arrow: bool = False,
        as_polars: bool = False,
    ) -> Any:
        """Return bars with their features, as `market_data_pipeline.read_records` does; raises as `read_bars`.

        Both are read one after the other: a bar that is stored in between may have no features yet.
        """
        return self._read(
            "records", symbol, timeframe, start, end, columns, as_arrow, as_polars, adjusted=adjusted, session=session
        )

    def iter_bars(
        self,
        symbol: str | Iterable[str],
        timeframe: str | Iterable[str],
        start: When | None = None,
        end: When | None = None,
        *,
        rows: int = PIECE_ROWS,
        adjusted: Adjusted = "splits",
        as_of: datetime | None = None,
        session: SessionHours = "extended",
        columns: Iterable[str] | None = None,
        as_arrow: bool = False,
        as_polars: bool = False,
    ) -> Iterator[Any]:
        """Yield what `read_bars` returns in frames of at most `rows` rows, for more than fits into memory.

        The frames come in the order of `read_bars` and together are its answer; none is empty. Some symbols at a time
        are read as their frames are asked for, at least one whole: what is stored meanwhile is in those that follow.
        Raises as `read_bars`.
        """
        asked = self._asked(
            "bars", symbol, timeframe, start, end, columns, as_arrow, as_polars, adjusted=adjusted, as_of=as_of,
            session=session,
        )  # fmt: skip
        return self._iterate(asked, rows)

    def iter_features(
        self,
        symbol: str | Iterable[str],
        timeframe: str | Iterable[str],
        start: When | None = None,
        end: When | None = None,
        *,
        rows: int = PIECE_ROWS,
        session: SessionHours = "extended",
        columns: Iterable[str] | None = None,
        as_arrow: bool = False,
        as_polars: bool = False,
    ) -> Iterator[Any]:
        """Yield what `read_features` returns in frames of at most `rows` rows, see `iter_bars`."""
        asked = self._asked(
            "features", symbol, timeframe, start, end, columns, as_arrow, as_polars, session=session
        )  # fmt: skip
        return self._iterate(asked, rows)

    def iter_records(
        self,
        symbol: str | Iterable[str],
        timeframe: str | Iterable[str],
        start: When | None = None,
        end: When | None = None,
        *,
        rows: int = PIECE_ROWS,
        adjusted: Adjusted = "splits",
        session: SessionHours = "extended",
        columns: Iterable[str] | None = None,
        as_arrow: bool = False,
        as_polars: bool = False,
    ) -> Iterator[Any]:
        """Yield what `read_records` returns in frames of at most `rows` rows, see `iter_bars`."""
        asked = self._asked(
            "records", symbol, timeframe, start, end, columns, as_arrow, as_polars, adjusted=adjusted, session=session
        )
        return self._iterate(asked, rows)

    def _asked(
        self,
        kind: Kind,
        symbol: str | Iterable[str],
        timeframe: str | Iterable[str],
        start: When | None,
        end: When | None,
        columns: Iterable[str] | None,
        as_arrow: bool,
        as_polars: bool,
        *,
        adjusted: Adjusted = "splits",
        as_of: datetime | None = None,
        session: SessionHours,
    ) -> _Asked:
        if as_arrow and as_polars:
            raise UsageError("as_arrow and as_polars name two forms of the answer: pass one of them.")
        chosen = None if columns is None else [columns] if isinstance(columns, str) else list(columns)
        selection = select(kind, symbol, timeframe, start, end, as_of=as_of, adjusted=adjusted, session=session)
        return _Asked(selection, chosen, _as_they_are if as_arrow else to_polars if as_polars else to_pandas)

    def _read(self, *arguments: Any, **more: Any) -> Any:
        asked = self._asked(*arguments, **more)
        return asked.form(self._rows(asked, asked.selection.symbols))

    def _iterate(self, asked: _Asked, rows: int) -> Iterator[Any]:
        """Return an iterator over the answer in frames of at most `rows` rows, none of them empty."""
        if not isinstance(rows, int) or rows < 1:
            raise UsageError(f"rows must be a whole number of at least 1, not {rows!r}.")
        return self._frames(asked, rows)

    def _frames(self, asked: _Asked, rows: int) -> Iterator[Any]:
        symbols, size = asked.selection.symbols, 1
        while symbols:
            found = self._rows(asked, symbols[:size])
            for first in range(0, found.num_rows, rows):
                yield asked.form(found.slice(first, rows))
            symbols = symbols[size:]
            # As many symbols as are likely to have `rows` rows; twice as many at most, since some have more.
            size = max(1, min(2 * size, _SYMBOLS_AT_ONCE, rows * size // max(1, found.num_rows)))

    def _rows(self, asked: _Asked, symbols: tuple[str, ...]) -> pa.Table:
        """Return the rows of some of the symbols, in the order and with the columns that were asked for."""
        selection = replace(asked.selection, symbols=symbols)
        shared = {
            "session": selection.session,
            "start": _text(selection.start),
            "end": _text(selection.end),
            "limit": _PAGE,
        }
        of_bars = {"as_of": _text(selection.as_of)} | _PARAMETERS[selection.adjustment]
        found = None
        if selection.kind != "features":
            found = self._table(selection, "bars", shared | of_bars)
        if selection.kind != "bars":
            features = self._table(selection, "features", shared).drop_columns(list(VALUES))
            found = features if found is None else found.join(features, _KEYS, join_type="left outer")
        return _formed(_ordered(found, selection), asked.selection, asked.columns)

    def _table(self, selection: Selection, what: str, parameters: dict[str, Any]) -> pa.Table:
        """Return all pages of all series, in any order."""
        import pyarrow as pa

        found = []
        for timeframe in selection.timeframes:
            for first in range(0, len(selection.symbols), _SYMBOLS_AT_ONCE):
                symbols = ",".join(selection.symbols[first : first + _SYMBOLS_AT_ONCE])
                asked = parameters | {"symbols": symbols, "timeframe": timeframe.value}
                for page in self._transport.pages(_PATHS[what], asked, ARROW):
                    found.append(pa.ipc.open_stream(page).read_all())
        return pa.concat_tables(found)


def _text(value: When | None) -> str | None:
    """Return a date or an instant as the API reads it; `select` has checked it."""
    if value is None or isinstance(value, str):
        return value
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else date.isoformat(value)


def _ordered(found: pa.Table, selection: Selection) -> pa.Table:
    """Return the rows by symbol and timeframe in the order requested, then by time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    keys = [found["ts"].cast(pa.int64()).to_numpy()]
    for name, order in (("timeframe", selection.timeframes), ("symbol", selection.symbols)):
        keys.append(pc.index_in(found[name], pa.array([str(one) for one in order])).to_numpy())
    return found.take(pa.array(np.lexsort(keys)))


def _formed(found: pa.Table, selection: Selection, columns: Sequence[str] | None) -> pa.Table:
    """Return the columns requested, with the types that the readers give them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = [name for name in found.column_names if name not in _KEYS]
    if columns is not None and (unknown := [name for name in columns if name not in known]):
        raise UsageError(f"There is no column {unknown[0]!r} here; known are {', '.join(known)}.")
    orders = {"symbol": selection.symbols, "timeframe": selection.timeframes}
    labels = {name: [str(one) for one in order] for name, order in orders.items()} | _LABELS
    formed = {}
    for name in (*selection.labelled, "ts", *(columns or known)):
        formed[name] = found[name]
        if name in labels:
            codes = pc.index_in(found[name], pa.array(labels[name], pa.string())).combine_chunks()
            formed[name] = pa.DictionaryArray.from_arrays(codes, pa.array(labels[name], pa.string()))
    return pa.table(formed)
