"""The numbers of the series in `market_data.records`, for those who read; a writer gives them, see `records`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from market_data_pipeline.domain.series import Series, Timeframe

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from market_data_pipeline.store.copy import StoreConnection


def series_numbers(connection: StoreConnection, series: Collection[Series]) -> Mapping[Series, int] | None:
    """Return the number of each series that has one; a series without has no records.

    None while `market-data migrate` still moves bars to `records`: only the views have all of them then.
    """
    unknown = {each for each in series if each not in connection.series_ids}
    if connection.all_moved and not unknown:
        return connection.series_ids
    [row] = connection.rows(
        """
        select
            to_regclass('market_data.series_to_move') is null as all_moved,
            to_regclass('market_data.packed_records') is not null as packs,
            array_agg(s.id) as numbers,
            array_agg(s.symbol) as symbols,
            array_agg(s.timeframe) as timeframes
        from unnest(%(symbols)s::text[], %(timeframes)s::text[]) as asked (symbol, timeframe)
        inner join market_data.series as s on s.symbol = asked.symbol and s.timeframe = asked.timeframe
        """,
        {
            "symbols": [each.symbol for each in unknown],
            "timeframes": [str(each.timeframe) for each in unknown],
        },
    )
    connection.all_moved, connection.packs = row["all_moved"], row["packs"]
    if not connection.all_moved:
        return None
    if row["numbers"]:
        found = zip(row["symbols"], map(Timeframe, row["timeframes"]), row["numbers"], strict=True)
        connection.series_ids.update({Series(symbol, timeframe): number for symbol, timeframe, number in found})
    return connection.series_ids
