"""Bring a series' stored features in step with its bars: recompute what a change can reach, write what differs.

Add here: how far a change reaches and what has to be read for it. Keep out: the formulas (domain.features).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.failures import FeatureError
from market_data_pipeline.store.bars import read_bars, read_bars_before
from market_data_pipeline.store.features import (
    append_features,
    changed_rows,
    feature_table,
    read_features,
    remove_features,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import pyarrow as pa

    from market_data_pipeline.domain.series import AssetClass, Series
    from market_data_pipeline.domain.splits import Split
    from market_data_pipeline.ingest.stopwatch import Stopwatch
    from market_data_pipeline.store.bulk import Bulk

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(2100, 1, 1, tzinfo=UTC)


def instant(us: int) -> datetime:
    """Return microseconds since 1970 UTC as an aware instant."""
    return _EPOCH + timedelta(microseconds=int(us))


def bars_to_compute(
    bulk: Bulk,
    series: Series,
    answer: pd.DataFrame,
    *,
    first: datetime | None,
    held_until: datetime | None,
    joined: bool,
) -> tuple[pd.DataFrame, int]:
    """Return the raw bars that a recomputation from `first` on needs, and the index of `first` among them.

    Args:
        bulk: the transaction in which the changed bars are already stored.
        series: whose bars.
        answer: the bars that the change came with; read again only where they cannot serve.
        first: start of the first bar that changed, None to recompute all.
        held_until: start of the last bar that was held before the change, None when none was.
        joined: whether `answer` is all there is from its first bar to its last.
    """
    import pandas as pd

    from market_data_pipeline.domain.feature_definitions import WARM_UP_BARS
    from market_data_pipeline.domain.features import warm_up_suffices

    if held_until is None:
        return answer, 0
    if first is None:
        return read_bars(bulk, series, BEGINNING, _END), 0
    warm_up = read_bars_before(bulk, series, first, WARM_UP_BARS)
    starts = ts_us(answer)
    if joined and len(starts) and starts[-1] >= _us(held_until):
        changed = answer.iloc[int(starts.searchsorted(_us(first))) :]
    else:
        changed = read_bars(bulk, series, first, _END)
    bars = pd.concat((warm_up, changed), ignore_index=True)
    if len(warm_up) == WARM_UP_BARS and not warm_up_suffices(bars, len(warm_up)):
        bars = read_bars(bulk, series, BEGINNING, _END)
        return bars, int(ts_us(bars).searchsorted(_us(first)))
    return bars, len(warm_up)


def recompute_features(
    bulk: Bulk,
    series: Series,
    bars: pd.DataFrame,
    start: int,
    *,
    asset_class: AssetClass,
    splits: Sequence[Split],
    now: datetime,
    compare_from: datetime | None,
    watch: Stopwatch,
) -> int:
    """Compute the features of `bars` from index `start` on, store the rows that differ, and return how many did.

    Args:
        bulk: the transaction.
        series: whose features.
        bars: raw bars, the first `start` of them as warm-up.
        start: index of the first bar whose features are stored.
        asset_class: for the bars per year and the session date.
        splits: the splits known now.
        now: becomes `features_computed_at`.
        compare_from: first instant at which features may be stored already, None when there are none.
        watch: takes the time.

    Raises:
        FeatureError: the bars break a formula; the sentence names the series.
    """
    from market_data_pipeline.domain.features import compute_features
    from market_data_pipeline.domain.sessions import NEW_YORK
    from market_data_pipeline.domain.splits import adjust

    with watch.computing():
        try:
            adjusted = adjust(bars, splits, now.astimezone(NEW_YORK).date())
            computed = compute_features(adjusted, series.timeframe, asset_class).iloc[start:]
            table = feature_table(computed)
        except (ArithmeticError, ValueError, TypeError, KeyError) as error:
            where = f"{bars['ts'].iloc[start]:%Y-%m-%d %H:%M}" if len(bars) > start else "its end"
            raise FeatureError(
                f"The features of {series.partition_key} from {where} on cannot be computed: "
                f"{type(error).__name__}: {error}"
            ) from error
    with watch.storing():
        if compare_from is not None:
            table = _differing(bulk, series, table, compare_from)
        append_features(bulk, series, table, now)
    return int(table.num_rows)


def _differing(bulk: Bulk, series: Series, computed: pa.Table, compare_from: datetime) -> pa.Table:
    import numpy as np

    stored = read_features(bulk, series, compare_from)
    mask = changed_rows(stored, computed)
    stored_ts, computed_ts = stored["ts"].to_numpy(), computed["ts"].to_numpy()
    outdated = np.isin(stored_ts, computed_ts[mask]) | ~np.isin(stored_ts, computed_ts)
    remove_features(bulk, series, stored["ts"].filter(outdated).to_pylist())
    return computed.filter(mask)


def _us(ts: datetime) -> int:
    return (ts - _EPOCH) // timedelta(microseconds=1)
