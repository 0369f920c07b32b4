"""Let a test damage stored bars and features by plain SQL, as if the tables of before were still there.

The views `bars` and `features` refuse every write. Here they pass it on to `records`: to delete a bar removes the
record, to delete features leaves the bar without any.
"""

from __future__ import annotations

from typing import Final

import psycopg

from market_data_pipeline.store.feature_values import CODED, FLOATS, shift_of

_BAR: Final = ("ts", "open", "high", "low", "close", "volume", "vwap", "trades", "ingested_at", "recorded_at")


def _coded() -> str:
    terms = []
    for feature in CODED:
        if feature.labels:
            whens = " ".join(f"when '{label}' then {place}" for place, label in enumerate(feature.labels, 1))
            value = f"case new.{feature.name} {whens} else 0 end"
        else:
            value = f"case when new.{feature.name} then 2 when not new.{feature.name} then 1 else 0 end"
        terms.append(f"(({value}) << {shift_of(feature)})")
    return " + ".join(terms)


_FEATURES: Final = f"""
    {", ".join(f"{name} = new.{name}" for name in FLOATS)}, codes = {_coded()}, extra = new.extra,
    features_after = ceil(extract(epoch from new.features_computed_at - ingested_at))
"""
_STATEMENTS: Final = f"""
create or replace function market_data.write_through() returns trigger
language plpgsql as $$
declare
    number integer;
    month text;
begin
    if tg_op <> 'INSERT' then
        number := (select id from market_data.series where symbol = old.symbol and timeframe = old.timeframe);
    else
        number := market_data.series_id(new.symbol, new.timeframe);
    end if;
    if tg_table_name = 'bars' then
        if tg_op = 'DELETE' then
            delete from market_data.records where series = number and ts = old.ts;
            return old;
        elsif tg_op = 'UPDATE' then
            if new.ts <> old.ts then
                perform market_data.make_partitions(new.timeframe, new.ts, new.ts);
            end if;
            update market_data.records set {", ".join(f"{name} = new.{name}" for name in _BAR)}
            where series = number and ts = old.ts;
            return new;
        end if;
        month := new.timeframe || to_char(new.ts at time zone 'UTC', ' YYYY-MM');
        if current_setting('tests.partitioned', true) is distinct from month then
            perform market_data.make_partitions(new.timeframe, new.ts, new.ts);
            perform set_config('tests.partitioned', month, false); -- undone with the transaction, as the partition is
        end if;
        if new.recorded_at is null then -- which a writer may not give
            insert into market_data.records (series, {", ".join(_BAR[:-1])})
            values (number, {", ".join(f"new.{name}" for name in _BAR[:-1])});
        else
            insert into market_data.records (series, {", ".join(_BAR)})
            values (number, {", ".join(f"new.{name}" for name in _BAR)});
        end if;
        return new;
    end if;
    if tg_op = 'DELETE' then
        update market_data.records
        set {", ".join(f"{name} = null" for name in FLOATS)}, codes = 0, extra = null, features_after = null
        where series = number and ts = old.ts;
        return old;
    end if;
    update market_data.records set {_FEATURES} where series = number and ts = new.ts;
    return new;
end;
$$;
create or replace trigger refuse_direct_write instead of insert or update or delete on market_data.bars
for each row execute function market_data.write_through();
create or replace trigger refuse_direct_write instead of insert or update or delete on market_data.features
for each row execute function market_data.write_through()
"""


def make_views_writable(url: str) -> None:
    """Let the views of a database be written by its owner, until the database is dropped."""
    with psycopg.connect(url) as connection:
        connection.execute(_STATEMENTS)
