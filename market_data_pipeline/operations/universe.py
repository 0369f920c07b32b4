"""Which symbols are followed, as an operator changes it.

Add here: a change of the universe that a command or an endpoint offers. Keep out: reading the file and the tables
(store.universe). Dagster learns of a change by itself: its universe sensor keeps the partitions in step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from market_data_pipeline.domain.failures import UsageError
from market_data_pipeline.domain.series import Tier
from market_data_pipeline.operations.database import ready_database

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    import sqlalchemy as sa

    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.universe import TrackedSymbol

    Universe = Mapping[Tier, Sequence[str]]


class Change(NamedTuple):
    """What a change of the universe amounts to; each ascending."""

    added: tuple[str, ...]
    moved: tuple[str, ...]
    removed: tuple[str, ...]


def followed(settings: Settings) -> list[TrackedSymbol]:
    """Return the active symbols by tier and name; the universe file is loaded when there are none yet."""
    engine = ready_database(settings)
    return _followed(engine, settings)


def add(settings: Settings, symbols: Iterable[str], tier: Tier) -> Change:
    """Follow `symbols` in `tier`; those of another tier move."""
    engine = ready_database(settings)
    before = _tiers(_followed(engine, settings))
    return _apply(engine, settings, before, before | dict.fromkeys(symbols, tier))


def remove(settings: Settings, symbols: Collection[str]) -> Change:
    """Stop following `symbols`; their bars and their history stay.

    Raises:
        UsageError: one of them is not followed.
    """
    engine = ready_database(settings)
    before = _tiers(_followed(engine, settings))
    _refuse_unknown(symbols, before)
    return _apply(engine, settings, before, {name: tier for name, tier in before.items() if name not in symbols})


def import_file(settings: Settings, path: Path) -> Change:
    """Follow exactly the symbols of a universe file.

    Raises:
        ConfigurationError: the file cannot be read; the sentence names its line.
    """
    from market_data_pipeline.store.universe import load_universe_file

    after = {symbol: tier for tier, symbols in load_universe_file(path).items() for symbol in symbols}
    engine = ready_database(settings)
    return _apply(engine, settings, _tiers(_followed(engine, settings)), after)


def check_followed(settings: Settings, symbols: Collection[str]) -> None:
    """Do nothing when all of `symbols` are followed.

    Raises:
        UsageError: one is not; the sentence lists those that are.
    """
    if symbols:
        _refuse_unknown(symbols, _tiers(followed(settings)))


def _followed(engine: sa.Engine, settings: Settings) -> list[TrackedSymbol]:
    from market_data_pipeline.store.universe import load_universe_file, sync_universe, tracked

    if not tracked(engine):
        sync_universe(engine, load_universe_file(settings.universe_file), settings.clock())
    order = list(Tier)
    return sorted((each for each in tracked(engine) if each.active), key=lambda s: (order.index(s.tier), s.symbol))


def _tiers(symbols: Iterable[TrackedSymbol]) -> dict[str, Tier]:
    return {each.symbol: each.tier for each in symbols}


def _apply(engine: sa.Engine, settings: Settings, before: dict[str, Tier], after: dict[str, Tier]) -> Change:
    from market_data_pipeline.store.universe import sync_universe

    universe = {tier: tuple(name for name, its in after.items() if its is tier) for tier in Tier}
    sync_universe(engine, universe, settings.clock())
    return Change(
        added=tuple(sorted(after.keys() - before.keys())),
        moved=tuple(sorted(name for name in after.keys() & before.keys() if after[name] is not before[name])),
        removed=tuple(sorted(before.keys() - after.keys())),
    )


def _refuse_unknown(symbols: Iterable[str], known: Mapping[str, Tier]) -> None:
    if unknown := [symbol for symbol in symbols if symbol not in known]:
        raise UsageError(
            f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not followed; followed are "
            f"{', '.join(sorted(known)) or 'no symbols'}. Add one with: market-data universe add {unknown[0]}"
        )
