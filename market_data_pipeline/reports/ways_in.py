"""Which way in costs less for what a backfill is missing: requests to the REST API, or the vendor's flat files.

A symbol's history is a few REST calls, however long; a flat file is a day of every symbol. So REST is cheaper for few
symbols or few days, files for many symbols, and the limit of calls shifts the border. Nothing is sent: sizes are those
of the files that were read before, or typical ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.freshness import settled_at
from market_data_pipeline.domain.series import Timeframe
from market_data_pipeline.polygon.flat_files import Dataset
from market_data_pipeline.reports.models import WayIn, WaysIn
from market_data_pipeline.reports.objectives import span

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from market_data_pipeline.domain.calendar import Session
    from market_data_pipeline.settings import Settings

# The vendor's 1,256 files of minutes of five years are 19 GB; a file of day bars has a row for each ticker.
_TYPICAL_BYTES: Final = {Dataset.MINUTES: 15_000_000, Dataset.DAYS: 300_000}
_PAGE_BYTES: Final = 1_200_000  # a full page of 5m bars, compressed
_BYTES_PER_SECOND: Final = 12_500_000  # a line of 100 Mbit/s
_PAGE_SECONDS: Final = 0.5  # from the request to the end of a full page, beside the limit of calls
_READ_SECONDS: Final = {Dataset.MINUTES: 2.5, Dataset.DAYS: 0.1}  # of a processor, for 1.7 million minutes


class Missing(NamedTuple):
    """The missing days of one fetched series, and what they cost by REST."""

    timeframe: Timeframe
    sessions: tuple[Session, ...]
    calls: int
    in_files: bool  # the files hold its market


def ways_in(
    settings: Settings,
    sizes: Mapping[str, int],
    missing: Iterable[Missing],
    *,
    calls: int,
    shared: int,
    seconds: float,
    now: datetime,
) -> WaysIn:
    """Return what each way in costs, and which costs less.

    Args:
        settings: whether they name flat files, and the plan.
        sizes: mean bytes of the files that are known, by dataset; typical ones for a dataset without.
        missing: what each series is missing.
        calls: of all of it by REST.
        shared: those among them that files do not save: splits, dividends, securities.
        seconds: over which the plan's limit spreads `calls`.
        now: aware UTC.
    """

    def requesting(some: int) -> float:
        return max(seconds * some / max(calls, 1), some * _PAGE_SECONDS / settings.max_concurrent_symbols)

    rest = WayIn(
        requests=calls,
        files=0,
        bytes=calls * _PAGE_BYTES,
        seconds=requesting(calls),
    )
    if (without := _no_files(settings)) is not None:
        return WaysIn(cheaper="rest", why=f"By REST: {without}.", rest=rest, files=None)
    days: dict[Dataset, set[Session]] = {dataset: set() for dataset in Dataset}
    left = shared
    for each in missing:
        settled = {session for session in each.sessions if settled_at(session) <= now} if each.in_files else set()
        days[Dataset.of(each.timeframe)] |= settled
        # What has no file yet is a day or two: one call for each series that lacks them.
        left += each.calls if not each.in_files else min(each.calls, int(len(settled) < len(each.sessions)))
    size = sum(len(some) * sizes.get(dataset, _TYPICAL_BYTES[dataset]) for dataset, some in days.items())
    reading = sum(len(some) * _READ_SECONDS[dataset] for dataset, some in days.items())
    count = sum(map(len, days.values()))
    lists = sum(len({day.date.replace(day=1) for day in some}) for some in days.values())
    files = WayIn(
        requests=count + lists + left,
        files=count,
        bytes=size + left * _PAGE_BYTES,
        seconds=size / _BYTES_PER_SECOND + reading + requesting(left),
    )
    if not count or rest.seconds <= files.seconds or rest.requests <= files.requests:
        why = f"By REST: {_cost(rest)}" + (f"; the flat files would be {_cost(files)}." if count else ".")
        return WaysIn(cheaper="rest", why=why, rest=rest, files=files)
    why = f"By flat files: {_cost(files)}; REST would be {_cost(rest)}."
    return WaysIn(cheaper="files", why=why, rest=rest, files=files)


def _no_files(settings: Settings) -> str | None:
    """Return why flat files cannot be read, None if the settings name some."""
    if settings.kind_of_bars != "vendor":
        return None
    if settings.flat_files_url is None and settings.flat_files_key_id is None:
        return "no access key for the vendor's flat files is set (MARKET_DATA_FLAT_FILES_KEY_ID)"
    return "the basic plan has no flat files" if settings.plan == "basic" else None


def _cost(way: WayIn) -> str:
    noun = "file" if way.files == 1 else "files"
    files = (
        f"{way.files} {noun} and {way.requests - way.files} other requests" if way.files else f"{way.requests} calls"
    )
    return f"{files}, up to {way.bytes / 1e6:,.0f} MB, about {span(max(way.seconds, 1))}"
