"""How the pages are rendered: the template environment, and the filters that the templates share."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from market_data_pipeline.domain.life import Life, sentence
from market_data_pipeline.domain.objectives import FRESHNESS, Freshness
from market_data_pipeline.reports.attainment import percent
from market_data_pipeline.serving.freshness import span

if TYPE_CHECKING:
    import jinja2

    from market_data_pipeline.reports.models import SeriesFreshness

# A shape and a word beside each colour: the pages read the same in black and white.
MARKS: Final = {"FRESH": "✓", "AGING": "◔", "STALE": "!", "MISSING": "?", "NOT_EXPECTED": "∅"}
# Seconds between two updates of a page. The fastest schedule refreshes every 15 minutes, so half a minute is soon
# enough. A reader of an empty page is waiting for its first content.
UPDATE_EVERY: Final = 30
UPDATE_EMPTY_EVERY: Final = 5
_LONGEST_TEXT: Final = 500
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


def shown_status(one: SeriesFreshness) -> str:
    """Return the status that a page shows of a series: one of `MARKS`."""
    return one.status if Life(one.life).expects_bars else "NOT_EXPECTED"


def life_note(one: SeriesFreshness) -> str:
    """Return what readers must know of the life of a series; empty for one that trades."""
    life = Life(one.life)
    if life is Life.TRADING:
        return ""
    kept = " No bars are missing." if not life.expects_bars else ""
    return f"{one.symbol} {sentence(life, one.life_since)}.{kept}"


def render(template: str, **members: Any) -> str:
    """Return a page: the template of that name with `members`."""
    return _environment().get_template(template).render(**members)


def clock_time(value: datetime | None) -> str:
    """Return an instant to the second, in UTC."""
    return "" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def minute(value: datetime | None) -> str:
    """Return an instant to the minute, in UTC."""
    return "" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")


def iso(value: datetime) -> str:
    """Return an instant as ISO 8601, for a `datetime` attribute."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def short_span(seconds: float) -> str:
    """Return a duration in its largest unit, rounded down, for a narrow cell: `45m`, `9h`, `3d`."""
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)}m"
    return f"{int(seconds // _HOUR)}h" if seconds < 2 * _DAY else f"{int(seconds // _DAY)}d"


def ago(then: datetime, now: datetime) -> str:
    """Return how long before `now` an instant is, `5 min ago`, or how long after it, `in 5 min`."""
    seconds = (now - then).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"


def late(seconds: float | None) -> str:
    """Return how far behind a series is."""
    if seconds is None:
        return "never computed"
    return f"{span(seconds)} late" if seconds >= _MINUTE else "on time"


def number(value: float) -> str:
    """Return a count with thousands separators."""
    return f"{value:,.0f}"


def rate(share: float) -> str:
    """Return a share that should be small, rounded up so that only zero reads as 0 %."""
    return "0 %" if share <= 0 else f"{math.ceil(share * 1_000) / 10:.1f} %"


def clip(text: str) -> str:
    """Return a message as a page shows it: one that a vendor made long must not make the page long."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT].rstrip()} …"


def series_url(symbol: str, timeframe: str) -> str:
    """Return the path of a series' page below the pages' root."""
    return f"series/{quote(symbol, safe='')}/{timeframe}"


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("market_data_pipeline.serving", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        clip=clip,
        late=late,
        time=clock_time,
        minute=minute,
        iso=iso,
        span=span,
        ago=ago,
        percent=percent,
        number=number,
        rate=rate,
    )
    environment.globals.update(
        marks=MARKS,
        offer="",
        shown_status=shown_status,
        life_note=life_note,
        conditions={state.name: rule.condition for state, rule in FRESHNESS.items()},
        series_url=series_url,
        statuses=[state.name for state in Freshness],
    )
    return environment
