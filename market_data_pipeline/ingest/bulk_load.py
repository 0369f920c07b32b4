"""The second way in: bars from the vendor's flat files, through the same plan, checks and commits as those from REST.

A day whose file is published and has settled is read from it; every other day (today, a day without a file, another
market) is requested. What a file says of a day is an answer like any other: it becomes coverage, is doubted, and is
compared with what is stored, so that a difference between the two ways is a correction. A file has no vwap: a stored
one stays as long as the bar's other values do.

Add here: what is particular to bars from files. Keep out: the files' format (polygon.day_file).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain import bars as bar_frames
from market_data_pipeline.domain.bars import VALUES, array, ts_us
from market_data_pipeline.domain.counters import NOTHING
from market_data_pipeline.domain.errors import PipelineError
from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.intervals import Interval
from market_data_pipeline.domain.series import BASE_TIMEFRAMES, AssetClass, Tier, Timeframe, asset_class_of
from market_data_pipeline.polygon.client import Fetched
from market_data_pipeline.polygon.flat_files import Dataset
from market_data_pipeline.polygon.staged_days import AT_ONCE, found
from market_data_pipeline.store.flat_files import file_ids

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import date

    import pandas as pd

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.ingest.fetch_plan import Timing
    from market_data_pipeline.polygon.client import BarSource
    from market_data_pipeline.polygon.flat_files import FileVersion
    from market_data_pipeline.polygon.staged_days import StagedDays
    from market_data_pipeline.store.copy import StoreConnection
    from market_data_pipeline.store.coverage import Coverage


class Published(NamedTuple):
    """A file that serves its day, and the id under which its version is stored."""

    version: FileVersion
    id: int


@dataclass(frozen=True, slots=True)
class BulkLoad:
    """The files of one run, and the vendor's REST API for what they do not have.

    Attributes:
        staged: the files' bars on this machine.
        rest: the vendor.
        timing: of US equities.
        published: the files that serve their day, by dataset and day.
        rest_tiers: tiers whose bars need a vwap, so that they are requested.
    """

    staged: StagedDays
    rest: BarSource
    timing: Timing
    published: Mapping[tuple[Dataset, date], Published]
    rest_tiers: frozenset[Tier] = frozenset()

    def source_for(self, symbol: str, tier: Tier) -> BarSource:
        """Return where a symbol's bars come from."""
        from_files = asset_class_of(symbol) is AssetClass.US_EQUITY and tier not in self.rest_tiers
        return self if from_files else self.rest

    def replaced_days(self, timeframe: Timeframe, coverage: Mapping[date, Coverage]) -> frozenset[date]:
        """Return the days that were read from a version of their file that the vendor has replaced since."""
        dataset = Dataset.of(timeframe)
        return frozenset(
            day
            for day, known in coverage.items()
            if known.file_id is not None
            and (file := self.published.get((dataset, day))) is not None
            and file.id != known.file_id
        )

    def bars(
        self,
        symbol: str,
        timeframe: Timeframe,
        interval: Interval,
        *,
        priority: int,
        most_attempts: int | None = None,
    ) -> Fetched:
        """Return the raw bars that start in `interval` and in a session, as `PolygonClient.bars` does.

        A day whose file cannot be had or used is refused, like one with a bar that cannot be believed.

        Raises:
            PipelineError: as `PolygonClient.bars` for the days without a file; the files' key is refused.
        """
        answers: list[Fetched] = []
        for sessions, by_file in _runs(self._sessions(timeframe, interval), self.published, timeframe):
            whole = _span(timeframe, sessions)
            part = Interval(max(whole.start, interval.start), min(whole.end, interval.end))
            if by_file:
                answers.append(self._from_files(symbol, timeframe, part, sessions))
            else:
                answers.append(self.rest.bars(symbol, timeframe, part, priority=priority, most_attempts=most_attempts))
        return _joined(answers)

    def _sessions(self, timeframe: Timeframe, interval: Interval) -> list[Session]:
        calendar = self.timing.calendar
        first, last = (calendar.session_date(instant) for instant in interval)
        return [
            session
            for session in calendar.sessions(first, last + timedelta(days=1))
            if (span := _span(timeframe, [session])).start < interval.end and span.end > interval.start
        ]

    def _from_files(
        self, symbol: str, timeframe: Timeframe, interval: Interval, sessions: Sequence[Session]
    ) -> Fetched:
        files = {session.date: self.published[Dataset.of(timeframe), session.date] for session in sessions}
        self.stage([file.version for file in files.values()])
        frames, outside, refused, warnings, usage = [], [], {}, [], NOTHING
        for day, file in files.items():
            try:
                bars, cost = self.staged.day(file.version)
            except PipelineError as error:
                if error.stops_run:
                    raise
                refused[day] = str(error)
                continue
            usage += cost
            has = found(bars, symbol, interval)
            if has.refused is not None:
                refused[day] = has.refused
                continue
            warnings += [has.odd] if has.odd is not None else []
            frames.append(has.bars)
            outside += [has.outside] if has.outside is not None else []
        return Fetched(
            _concatenated(frames),
            usage,
            refused,
            _concatenated(outside) if outside else None,
            tuple(warnings),
            {day: file.id for day, file in files.items() if day not in refused},
        )

    def stage(self, versions: Sequence[FileVersion]) -> None:
        """Download and read several files side by side; what fails is reported when the day is read."""
        missing = [version for version in versions if not self.staged.is_staged(version)]
        if len(missing) < AT_ONCE:
            return

        def stage(version: FileVersion) -> None:
            try:
                self.staged.day(version)
            except PipelineError:
                return

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="flat-files") as pool:
            list(pool.map(stage, missing))


def open_bulk_load(
    staged: StagedDays,
    rest: BarSource,
    connection: StoreConnection,
    timing: Timing,
    history_days: int,
    *,
    rest_tiers: Collection[Tier] = (),
) -> BulkLoad:
    """Return the files that serve the last `history_days` calendar days at the instant of `timing`.

    A file of a day that has not settled by then is left out, so that a replay of an earlier instant sees no later bars.

    Args:
        staged: the files' bars on this machine.
        rest: the vendor.
        connection: one without an open transaction; the versions are stored.
        timing: of US equities.
        history_days: calendar days of history that a series should hold.
        rest_tiers: tiers whose bars need a vwap.

    Raises:
        PipelineError: the files cannot be listed.
    """
    today = timing.calendar.session_date(timing.now)
    first = today - timedelta(days=history_days)
    versions = [
        version
        for timeframe in BASE_TIMEFRAMES
        for day, version in staged.listing(Dataset.of(timeframe), first, today).items()
        if (session := timing.calendar.session_on(day)) is not None and settled_at(session) <= timing.now
    ]
    ids = file_ids(connection, versions, timing.now)
    connection.commit()
    published = {
        (version.dataset, version.day): Published(version, ids[str(version.dataset), version.day])
        for version in versions
    }
    return BulkLoad(staged, rest, timing, published, frozenset(rest_tiers))


def with_known_vwap(bars: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """Return bars from files with the vwap of the stored bars whose other values are the same."""
    import numpy as np

    new_ts, old_ts = ts_us(bars), ts_us(stored)
    if not len(new_ts) or not len(old_ts):
        return bars
    at = np.minimum(np.searchsorted(old_ts, new_ts), len(old_ts) - 1)
    same = (old_ts[at] == new_ts) & np.isnan(array(bars, "vwap"))
    for name in VALUES:
        if name not in ("vwap", "trades"):
            same &= array(bars, name) == array(stored, name)[at]
    if not same.any():
        return bars
    values = {name: array(bars, name) for name in VALUES}
    values["vwap"] = np.where(same, array(stored, "vwap")[at], values["vwap"])
    unknown = same & np.isnan(values["trades"])
    values["trades"] = np.where(unknown, array(stored, "trades")[at], values["trades"])
    return bar_frames.bar_frame(new_ts, values)


def _span(timeframe: Timeframe, sessions: Sequence[Session]) -> Interval:
    if timeframe is Timeframe.D1:
        return Interval(sessions[0].day_start, sessions[-1].day_end)
    return Interval(sessions[0].start, sessions[-1].end)


def _runs(
    sessions: Sequence[Session], published: Mapping[tuple[Dataset, date], Published], timeframe: Timeframe
) -> Iterator[tuple[list[Session], bool]]:
    """Yield the sessions in runs of which all have a file, or none has."""
    dataset, by_file = Dataset.of(timeframe), False
    run: list[Session] = []
    for session in sessions:
        has_file = (dataset, session.date) in published
        if run and has_file is not by_file:
            yield run, by_file
            run = []
        by_file = has_file
        run.append(session)
    if run:
        yield run, by_file


def _joined(answers: Sequence[Fetched]) -> Fetched:
    if len(answers) == 1:
        return answers[0]
    outside = [each.outside for each in answers if each.outside is not None]
    return Fetched(
        _concatenated([each.bars for each in answers]),
        sum((each.usage for each in answers), NOTHING),
        {day: reason for each in answers for day, reason in each.refused.items()},
        _concatenated(outside) if outside else None,
        tuple(warning for each in answers for warning in each.warnings),
        {day: file for each in answers for day, file in each.files.items()},
    )


def _concatenated(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import numpy as np

    some = [frame for frame in frames if len(frame)]
    if not some:
        return bar_frames.empty()
    if len(some) == 1:
        return some[0]
    return bar_frames.bar_frame(
        np.concatenate([ts_us(frame) for frame in some]),
        {name: np.concatenate([array(frame, name) for frame in some]) for name in VALUES},
    )
