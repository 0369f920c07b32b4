"""Which symbols were followed, and which were listed, at an instant: the universe of a study without hindsight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.calendar import calendar_for, exchange_date
from market_data_pipeline.domain.series import AssetClass
from market_data_pipeline.reading.connections import snapshot
from market_data_pipeline.reading.current_settings import current_settings
from market_data_pipeline.reading.selection import instant

if TYPE_CHECKING:
    from datetime import date, datetime

    import pandas as pd

    from market_data_pipeline.settings import Settings


def read_universe(
    *, as_of: datetime | None = None, on: date | None = None, settings: Settings | None = None
) -> pd.DataFrame:
    """Return the symbols that were followed by an instant, those that were removed since or before included.

    Args:
        as_of: the instant, aware; None: now. What was known of tickers then decides `security`, `ticker` and `listed`;
            of delistings, what is known now.
        on: the New York day of `ticker` and `listed`, for which of the symbols were listed in the past, as far as their
            securities are known; None: the day of the instant.
        settings: the project's; None takes them from the environment and `.env`.

    Returns:
        A frame indexed by `symbol`: `asset_class`; `tier` and `followed`, whether it was followed at the instant, in
        its last tier by then; `security` (missing where it was not known); `ticker`, what the security was called on
        that New York day (missing where it had none); and `listed`: that it had one, and was not delisted yet.

    Raises:
        UsageError: a time without a time zone.
        ConfigurationError: the settings are wrong, or the database was never migrated.
        DatabaseUnavailableError: the database cannot be reached.

    Example:
        >>> from market_data_pipeline import read_universe
        >>> read_universe().loc[["AAPL"], ["tier", "followed", "ticker", "listed"]]
                    tier  followed ticker  listed
        symbol
        AAPL    critical      True   AAPL    True
    """
    import pandas as pd

    from market_data_pipeline.store.securities import read_identities
    from market_data_pipeline.store.universe import members

    settings = settings or current_settings()
    moment = settings.clock() if as_of is None else instant("as_of", as_of, None)
    day = exchange_date(moment) if on is None else on
    with snapshot(settings, lambda connection: members(connection, moment)) as (connection, found):
        identities = read_identities(connection, [member.symbol for member in found], as_of and moment)
    known = [identities.get(member.symbol) for member in found]
    tickers = [
        member.symbol if identity is None else identity.ticker_on(day) or None
        for member, identity in zip(found, known, strict=True)
    ]
    last = moment if on is None else calendar_for(AssetClass.US_EQUITY).midnight(on)
    ended = [member.delisted_at is not None and member.delisted_at <= last for member in found]
    columns = {
        "asset_class": [member.asset_class for member in found],
        "tier": [member.tier for member in found],
        "followed": pd.array([member.followed for member in found], dtype=bool),
        "security": pd.array([None if each is None else each.security for each in known], dtype="str"),
        "ticker": pd.array(tickers, dtype="str"),
        "listed": pd.array(
            [bool(ticker) and not over for ticker, over in zip(tickers, ended, strict=True)], dtype=bool
        ),
    }
    return pd.DataFrame(columns, index=pd.Index([member.symbol for member in found], name="symbol"))
