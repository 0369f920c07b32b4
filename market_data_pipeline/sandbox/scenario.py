"""What happens to the market and at the vendor, as a TOML file declares it: the input of `staged`.

Each section is a list of tables, for example `[[halts]]`, with the fields of the class below that holds one of its
tables. Dates are New York's; instants carry their offset (`2026-11-12T11:00:00-05:00`); every end is excluded.
`docs/examples/nine_nights.toml` uses every section.

Add here: another thing that may happen. Keep out: what it does to the bars (staged).
"""

from __future__ import annotations

import datetime as dt
import tomllib
from typing import TYPE_CHECKING, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from market_data_pipeline.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listing(_Event):
    """A ticker that has no bar before the day `first`."""

    ticker: str
    first: dt.date


class Delisting(_Event):
    """A ticker that has no bar after the day `last`; from the next day on, the vendor says that it is delisted.

    From `purged` on it knows nothing of the ticker: its list lacks it, and a request for bars is a 404.
    """

    ticker: str
    last: dt.date
    purged: AwareDatetime | None = None


class Rename(_Event):
    """A security that had the ticker `was` until `day`, and is `ticker` from then on.

    All other events name it by its last ticker, whatever it was called on their day. Where `was` is another security's
    ticker from then on, or `ticker` was another one's before, the ticker is reused. The vendor's list of changes names
    `dated` instead of `day`, if given, and leaves it out if `unlisted`.
    """

    ticker: str
    was: str
    day: dt.date
    dated: dt.date | None = None
    unlisted: bool = False


class Closing(_Event):
    """A day on which no stock trades, although the calendar has a session: a day of mourning, a hurricane.

    The vendor says so from `announced` on, without it never, and no longer from `withdrawn` on: then they trade.
    """

    day: dt.date
    announced: AwareDatetime | None = None
    withdrawn: AwareDatetime | None = None


class _Stretch(_Event):
    start: AwareDatetime
    end: AwareDatetime

    @model_validator(mode="after")
    def _end_follows_start(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"the end {self.end} is not after the start {self.start}")
        return self


class Halt(_Stretch):
    """No trade of a ticker in [start, end)."""

    ticker: str


class Split(_Event):
    """`split_from` old shares become `split_to` new ones on `day`, and the ticker's prices move accordingly.

    It is listed from `listed` on, by default always. A `cancelled` split leaves the list at that instant, and no price
    moves.
    """

    ticker: str
    day: dt.date
    split_from: float = Field(default=1.0, gt=0)
    split_to: float = Field(gt=0)
    listed: AwareDatetime | None = None
    cancelled: AwareDatetime | None = None


class Dividend(_Event):
    """A cash dividend of `amount` for each share on the day `ex`; prices do not move.

    It is listed from `listed` on, by default always, until it is `withdrawn`. A correction is a dividend that is
    withdrawn and another one that is listed at that instant.
    """

    ticker: str
    ex: dt.date
    amount: float
    currency: str = "USD"
    declared: dt.date | None = None
    record: dt.date | None = None
    pay: dt.date | None = None
    frequency: int = 4
    type: Literal["recurring", "special", "supplemental", "irregular", "unknown"] = "recurring"
    listed: AwareDatetime | None = None
    withdrawn: AwareDatetime | None = None


class Withheld(_Stretch):
    """Bars that start in [start, end) and are missing from answers given in [since, until).

    A day bar starts at New York's midnight. Without `tickers`, those of all; with `every` = 2, every second bar of an
    answer is missing.
    """

    tickers: tuple[str, ...] = ()
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    every: int = Field(default=1, ge=1)


class Repeated(_Event):
    """A bar of `minutes` minutes that answers given in [since, until) list twice; with another `close`, if given."""

    ticker: str
    bar: AwareDatetime
    minutes: int = Field(default=5, ge=2)
    close: float | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


class Stray(_Event):
    """A bar that lies in no session: an overnight minute, or a day bar at the midnight of a Saturday."""

    ticker: str
    bar: AwareDatetime
    timespan: Literal["minute", "day"] = "minute"
    open: float
    high: float
    low: float
    close: float
    volume: float = 100.0


class Scenario(_Event):
    """A whole file."""

    listings: tuple[Listing, ...] = ()
    renames: tuple[Rename, ...] = ()
    delistings: tuple[Delisting, ...] = ()
    closings: tuple[Closing, ...] = ()
    halts: tuple[Halt, ...] = ()
    splits: tuple[Split, ...] = ()
    dividends: tuple[Dividend, ...] = ()
    withheld: tuple[Withheld, ...] = ()
    repeated: tuple[Repeated, ...] = ()
    strays: tuple[Stray, ...] = ()

    @property
    def closed_days(self) -> frozenset[dt.date]:
        """The days of `closings`."""
        return frozenset(closing.day for closing in self.closings if closing.withdrawn is None)


def read_scenario(file: Path) -> Scenario:
    """Return the scenario in a file.

    Raises:
        ConfigurationError: it cannot be read; the sentence says where and why.
    """
    try:
        return Scenario.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"The scenario {file} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The scenario {file} is not TOML: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigurationError(f"The scenario {file} has a mistake in {where}: {first['msg']}.") from None
