"""The vendor's two lists of dividends, and how they are decoded.

The vendor deprecated `/v3/reference/dividends` in February 2026 for `/stocks/v1/dividends`. They name ticker, dates and
amount alike, and the kind of a dividend differently.
"""

from __future__ import annotations

import math
from datetime import date
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

import msgspec

from market_data_pipeline.domain.adjustments import PRICE_CURRENCY, ListedDividend
from market_data_pipeline.domain.errors import DataError
from market_data_pipeline.polygon.listed_rows import readable_rows
from market_data_pipeline.polygon.rows import in_words
from market_data_pipeline.polygon.wire import Envelope, Page, decode

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

# Tickers of one request: their whole histories, a hundred rows each, fill a page of 5,000.
TICKERS_AT_ONCE: Final = 40

# The older list's codes (knowledge base, "types of dividends"): regular, special, and a fund's distributed gains.
_OLDER_TYPES: Final = {"CD": "recurring", "SC": "special", "LT": "long_term_gain", "ST": "short_term_gain"}


class DividendsEndpoint(NamedTuple):
    """An address of the list, the parameters that ask for the longest pages, and how many tickers it takes at once."""

    path: str
    parameters: str
    tickers_at_once: int

    def targets(self, tickers: Sequence[str] | None, since: date | None) -> list[str]:
        """Return path and query of each request for the dividends of `tickers` (None: of all) from `since` on."""
        first = "" if since is None else f"ex_dividend_date.gte={since}&"
        if tickers is None:
            return [f"{self.path}?{first}{self.parameters}"]
        name = "ticker" if self.tickers_at_once == 1 else "ticker.any_of"
        groups = [tickers[at : at + self.tickers_at_once] for at in range(0, len(tickers), self.tickers_at_once)]
        return [
            f"{self.path}?{'ticker' if len(group) == 1 else name}={quote(','.join(group))}&{first}{self.parameters}"
            for group in groups
        ]


# In the order in which they are tried; a 404 leads to the next.
DIVIDENDS_ENDPOINTS: Final = (
    DividendsEndpoint("/stocks/v1/dividends", "limit=5000&sort=ex_dividend_date.asc", TICKERS_AT_ONCE),
    DividendsEndpoint("/v3/reference/dividends", "limit=1000&order=asc&sort=ex_dividend_date", 1),
)


class _Dividend(msgspec.Struct):
    ticker: str
    ex_dividend_date: date
    cash_amount: float
    currency: str | None = None
    # What adjusts nothing is no reason to do without the row.
    declaration_date: object = None
    record_date: object = None
    pay_date: object = None
    frequency: object = None
    distribution_type: object = None
    dividend_type: object = None
    id: object = None


class _DividendPage(Envelope):
    results: list[msgspec.Raw] | None = None


_PAGE: Final = msgspec.json.Decoder(_DividendPage)
_ROW: Final = msgspec.json.Decoder(_Dividend)


def read_dividends(
    body: bytes, followed: Collection[str], unreadable: dict[str, str]
) -> Page[tuple[ListedDividend, ...]]:
    """Return the dividends of one page that are of `followed` tickers.

    A row of another ticker that cannot be read is left out with a warning, as one of the market's splits is.

    Args:
        body: the unpacked answer.
        followed: the tickers whose dividends matter.
        unreadable: receives, by ticker, what is wrong with a row of a ticker that matters, or, under `NO_TICKER`, with
            a row without a ticker.

    Raises:
        TransientError: the body is not JSON.
        RefusedInBodyError: its status is not a success.
    """
    page = decode(_PAGE, body, "dividends", "row")
    results = page.results or ()
    rows = readable_rows(results, _read_row, "dividend", followed, unreadable)
    return Page(tuple(row for row in rows if row.symbol in followed), len(results), page.next_url)


def _read_row(raw: msgspec.Raw, where: str) -> ListedDividend:
    failure: DataError
    try:
        row = _ROW.decode(raw)
    except msgspec.ValidationError as error:
        failure = DataError(f"{where}{in_words(str(error), 'row')}.")
    else:
        if not row.ticker:
            raise DataError(f"{where}, field ticker: it is empty.")
        if not (math.isfinite(row.cash_amount) and row.cash_amount > 0):
            raise DataError(f"{where} ({row.ticker}), field cash_amount: {row.cash_amount} is not an amount of money.")
        older = _text(row.dividend_type)
        return ListedDividend(
            row.ticker,
            row.ex_dividend_date,
            row.cash_amount,
            (row.currency or PRICE_CURRENCY).upper(),
            _date(row.declaration_date),
            _date(row.record_date),
            _date(row.pay_date),
            int(row.frequency) if isinstance(row.frequency, int | float) else None,
            _text(row.distribution_type) or (_OLDER_TYPES.get(older, older) if older else None),
            str(row.id) if isinstance(row.id, str | int) else None,
        )
    raise failure


def _date(value: object) -> date | None:
    try:
        return date.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
