"""Store a series' new bars with their features, and update the features of stored ones that a change affects.

Add here: what a change affects and what must be read to recompute it. Keep out: the formulas (domain.features).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.bars import ts_us
from market_data_pipeline.domain.calendar import exchange_date, to_us
from market_data_pipeline.domain.errors import FeatureError, PipelineError
from market_data_pipeline.domain.features.own import FAILED_MARK, NO_OWN_FEATURES, OwnFeatures
from market_data_pipeline.store.bars import read_bars, read_bars_before
from market_data_pipeline.store.feature_values import feature_table
from market_data_pipeline.store.features import changed_rows, read_features
from market_data_pipeline.store.records import append_records, update_features

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    import pyarrow as pa

    from market_data_pipeline.domain.adjustments import Split
    from market_data_pipeline.domain.counters import Tally
    from market_data_pipeline.domain.series import AssetClass, Series
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.series_state import SeriesState

BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class FeatureBasis:
    """What a symbol's features depend on besides its bars.

    Attributes:
        asset_class: decides the bars per year and the session dates.
        splits: the symbol's known splits.
        splits_digest: a fingerprint of those in force.
        own: the project's own features.
        doubts: what users should know about the splits, a sentence for each doubt.
    """

    asset_class: AssetClass
    splits: tuple[Split, ...]
    splits_digest: str
    own: OwnFeatures = NO_OWN_FEATURES
    doubts: tuple[str, ...] = ()


class FeatureUpdate(NamedTuple):
    """What an update of a series' features did.

    Attributes:
        rows: rows written.
        problems: a sentence for each own feature that could not be computed.
        own_features: the fingerprint of the own features behind the stored rows, for the series' state.
        bars: the adjusted bars that were read for it; empty when there was nothing to compute.
        changed_us: starts of the first and last bars whose features were written, microseconds since 1970 UTC; empty
            when none were.
    """

    rows: int
    problems: tuple[str, ...]
    own_features: str
    bars: pd.DataFrame
    changed_us: Sequence[int] = ()


def store_records(
    connection: StoreConnection,
    series: Series,
    state: SeriesState,
    bars: pd.DataFrame,
    basis: FeatureBasis,
    *,
    new: pd.DataFrame,
    changed_from: datetime | None,
    contiguous: bool,
    full: bool,
    now: datetime,
    tally: Tally,
) -> FeatureUpdate:
    """Store new bars with their features, and let the features of the stored ones match.

    Args:
        connection: the transaction.
        series: the series to update.
        state: its state before the bars changed.
        bars: the raw bars that the change came with.
        basis: what the features depend on besides the bars.
        new: those of `bars` that are not stored, or no more.
        changed_from: start of the first bar that changed, None when none did.
        contiguous: whether `bars` has every bar of the series from its first one to its last.
        full: compute and compare everything again.
        now: becomes `ingested_at` of the new ones and `features_computed_at`, aware UTC.
        tally: counts the time.

    Raises:
        FeatureError: a formula of the 17 fails on the bars; the message names the series.
    """
    import numpy as np

    from market_data_pipeline.domain.adjustments import adjust

    own, held_until = basis.own, state.last_ts
    outdated = _is_outdated(state, basis, bars_change=changed_from is not None)
    if changed_from is None and not outdated and not (full and state.bar_count):
        return FeatureUpdate(0, (), state.own_features, bar_frames.empty())
    first = None if outdated or full else changed_from
    today = exchange_date(now)
    with tally.storing():
        read, start = bars_to_compute(
            connection,
            series,
            bars,
            new,
            first=first,
            held_until=held_until,
            contiguous=contiguous,
            adjusted=lambda raw: adjust(raw, basis.splits, today),
            warm_up=own.warm_up,
        )
    with tally.computing():
        table, problems = _computed(series, read, start, basis.asset_class, own)
    with tally.storing():
        of_new = np.isin(table["ts"].cast("int64").to_numpy(), ts_us(new), assume_unique=True)
        append_records(connection, series, new, table.filter(of_new), now)
        changed = np.zeros(len(of_new), dtype=bool)
        begin = first or BEGINNING
        if held_until is not None and begin <= held_until:
            stored = read_features(connection, series, begin, own.declarations, leftovers=own.readable)
            changed = changed_rows(stored, table) & ~of_new
            update_features(connection, series, table.filter(changed), now)
    table = table.filter(of_new | changed)
    written = table["ts"].cast("int64").to_numpy()
    changed_us = [*written[:1].tolist(), *written[-1:].tolist()]
    rows = int(table.num_rows)
    if own.readable:
        fingerprint = own.digest + (FAILED_MARK if problems else "")
    else:
        fingerprint = FAILED_MARK if rows else state.own_features
    return FeatureUpdate(rows, problems, fingerprint, read, changed_us)


def _is_outdated(state: SeriesState, basis: FeatureBasis, *, bars_change: bool) -> bool:
    """Return whether all stored features must be computed again, no matter which bars changed.

    They must if they were computed with other splits, or by another version of the 17 or of the own features; and, as
    soon as bars change, if one of the own features failed the last time.
    """
    from market_data_pipeline.domain.features.definitions import FEATURE_VERSION

    own, stored = basis.own, state.own_features
    return state.bar_count > 0 and (
        state.splits_digest != basis.splits_digest
        or state.feature_version != FEATURE_VERSION
        or (own.readable and stored.removesuffix(FAILED_MARK) != own.digest)
        or (own.readable and bars_change and stored.endswith(FAILED_MARK))
    )


def bars_to_compute(
    connection: StoreConnection,
    series: Series,
    answer: pd.DataFrame,
    new: pd.DataFrame,
    *,
    first: datetime | None,
    held_until: datetime | None,
    contiguous: bool,
    adjusted: Callable[[pd.DataFrame], pd.DataFrame],
    warm_up: int | None,
) -> tuple[pd.DataFrame, int]:
    """Return the adjusted bars that a recomputation from `first` on needs, and the index of `first` among them.

    Args:
        connection: the transaction, in which the bars that changed are no more stored.
        series: whose bars.
        answer: the raw bars that the change came with; stored bars are read only where these do not suffice.
        new: those of `answer` that are not stored.
        first: start of the first bar that changed, None to recompute all.
        held_until: start of the last bar that was stored before the change, None when none was.
        contiguous: whether `answer` has every bar of the series from its first one to its last.
        adjusted: returns adjusted bars for raw ones.
        warm_up: how many bars before `first` are needed, None for all of them.
    """
    import pandas as pd

    from market_data_pipeline.domain.features.compute import warm_up_suffices

    if held_until is None:
        return adjusted(answer), 0
    if first is None:
        return adjusted(_together(read_bars(connection, series, BEGINNING, _END), new)), 0
    if warm_up is not None:
        before = read_bars_before(connection, series, first, warm_up)
        starts = ts_us(answer)
        if contiguous and len(starts) and starts[-1] >= to_us(held_until):
            changed = answer.iloc[int(starts.searchsorted(to_us(first))) :]
        else:
            changed = _together(read_bars(connection, series, first, _END), new)
        bars = adjusted(pd.concat((before, changed), ignore_index=True))
        if len(before) < warm_up or warm_up_suffices(bars, len(before)):
            return bars, len(before)
    bars = adjusted(_together(read_bars(connection, series, BEGINNING, _END), new))
    return bars, int(ts_us(bars).searchsorted(to_us(first)))


def _together(stored: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Return the bars of both frames, which have none in common, in ascending order."""
    import pandas as pd

    if not len(stored) or not len(new):
        return new if len(new) else stored
    return pd.concat((stored, new), ignore_index=True).sort_values("ts", ignore_index=True)


def _computed(
    series: Series, bars: pd.DataFrame, start: int, asset_class: AssetClass, own: OwnFeatures
) -> tuple[pa.Table, tuple[str, ...]]:
    from market_data_pipeline.domain.features.compute import features_from

    try:
        computed = features_from(bars, start, series.timeframe, asset_class)
        problems: tuple[str, ...] = ()
        if own.features:
            import pandas as pd

            from market_data_pipeline.domain.features.own_values import compute_own

            columns, problems = compute_own(own.features, bars, start, series.timeframe, asset_class)
            computed = pd.concat((computed, columns), axis="columns")
        return feature_table(computed, own.declarations), problems
    except PipelineError:
        raise
    except Exception as error:  # TA-Lib raises plain Exception
        where = f"{bars['ts'].iloc[start]:%Y-%m-%d %H:%M}" if len(bars) > start else "its end"
        raise FeatureError(
            f"The features of {series.partition_key} from {where} on cannot be computed: "
            f"{type(error).__name__}: {error}"
        ) from error
