"""The first load of many stocks by file: all their series in one transaction, computed side by side.

One by one, a series of a few days costs far more in statements and small arrays than its bars do, and a whole market
has 55,000 series. So those of which nothing is stored are read, resampled, computed and stored some hundred at a time,
one behind the other in the same arrays, each statement for all of them. What one of them ends up with is what
`ingest.refresh` would have given it. Only the plain case is done here: a stock with something particular (a row that
cannot be used, a change of ticker, a day that its newest file lacks, a lock that another run holds) is left to
`ingest.refresh`, and so are all of a transaction that failed.

Add here: what is the same for many stocks without history. Keep out: whatever is about one stock.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.bars import PRICES, VALUES
from market_data_pipeline.domain.calendar import calendar_for, exchange_date, from_us
from market_data_pipeline.domain.counters import NOTHING, Counters
from market_data_pipeline.domain.errors import DatabaseUnavailableError, PipelineError
from market_data_pipeline.domain.features.own import NO_OWN_FEATURES
from market_data_pipeline.domain.freshness import expected_last_ts, quiet_slots
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, AssetClass, Series, Timeframe, asset_class_of
from market_data_pipeline.ingest.commit import hull, log_row
from market_data_pipeline.ingest.coverage import QUIET_MEMORY, ExpectedBars, before_first_bar, silence_of
from market_data_pipeline.ingest.fetch_plan import plan_fetch, reach
from market_data_pipeline.ingest.jumps import jump_doubts
from market_data_pipeline.ingest.life import closed_days
from market_data_pipeline.ingest.outcome import SeriesOutcome
from market_data_pipeline.ingest.splits import SymbolSplits, symbol_splits
from market_data_pipeline.polygon.flat_files import Dataset
from market_data_pipeline.polygon.staged_days import found_many
from market_data_pipeline.store.audit_log import append_logs
from market_data_pipeline.store.coverage import Coverage, CoverageStatus, write_coverage_of
from market_data_pipeline.store.records import append_many, ensure_partitions, series_ids
from market_data_pipeline.store.reference import symbols_with_splits
from market_data_pipeline.store.series_state import SeriesState, without_history, write_states

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    import numpy as np
    import pandas as pd

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.ingest.bulk_load import BulkLoad, Published
    from market_data_pipeline.ingest.fetch_plan import FetchPlan, Timing
    from market_data_pipeline.ingest.outcome import SymbolRequest
    from market_data_pipeline.ingest.refresh import Run
    from market_data_pipeline.polygon.day_file import DayBars
    from market_data_pipeline.store.audit_log import LogRow
    from market_data_pipeline.store.copy import StoreConnection

log = logging.getLogger(__name__)

# Bars and features of that many 5m bars, and what they are computed from, take 200 MB; COPY stores them in seconds, of
# a minute that it may take.
_MOST_BARS: Final = 200_000
_MOST_SYMBOLS: Final = 250  # whose locks one transaction holds; half a market day's worth of bars a piece
_US: Final = timedelta(microseconds=1)
_MARK: Final = 52  # see `domain.features.compute.features_of_many`
_NO_SPLITS: Final = SymbolSplits((), ())
_LEAST_JUMP: Final = 0.1115  # of the logarithm of the price: half of what `domain.jumps` looks at, at least


class FirstLoad(NamedTuple):
    """What became of some symbols.

    Attributes:
        outcomes: of those that were loaded whole.
        earlier: of those that were loaded up to their last file; the days after it are still to be requested.
        rest: the requests of all symbols that are to be refreshed one by one.
    """

    outcomes: tuple[SeriesOutcome, ...]
    earlier: Mapping[Series, SeriesOutcome]
    rest: tuple[SymbolRequest, ...]


class _Days(NamedTuple):
    """The days of a fetched timeframe that files serve, the same for all symbols; `is_whole` when no other is due."""

    plan: FetchPlan
    sessions: tuple[Session, ...]
    files: tuple[Published, ...]
    is_whole: bool


@dataclass(slots=True)
class _Bars:
    """Bars of one timeframe of several stocks, one behind the other, in their order.

    `begins` has one more element than there are stocks; `values` has an array for each of `domain.bars.VALUES`. Of a
    fetched timeframe, `days` are the bars of each day (row) and stock, and `stray` those with a bar in no session.
    """

    timeframe: Timeframe
    starts: np.ndarray
    values: dict[str, np.ndarray]
    begins: np.ndarray
    days: np.ndarray | None = None
    stray: frozenset[int] = frozenset()

    def of(self, at: int) -> slice:
        """Return where the bars of a stock are."""
        return slice(int(self.begins[at]), int(self.begins[at + 1]))


@dataclass(slots=True)
class _Loaded:
    """What is to be stored of several symbols."""

    requests: tuple[SymbolRequest, ...]
    splits: Mapping[str, SymbolSplits]
    spent: Counters = NOTHING
    warnings: tuple[str, ...] = ()
    coverage: list[tuple[Series, Coverage]] = field(default_factory=list)
    states: list[tuple[Series, SeriesState]] = field(default_factory=list)
    outcomes: list[SeriesOutcome] = field(default_factory=list)
    logs: list[tuple[Series, LogRow]] = field(default_factory=list)


def batches(run: Run, requests: Iterable[SymbolRequest]) -> tuple[list[list[SymbolRequest]], list[SymbolRequest]]:
    """Return the requests that may be first loads by file, in batches of one transaction each, and the others."""
    groups: dict[tuple[Timeframe, ...], list[SymbolRequest]] = {}
    others = []
    for request in requests:
        if _may_be_plain(run, request):
            groups.setdefault(request.timeframes, []).append(request)
        else:
            others.append(request)
    most = _most_symbols(run.bulk) if run.bulk is not None else 1
    made = [some[at : at + most] for some in groups.values() for at in range(0, len(some), most)]
    return [each for each in made if len(each) > 1], others + [each[0] for each in made if len(each) == 1]


def _may_be_plain(run: Run, request: SymbolRequest) -> bool:
    return (
        run.bulk is not None
        and not run.full
        and not request.reverify
        and asset_class_of(request.symbol) is AssetClass.US_EQUITY
        and request.tier not in run.bulk.rest_tiers
        and run.pipeline.own_features == NO_OWN_FEATURES
    )


def _most_symbols(bulk: BulkLoad) -> int:
    """Return how many symbols one transaction stores: few where the files span years, or hold busy symbols only."""
    sizes = [file.version.bytes for (dataset, _), file in bulk.published.items() if dataset is Dataset.MINUTES]
    on_average, at_most = sum(sizes) / _BYTES_A_BAR, len(sizes) * _SLOTS
    by_bars = min(_MOST_BARS / max(on_average, 1.0), _MOST_BUSY_BARS / max(at_most, 1))
    return int(min(max(by_bars, 2), _MOST_SYMBOLS))


# A day's file of 1.7 million minutes has 15 MB, and 65 5m bars of each of its 11,000 tickers.
_BYTES_A_BAR: Final = 15e6 / 65
_SLOTS: Final = 192  # of a session, in each of which the busiest symbols have a bar
_MOST_BUSY_BARS: Final = 3 * _MOST_BARS  # if all symbols of a transaction were such


def first_load(run: Run, connection: StoreConnection, requests: Sequence[SymbolRequest]) -> FirstLoad:
    """Load those stocks of which nothing is stored, as far as files have their days; all or none of them.

    Args:
        run: with the files.
        connection: this thread's own.
        requests: stocks, all with the same timeframes.

    Raises:
        PipelineError: one that stops the whole run, or the database was lost. Nothing is stored.
    """
    bulk = run.bulk
    assert bulk is not None  # noqa: S101 - `batches` has checked
    spent, warnings = run.pending.take_counters(), run.pending.take_warnings()
    try:
        with connection.symbol_locks([each.symbol for each in requests]) as locked:
            fresh = without_history(connection, sorted(locked))
            connection.commit()
            timing = run.pipeline.timing(AssetClass.US_EQUITY)
            plain = [each for each in requests if each.symbol in fresh]
            days = _days(run, bulk, plain[0], timing) if plain else None
            loaded = _load(run, connection, bulk, plain, days, spent, warnings) if days else None
    except BaseException as error:
        _give_back(run, spent, warnings)
        if not isinstance(error, PipelineError) or error.stops_run or isinstance(error, DatabaseUnavailableError):
            raise
        log.warning("%d symbols are loaded one by one: %s", len(requests), error)
        return FirstLoad((), {}, tuple(requests))
    if loaded is None or not loaded.outcomes or days is None:
        _give_back(run, spent if loaded is None else loaded.spent, warnings)
        return FirstLoad((), {}, tuple(requests))
    done = {each.symbol for each in loaded.requests}
    rest = tuple(each for each in requests if each.symbol not in done)
    if all(each.is_whole for each in days.values()):
        return FirstLoad(tuple(loaded.outcomes), {}, rest)
    return FirstLoad((), {each.series: each for each in loaded.outcomes}, (*loaded.requests, *rest))


def _give_back(run: Run, spent: Counters, warnings: Iterable[str]) -> None:
    """Let the run's next series report what no series has."""
    run.pending.add(spent)
    for warning in warnings:
        run.pending.add(NOTHING, warning)


def _days(run: Run, bulk: BulkLoad, request: SymbolRequest, timing: Timing) -> dict[Timeframe, _Days] | None:
    """Return the days of each fetched timeframe that files serve; None if the days without a file come before them."""
    pipeline, found = run.pipeline, {}
    for base in BASE_TIMEFRAMES:
        if not any(each.base is base for each in request.timeframes):
            continue
        within = reach(timing, pipeline.history_days, pipeline.plan.history)
        plan = plan_fetch(Series(request.symbol, base), within, {}, timing, last_ts=None)
        files = [bulk.published.get((Dataset.of(base), session.date)) for session in plan.days]
        count = next((at for at, file in enumerate(files) if file is None), len(files))
        if not count or any(file is not None for file in files[count:]):
            return None
        served = tuple(file for file in files[:count] if file is not None)
        found[base] = _Days(plan, plan.days[:count], served, count == len(files))
    return found


def _load(
    run: Run,
    connection: StoreConnection,
    bulk: BulkLoad,
    requests: Sequence[SymbolRequest],
    days: Mapping[Timeframe, _Days],
    spent: Counters,
    warnings: tuple[str, ...],
) -> _Loaded:
    """Read, compute and store what is plain of the requests, in one transaction."""
    import numpy as np

    began, started_at = perf_counter(), run.pipeline.clock()
    opened = {base: _opened(bulk, of_base) for base, of_base in days.items()}
    spent = sum((cost for _, cost in opened.values()), spent)
    plain = [
        each
        for each in requests
        if _is_plain(run, each.symbol, days) and all(_is_usable(each.symbol, files) for files, _ in opened.values())
    ]
    read: dict[Timeframe, _Bars] = {}
    while plain and not read:
        tickers = [each.symbol for each in plain]
        read = {base: _read(base, files, tickers) for base, (files, _) in opened.items()}
        if stray := {at for bars in read.values() for at in bars.stray}:
            plain, read = [each for at, each in enumerate(plain) if at not in stray], {}
    if not plain:
        return _Loaded((), {}, spent)
    loaded = _Loaded(tuple(plain), _splits(run, connection, tickers, read), spent, warnings)
    fetched = perf_counter()
    made = [each for base in read for each in _with_coarser(read[base], plain[0].timeframes)]
    now = run.pipeline.clock()
    adjusted = [_adjusted(each, loaded, now) for each in made]
    features = [_features(*each) for each in zip(made, adjusted, strict=True)]
    computed = perf_counter()
    for bars in made:  # in a transaction of its own: others wait for the lock that a new partition takes
        ensure_partitions(connection, bars.timeframe, int(bars.starts.min()), int(bars.starts.max()))
    connection.commit()
    numbers = iter(series_ids(connection, [Series(ticker, bars.timeframe) for bars in made for ticker in tickers]))
    for bars, values in zip(made, features, strict=True):
        series = np.repeat(np.array([next(numbers) for _ in tickers], "int32"), np.diff(bars.begins))
        append_many(connection, bars.timeframe, series, bars.starts, bars.values, values, now)
    copied = perf_counter()
    count = len(tickers) * len(made)
    each_took = Counters(
        fetch_seconds=(fetched - began) / count,
        compute_seconds=(computed - fetched) / count,
        store_seconds=(copied - computed) / count,
    )
    for base, of_base in days.items():
        of_it = [each for each in zip(made, adjusted, strict=True) if each[0].timeframe.base is base]
        _describe(run, loaded, of_base, of_it, each_took, started_at, now)
    write_coverage_of(connection, loaded.coverage, run.run_id)
    write_states(connection, loaded.states)
    append_logs(connection, loaded.logs)
    connection.commit()
    return loaded


def _is_plain(run: Run, symbol: str, days: Mapping[Timeframe, _Days]) -> bool:
    """Return whether the symbol has been the same security on all of its days, under this ticker, and still is."""
    identity = run.market.identities.get(symbol)
    if identity is None:
        return True
    last = identity.tenures[-1]
    first_days = {
        day
        for of_base in days.values()
        for day in (of_base.plan.sessions[0].date, *(each.session_date for each in of_base.plan.clamped[:1]))
    }
    return last.ticker == symbol and last.end is None and all(map(last.covers, first_days))


def _opened(bulk: BulkLoad, days: _Days) -> tuple[list[DayBars], Counters]:
    """Return the files' bars, and what it cost to get them now."""
    bulk.stage([file.version for file in days.files])
    opened = [bulk.staged.day(file.version) for file in days.files]
    return [bars for bars, _ in opened], sum((cost for _, cost in opened), NOTHING)


def _is_usable(ticker: str, files: Sequence[DayBars]) -> bool:
    """Return whether no file has anything wrong with a ticker, and the newest one has bars of it."""
    if any(ticker in file.refused or ticker in file.odd for file in files):
        return False
    at = bisect_left(files[-1].tickers, ticker)
    return at < len(files[-1].tickers) and files[-1].tickers[at] == ticker


def _read(base: Timeframe, files: Sequence[DayBars], tickers: Sequence[str]) -> _Bars:
    """Return what the files have of some tickers."""
    import numpy as np

    found = [found_many(file, tickers) for file in files]
    whose = np.concatenate([np.repeat(np.arange(len(tickers)), each.counts) for each in found])
    order = np.argsort(whose, kind="stable")
    values = np.concatenate([each.values for each in found], axis=1)[:, order]
    inside = np.concatenate([each.inside for each in found])
    days = np.stack([each.counts for each in found])
    return _Bars(
        base,
        np.concatenate([each.ts_us for each in found])[order],
        dict(zip(VALUES, values, strict=True)),
        np.append(0, np.cumsum(days.sum(axis=0))),
        days,
        frozenset(whose[~inside].tolist()),
    )


def _with_coarser(bars: _Bars, timeframes: Sequence[Timeframe]) -> Iterator[_Bars]:
    """Yield the bars of a fetched timeframe, and those of each requested one that is made of it.

    All days are over and settled, so none of the coarser ones can change.
    """
    import numpy as np

    from market_data_pipeline.domain.resample import aggregated, bucket_start_us

    yield bars
    whose = np.repeat(np.arange(len(bars.begins) - 1), np.diff(bars.begins)) << _MARK
    for timeframe in Timeframe:
        if timeframe is bars.timeframe or timeframe.base is not bars.timeframe or timeframe not in timeframes:
            continue
        buckets = bucket_start_us(bars.starts, timeframe, calendar_for(AssetClass.US_EQUITY))
        marked, values = aggregated(buckets + whose, bars.values)
        begins = np.searchsorted(marked, np.arange(len(bars.begins)) << _MARK)
        yield _Bars(timeframe, marked & ((1 << _MARK) - 1), values, begins)


def _splits(
    run: Run, connection: StoreConnection, tickers: Sequence[str], read: Mapping[Timeframe, _Bars]
) -> dict[str, SymbolSplits]:
    """Return the splits of those that have any, or of which there is something to say."""
    unreadable = run.market.unreadable_splits
    some = symbols_with_splits(connection, tickers) | (unreadable.keys() & set(tickers))
    connection.commit()
    now = run.pipeline.clock()
    return {
        ticker: symbol_splits(
            connection, ticker, unreadable, {base: _frame(bars, at) for base, bars in read.items()}, now
        )
        for at, ticker in enumerate(tickers)
        if ticker in some
    }


def _frame(bars: _Bars, at: int, values: Mapping[str, np.ndarray] | None = None) -> pd.DataFrame:
    part = bars.of(at)
    return bar_frames.bar_frame(bars.starts[part], {n: each[part] for n, each in (values or bars.values).items()})


def _adjusted(bars: _Bars, loaded: _Loaded, now: datetime) -> dict[str, np.ndarray]:
    """Return the values, adjusted for splits."""
    import numpy as np

    from market_data_pipeline.domain.adjustments import price_factor

    affected = [at for at, each in enumerate(loaded.requests) if each.symbol in loaded.splits]
    if not affected:
        return bars.values
    factor = np.ones(len(bars.starts))
    for at in affected:
        splits = loaded.splits[loaded.requests[at].symbol].splits
        factor[bars.of(at)] = price_factor(bars.starts[bars.of(at)], splits, exchange_date(now))
    changed = {name: bars.values[name] * factor for name in (*PRICES, "vwap")}
    return {**bars.values, **changed, "volume": bars.values["volume"] / factor}


def _features(bars: _Bars, adjusted: Mapping[str, np.ndarray]) -> dict[str, Any]:
    from market_data_pipeline.domain.features.compute import features_of_many

    return features_of_many(bars.starts, adjusted, bars.begins, bars.timeframe, AssetClass.US_EQUITY)


class _Shape(NamedTuple):
    """What stocks with bars on the same days have in common.

    Attributes:
        coverage: of each day, and whether the bars are counted into it.
        expected: which bars the fetched series should hold.
        settled_until: of each of its series.
    """

    coverage: tuple[Coverage, ...]
    expected: ExpectedBars
    settled_until: datetime | None


def _shape(run: Run, days: _Days, has_bars: Sequence[bool], base: Timeframe) -> _Shape:
    """Return what follows from the days on which a stock has bars; the newest file has some."""
    plan = days.plan
    status = {True: CoverageStatus.COMPLETE, False: CoverageStatus.PROVISIONAL}
    known = {day.session_date: day for day in plan.clamped}
    known |= {
        session.date: Coverage(session.date, status[has], int(has), plan.timing.now, file_id=file.id)
        for session, file, has in zip(days.sessions, days.files, has_bars, strict=True)
    }
    known |= {day.session_date: day for day in before_first_bar(plan.sessions, known)}
    announced = run.market.announced
    silence = silence_of(plan.sessions, known, closed_days(announced))
    expected = ExpectedBars(base, plan.timing, plan.sessions, known, silence, announced=announced)
    return _Shape(tuple(known.values()), expected, expected.settled_until())


def _describe(
    run: Run,
    loaded: _Loaded,
    days: _Days,
    made: Sequence[tuple[_Bars, Mapping[str, np.ndarray]]],
    took: Counters,
    started_at: datetime,
    now: datetime,
) -> None:
    """Add coverage, states, outcomes and audit log rows of a fetched series and those made of it to `loaded`.

    Args:
        run: whose audit log rows they are.
        loaded: what is to be stored.
        days: of the fetched timeframe.
        made: its bars first, each with their adjusted values.
        took: the seconds of each series.
        started_at: when reading began, aware UTC.
        now: when the bars are stored, aware UTC.
    """
    from market_data_pipeline.domain.adjustments import digest
    from market_data_pipeline.domain.features.definitions import FEATURE_VERSION

    [base, *_] = [bars for bars, _ in made]
    assert base.days is not None  # noqa: S101 - it was read
    shapes: dict[bytes, _Shape] = {}
    due: dict[tuple[object, ...], datetime | None] = {}
    last_due = {bars.timeframe: _last_due(days, bars.timeframe) for bars, _ in made}
    jumping = _jumping(*made[0]) if base.timeframe is Timeframe.D1 else frozenset()
    today = exchange_date(now)
    for at, request in enumerate(loaded.requests):
        rows = base.days[:, at]
        pattern = (rows > 0).tobytes()
        if (shape := shapes.get(pattern)) is None:
            shape = shapes[pattern] = _shape(run, days, (rows > 0).tolist(), base.timeframe)
        counted = dict(zip((session.date for session in days.sessions), rows.tolist(), strict=True))
        series = Series(request.symbol, base.timeframe)
        loaded.coverage += [
            (series, replace(day, rows=counted[day.session_date]) if day.rows else day) for day in shape.coverage
        ]
        splits, doubts = loaded.splits.get(request.symbol, _NO_SPLITS)
        in_force = digest(splits, today) if splits else ""
        base_last = from_us(int(base.starts[base.begins[at + 1] - 1]))
        for bars, adjusted in made:
            timeframe, part = bars.timeframe, bars.of(at)
            series, starts = Series(request.symbol, timeframe), bars.starts[part]
            made_of = None if bars is base else base_last
            first, last = from_us(int(starts[0])), from_us(int(starts[-1]))
            recent = starts[starts.searchsorted(int(starts[-1]) - QUIET_MEMORY // _US) :]
            quiet = quiet_slots(days.plan.timing.calendar, timeframe, recent)
            key = (pattern, timeframe, last, made_of, quiet)
            if key not in due:
                expected = replace(shape.expected, timeframe=timeframe, base_last_ts=made_of)
                due[key] = expected.next_due(last, quiet)
            count = len(starts)
            life = shape.expected.life_of(last)
            state = SeriesState(
                tier=str(request.tier),
                first_ts=first,
                last_ts=last,
                bar_count=count,
                feature_count=count,
                feature_version=FEATURE_VERSION,
                splits_digest=in_force,
                revision=1,
                base_revision=0 if bars is base else 1,
                quiet_slots=quiet,
                verified_at=days.plan.timing.now,
                next_due_at=due[key],
                features_computed_at=now,
                settled_until=shape.settled_until,
                life=life.life,
                life_since=life.since,
            )
            warned = (*loaded.warnings, *doubts)
            if at in jumping:
                warned += jump_doubts(series, _frame(bars, at, adjusted), int(starts[0]))
            counters = took + Counters(rows_fetched=count, rows_inserted=count, features_written=count) + loaded.spent
            loaded.spent, loaded.warnings = NOTHING, ()
            outcome = SeriesOutcome(
                series,
                request.tier,
                "ok",
                counters=counters,
                bar_count=count,
                feature_count=count,
                first_ts=first,
                last_ts=last,
                expected_last_ts=last_due[timeframe],
                verified_at=state.verified_at,
                next_due_at=state.next_due_at,
                warning=" ".join(warned) or None,
                life=life.life,
            )
            loaded.states.append((series, state))
            loaded.outcomes.append(outcome)
            before = SeriesState(tier=str(request.tier))
            changed = hull(series, (int(starts[0]), int(starts[-1])))
            finished_at = run.pipeline.clock()
            loaded.logs.append((series, log_row(outcome, before, run.run_id, started_at, finished_at, changed)))


def _last_due(days: _Days, timeframe: Timeframe) -> datetime:
    """Return the start of the last slot that is due now."""
    plan = days.plan
    return expected_last_ts(plan.timing.calendar, timeframe, now=plan.timing.now, availability=plan.timing.available_at)


def _jumping(bars: _Bars, adjusted: Mapping[str, np.ndarray]) -> frozenset[int]:
    """Return the places of those with a change of the close that is large enough to be looked at."""
    import numpy as np

    with np.errstate(all="ignore"):
        large = np.flatnonzero(np.abs(np.diff(np.log(adjusted["close"]))) > _LEAST_JUMP) + 1
    whose = np.searchsorted(bars.begins, large, side="right") - 1
    return frozenset(whose[bars.begins[whose] != large].tolist())
