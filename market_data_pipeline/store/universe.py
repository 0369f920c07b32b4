"""The universe: the file that lists it, and the tables `symbols` and `series_state` that are kept in step with it.

A symbol is never deleted: one that leaves becomes inactive and keeps its bars, state and history; one that moves to
another tier, or returns, continues where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from market_data_pipeline.domain.errors import ConfigurationError, UsageError
from market_data_pipeline.domain.series import AssetClass, Tier, Timeframe, asset_class_of, parse_symbol

if TYPE_CHECKING:
    import sqlalchemy as sa
    from yaml import Node

    from market_data_pipeline.settings import Settings
    from market_data_pipeline.store.copy import StoreConnection

Universe = Mapping[Tier, tuple[str, ...]]
_MOST_NAMED: Final = 40  # symbols in a message: the packaged universe and some more
_EXAMPLE: Final = "for example `tiers: {critical: [AAPL, MSFT]}`"


class TrackedSymbol(NamedTuple):
    """A symbol that is followed, or was followed if `active` is False."""

    symbol: str
    tier: Tier
    asset_class: AssetClass
    active: bool


class UniverseChange(NamedTuple):
    """The result of a change to the universe: symbols in alphabetical order."""

    added: tuple[str, ...]
    moved: tuple[str, ...]  # to another tier
    returned: tuple[str, ...]  # were inactive
    removed: tuple[str, ...]  # are inactive now

    def __bool__(self) -> bool:
        """Return whether anything changed."""
        return any(self[:])


def load_universe_file(path: Path) -> dict[Tier, tuple[str, ...]]:
    """Return the tiers of a universe file, in its order.

    Raises:
        ConfigurationError: it cannot be read or is wrong; the message names the file and the line.
    """
    import yaml

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The universe {path} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(f"{path} line {line}: this is not YAML: {error.problem}; {_EXAMPLE}.") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: this is not YAML: {error}.") from None
    if root is None:
        raise ConfigurationError(f"{path} is empty; list at least one symbol, {_EXAMPLE}.")

    def wrong(node: Node, what: str) -> ConfigurationError:
        return ConfigurationError(f"{path} line {node.start_mark.line + 1}: {what}.")

    top = _entries(root, "the file", ("tiers",), wrong)
    if "tiers" not in top:
        raise wrong(root, f"there is no `tiers`; write {_EXAMPLE}")
    universe: dict[Tier, tuple[str, ...]] = {}
    lines: dict[str, int] = {}
    for name, node in _entries(top["tiers"], "`tiers`", tuple(Tier), wrong).items():
        universe[Tier(name)] = tuple(_symbols(node, name, lines, wrong))
    if not lines:
        raise wrong(root, f"no symbol is listed; list at least one, {_EXAMPLE}")
    return universe


def _entries(
    node: Node, what: str, known: tuple[str, ...], wrong: Callable[[Node, str], ConfigurationError]
) -> dict[str, Node]:
    """Return the entries of a mapping whose keys must all be `known` and occur once."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise wrong(node, f"{what} must be a mapping, {_EXAMPLE}")
    found: dict[str, Node] = {}
    pairs: list[tuple[Node, Node]] = node.value
    for key, value in pairs:
        if (name := str(key.value)) not in known:
            raise wrong(key, f"{name!r} is unknown; known are {', '.join(known)}")
        if name in found:
            raise wrong(key, f"{name} occurs a second time")
        found[name] = value
    return found


def _symbols(
    node: Node, tier: str, lines: dict[str, int], wrong: Callable[[Node, str], ConfigurationError]
) -> Iterable[str]:
    """Yield the tickers of a tier as written: YAML would read the ticker ON as true and 1E5 as a number."""
    import yaml

    if isinstance(node, yaml.ScalarNode) and node.value in {"", "~", "null"}:
        return
    if not isinstance(node, yaml.SequenceNode):
        raise wrong(node, f"{tier} must be a list, {_EXAMPLE}")
    for item in node.value:
        if not isinstance(item, yaml.ScalarNode):
            raise wrong(item, f"{tier} must be a list of tickers, {_EXAMPLE}")
        try:
            symbol = parse_symbol(item.value)
        except UsageError as error:
            raise wrong(item, str(error).rstrip(".")) from None
        if symbol in lines:
            raise wrong(item, f"{symbol} is already listed on line {lines[symbol]}; keep one of the two")
        lines[symbol] = item.start_mark.line + 1
        yield symbol


def tracked(engine: sa.Engine) -> list[TrackedSymbol]:
    """Return all symbols, inactive ones included: critical ones first, then alphabetically."""
    tiers, classes = {tier.value: tier for tier in Tier}, {each.value: each for each in AssetClass}
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(_TRACKED, {"tiers": list(tiers)}).all()
    return [TrackedSymbol(symbol, tiers[tier], classes[of_class], active) for symbol, tier, of_class, active in rows]


_TRACKED: Final = """
    select symbol, tier, asset_class, active from market_data.symbols
    order by array_position(%(tiers)s::text[], tier), symbol collate "C"
"""


def select_followed(engine: sa.Engine, symbols: Collection[str] = ()) -> tuple[str, ...]:
    """Return the symbols that are followed, in the order of `tracked`; only those of `symbols` when any are given.

    Raises:
        UsageError: one of `symbols` is not followed; the message lists the followed ones, at most forty.
    """
    followed = [entry.symbol for entry in tracked(engine) if entry.active]
    known, chosen = set(followed), set(symbols)
    if unknown := [symbol for symbol in symbols if symbol not in known]:
        others = f" and {len(known) - _MOST_NAMED} others" if len(known) > _MOST_NAMED else ""
        named = f"{', '.join(sorted(known)[:_MOST_NAMED]) or 'no symbols'}{others}"
        raise UsageError(
            f"Not followed: {', '.join(unknown)}. Followed are {named}; "
            f"add one with: market-data universe add {unknown[0]}"
        )
    return tuple(symbol for symbol in followed if not chosen or symbol in chosen)


def known_symbols(connection: StoreConnection, symbols: Collection[str]) -> set[str]:
    """Return the symbols, inactive ones included, that equal one of `symbols` when case is ignored.

    Raises:
        ConfigurationError: the database was never migrated.
    """
    rows = connection.rows(
        "select symbol from market_data.symbols where upper(symbol) = any(%(upper)s::text[])",
        {"upper": [symbol.upper() for symbol in symbols]},
    )
    return {row["symbol"] for row in rows}


class Member(NamedTuple):
    """A symbol that was followed at an instant or before, and when the vendor says that it was delisted, if it did."""

    symbol: str
    asset_class: str
    tier: str
    followed: bool
    delisted_at: datetime | None


def members(connection: StoreConnection, instant: datetime) -> list[Member]:
    """Return the symbols that were followed at an instant or before it, with their last tier by then."""
    rows = connection.rows(
        """
        select distinct on (m.symbol)
            m.symbol, s.asset_class, m.tier,
            m.followed_until is null or m.followed_until > %(instant)s as followed, l.delisted_at
        from market_data.universe_membership as m
        inner join market_data.symbols as s on s.symbol = m.symbol
        left join market_data.listings as l on l.symbol = m.symbol and l.known and not l.active
        where m.followed_from <= %(instant)s
        order by m.symbol, m.followed_from desc
        """,
        {"instant": instant},
    )
    return [Member(**row) for row in rows]


def ensure_universe(settings: Settings, engine: sa.Engine) -> UniverseChange | None:
    """Load the configured universe file if the database has no symbol yet; return None if it has.

    Raises:
        ConfigurationError: the file is wrong.
    """
    with engine.connect() as connection:
        if connection.exec_driver_sql("select exists (select from market_data.symbols)").scalar_one():
            return None
    return sync_universe(engine, load_universe_file(settings.universe_file), settings.clock())


def sync_universe(engine: sa.Engine, universe: Universe, now: datetime, *, dry_run: bool = False) -> UniverseChange:
    """Make the database follow exactly `universe`, in one transaction; `now` becomes the `added_at` of new symbols.

    With `dry_run`, nothing is changed and the result is what would be.
    """
    return _apply(engine, universe, now, others_leave=True, dry_run=dry_run)


def add_symbols(
    engine: sa.Engine,
    tier: Tier,
    symbols: Iterable[str],
    now: datetime,
    *,
    securities: Mapping[str, str] = MappingProxyType({}),
) -> UniverseChange:
    """Follow `symbols` in `tier`; those in another tier move to it.

    Args:
        engine: of the database.
        tier: how fresh they are kept.
        symbols: as the user wrote them.
        now: aware UTC.
        securities: by symbol, the delisted security that it stands for from now on.

    Raises:
        UsageError: one of them is not a ticker.
    """
    universe = {tier: tuple(parse_symbol(symbol) for symbol in symbols)}
    return _apply(engine, universe, now, others_leave=False, securities=securities)


def remove_symbols(engine: sa.Engine, symbols: Iterable[str]) -> UniverseChange:
    """Stop following `symbols`; their data stays.

    Raises:
        UsageError: one of them is not followed, and then none is removed.
    """
    leaving = set(symbols)
    with engine.begin() as connection:
        connection.exec_driver_sql(_LOCK)
        active = set(connection.exec_driver_sql("select symbol from market_data.symbols where active").scalars())
        if unknown := sorted(leaving - active):
            raise UsageError(f"Not followed: {', '.join(unknown)}; `market-data universe list` shows what is.")
        connection.exec_driver_sql(_LEAVE, {"symbols": sorted(leaving)})
    return UniverseChange((), (), (), tuple(sorted(leaving)))


# Concurrent changes of the universe run one after the other; readers and refreshes do not wait.
_LOCK: Final = "lock table market_data.symbols in share row exclusive mode"

_LEAVE: Final = "update market_data.symbols set active = false where symbol = any(%(symbols)s::text[])"

_FOLLOW: Final = """
    insert into market_data.symbols (symbol, tier, asset_class, active, added_at, followed_since, security)
    select l.symbol, l.tier, l.asset_class, true, %(now)s, %(now)s, l.security
    from unnest(%(symbols)s::text[], %(tiers)s::text[], %(classes)s::text[], %(securities)s::text[])
        as l (symbol, tier, asset_class, security)
    on conflict (symbol) do update set
        tier = excluded.tier,
        active = true,
        security = coalesce(excluded.security, symbols.security),
        followed_since = case when symbols.active then symbols.followed_since else excluded.followed_since end
    where
        (symbols.tier, symbols.active, symbols.security)
        is distinct from (excluded.tier, true, coalesce(excluded.security, symbols.security))
"""

_FOLLOW_SERIES: Final = """
    insert into market_data.series_state (symbol, timeframe, tier)
    select l.symbol, t.timeframe, l.tier
    from unnest(%(symbols)s::text[], %(tiers)s::text[]) as l (symbol, tier)
    cross join unnest(%(timeframes)s::text[]) as t (timeframe)
    on conflict (symbol, timeframe) do update set tier = excluded.tier
    where series_state.tier <> excluded.tier
"""


def _apply(
    engine: sa.Engine,
    universe: Universe,
    now: datetime,
    *,
    others_leave: bool,
    dry_run: bool = False,
    securities: Mapping[str, str] = MappingProxyType({}),
) -> UniverseChange:
    tiers = {symbol: tier for tier, symbols in universe.items() for symbol in symbols}
    listed = sorted(tiers)
    with engine.begin() as connection:
        connection.exec_driver_sql(_LOCK)
        rows = connection.exec_driver_sql("select symbol, tier, active from market_data.symbols").all()
        before = {row.symbol: row for row in rows}
        leaving = sorted(row.symbol for row in rows if row.active and row.symbol not in tiers) if others_leave else []
        values = {
            "symbols": listed,
            "tiers": [tiers[symbol].value for symbol in listed],
            "classes": [asset_class_of(symbol).value for symbol in listed],
            "securities": [securities.get(symbol) for symbol in listed],
            "timeframes": [timeframe.value for timeframe in Timeframe],
            "now": now,
        }
        if not dry_run:
            connection.exec_driver_sql(_FOLLOW, values)
            connection.exec_driver_sql(_FOLLOW_SERIES, values)
            connection.exec_driver_sql(_LEAVE, {"symbols": leaving})
    known = [symbol for symbol in listed if symbol in before]
    return UniverseChange(
        added=tuple(symbol for symbol in listed if symbol not in before),
        moved=tuple(symbol for symbol in known if before[symbol].tier != tiers[symbol]),
        returned=tuple(symbol for symbol in known if not before[symbol].active),
        removed=tuple(leaving),
    )
