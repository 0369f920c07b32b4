-- migrate:up
-- A bar and its features are one row of `records`, under the number of its series: half the bytes of two tables with text
-- keys, one index instead of two. `bars` and `features` are views with the columns they had as tables.
--
-- What is stored is moved by `market-data migrate` after this file, a series at a time, each in a transaction of its own:
-- it goes on where it was interrupted, and readers see every row all the while. The pipeline stores nothing until then.

-- An older version of the pipeline that still runs stores nothing more. This waits for what it is storing.
create function market_data.refuse_while_moving() returns trigger
language plpgsql
as $$
begin
    raise exception using
        errcode = 'MD002',
        message = 'bars are being moved to a new table: `market-data migrate` goes on with it, and nothing is stored until it is done';
end;
$$;

comment on function market_data.refuse_while_moving() is 'Refuses what is stored where bars and features are moved from.';

do $$
declare
    relation text;
begin
    foreach relation in array array[
        'bars', 'bars_5m', 'bars_15m', 'bars_1h', 'bars_4h', 'bars_1d',
        'features', 'features_5m', 'features_15m', 'features_1h', 'features_4h', 'features_1d'
    ] loop
        execute format(
            'create trigger refuse_while_moving before insert or update or delete on market_data.%I
            for each statement execute function market_data.refuse_while_moving()',
            relation
        );
    end loop;
end;
$$;

alter table market_data.bars rename to bars_to_move;
alter table market_data.features rename to features_to_move;

-- They return or read rows of the table that was renamed.
drop function market_data.bars_total_return_as_of(text, text, timestamptz);
drop view market_data.bars_total_return;
drop view market_data.bars_adjusted;
drop view market_data.recorded_instants;
drop function market_data.bars_as_of(text, text, timestamptz);
drop function market_data.bars_recorded_by(text, text, timestamptz);

create function market_data.timeframe_code(timeframe text) returns integer
language sql immutable parallel safe
return case timeframe when '5m' then 1 when '15m' then 2 when '1h' then 3 when '4h' then 4 when '1d' then 5 end;

comment on function market_data.timeframe_code(text) is 'The first byte of a series'' number. A new timeframe needs a code here, and a partition of records.';

create sequence market_data.symbol_numbers as integer maxvalue 8388607;

create table market_data.series (
    id integer primary key,
    symbol text not null,
    timeframe text not null,
    unique (symbol, timeframe),
    check (id >> 24 = market_data.timeframe_code(timeframe))
);

comment on table market_data.series is 'The number of each series that has rows in records. It never changes.';
comment on column market_data.series.id is 'The timeframe''s code in the first byte, the symbol''s number in the other three: equal in all timeframes of a symbol, and from 8388608 on where it has no volume.';

create table market_data.records (
    series integer not null,
    codes integer not null default 0,
    ts timestamptz not null,
    open double precision not null,
    high double precision not null,
    low double precision not null,
    close double precision not null,
    volume double precision,
    vwap double precision,
    log_return double precision,
    return_1h double precision,
    return_1d double precision,
    volatility_20 double precision,
    volatility_50 double precision,
    atr double precision,
    rolling_volume_20 double precision,
    volume_ratio double precision,
    trades integer,
    features_after integer,
    ingested_at timestamptz not null,
    recorded_at timestamptz default statement_timestamp(),
    extra jsonb,
    primary key (series, ts) with (fillfactor = 100),
    -- The bit that marks the numbers of indices, see series.
    constraint volume_unless_index check (volume is not null or series & 8388608 <> 0)
) partition by range (series);

comment on table market_data.records is 'Each bar with its features. Read the views bars and features, which say what the columns mean; the pipeline alone writes here.';
comment on column market_data.records.series is 'See the table series.';
comment on column market_data.records.codes is 'The features that are booleans or labels, two bits each, the first in the lowest: hh, hl, lh, ll, trend_direction, structure_label, volatility_regime, trend_regime, compression_regime. 0 is null; a boolean is 1 for false, 2 for true; the labels are numbered from 1 in the order in which the view features names them.';
comment on column market_data.records.features_after is 'Seconds from ingested_at to the computation of the features; null where none were computed.';
comment on column market_data.records.recorded_at is 'See bars.recorded_at.';

create table market_data.records_5m partition of market_data.records for values from (16777216) to (33554432)
partition by range (ts);
create table market_data.records_15m partition of market_data.records for values from (33554432) to (50331648)
partition by range (ts);
create table market_data.records_1h partition of market_data.records for values from (50331648) to (67108864)
partition by range (ts);
create table market_data.records_4h partition of market_data.records for values from (67108864) to (83886080)
partition by range (ts);
create table market_data.records_1d partition of market_data.records for values from (83886080) to (100663296)
partition by range (ts);

create function market_data.make_partitions(timeframe text, first_ts timestamptz, last_ts timestamptz)
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
-- Makes the partitions for bars from first_ts to last_ts, both included: of a month for 5m, of a year for the others.
declare
    of_timeframe text := 'records_' || make_partitions.timeframe;
    monthly boolean := make_partitions.timeframe = '5m';
    from_ts timestamptz := date_trunc(case when monthly then 'month' else 'year' end, first_ts);
    until_ts timestamptz;
    name text;
    member text;
begin
    while from_ts <= last_ts loop
        until_ts := from_ts + case when monthly then interval '1 month' else interval '1 year' end;
        name := format('%s_%s', of_timeframe, to_char(from_ts, case when monthly then 'YYYY_MM' else 'YYYY' end));
        if to_regclass(format('market_data.%I', name)) is null then
            -- One after the other, while rows may be stored in other partitions.
            execute format('lock table market_data.%I in share update exclusive mode', of_timeframe);
        end if;
        if to_regclass(format('market_data.%I', name)) is null then
            -- A table of hundreds of millions of rows is not to wait for a fifth of them to change.
            execute format(
                'create table market_data.%I (like market_data.%I including defaults including constraints)
                with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
                autovacuum_analyze_scale_factor = 0.02)',
                name, of_timeframe
            );
            foreach member in array array['market_data_reader', 'market_data_writer'] loop
                if to_regrole(member) is not null then
                    execute format('revoke all on market_data.%I from %I', name, member);
                    execute format('grant select on market_data.%I to %I', name, member);
                end if;
            end loop;
            execute format(
                'alter table market_data.%I attach partition market_data.%I for values from (%L) to (%L)',
                of_timeframe, name, from_ts, until_ts
            );
        end if;
        from_ts := until_ts;
    end loop;
end;
$$;

comment on function market_data.make_partitions(text, timestamptz, timestamptz) is 'Makes the partitions of records for bars of a timeframe that start from first_ts to last_ts: of a month for 5m, of a year for the others. Those that exist stay.';

create function market_data.series_id(symbol text, timeframe text) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
-- The number of a series, for a writer: given to it if it has none.
declare
    found_id integer;
    number integer;
begin
    if to_regclass('market_data.bars_to_move') is not null then
        raise exception using
            errcode = 'MD002',
            message = 'bars are being moved to a new table: `market-data migrate` goes on with it, and nothing is stored until it is done';
    end if;
    select s.id into found_id from market_data.series as s
    where s.symbol = series_id.symbol and s.timeframe = series_id.timeframe;
    if found then
        return found_id;
    end if;
    return market_data.number_series(series_id.symbol, series_id.timeframe);
end;
$$;

create function market_data.number_series(symbol text, timeframe text) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    number integer;
    found_id integer;
begin
    -- Of two transactions that bring the same symbol, one waits for the other.
    perform pg_advisory_xact_lock(hashtext('market_data.series'), hashtext(number_series.symbol));
    select s.id & 16777215 into number from market_data.series as s where s.symbol = number_series.symbol limit 1;
    if not found then
        number := nextval('market_data.symbol_numbers')
            + case when number_series.symbol like 'I:%' then 8388608 else 0 end;
    end if;
    insert into market_data.series (id, symbol, timeframe)
    values (
        (market_data.timeframe_code(number_series.timeframe) << 24) | number, number_series.symbol,
        number_series.timeframe
    )
    on conflict on constraint series_symbol_timeframe_key do update set symbol = excluded.symbol
    returning id into found_id;
    return found_id;
end;
$$;

comment on function market_data.series_id(text, text) is 'The number of a series; it gets one if it has none.';
comment on function market_data.number_series(text, text) is 'Gives a series its number.';
revoke all on function market_data.make_partitions(text, timestamptz, timestamptz) from public;
revoke all on function market_data.series_id(text, text) from public;
revoke all on function market_data.number_series(text, text) from public;

-- Until everything is moved, what is still to be moved is in the views too.
create table market_data.series_to_move (
    symbol text not null,
    timeframe text not null,
    primary key (symbol, timeframe)
);

comment on table market_data.series_to_move is 'The series whose bars are still in bars_to_move; the table goes with the last of them.';

insert into market_data.series_to_move (symbol, timeframe)
with recursive found (symbol, timeframe) as (
    (select
        b.symbol,
        b.timeframe
    from market_data.bars_to_move as b
    order by b.symbol, b.timeframe limit 1)
    union all
    select
        n.symbol,
        n.timeframe
    from found as f
    cross join lateral (
        select
            b.symbol,
            b.timeframe
        from market_data.bars_to_move as b
        where (b.symbol, b.timeframe) > (f.symbol, f.timeframe)
        order by b.symbol, b.timeframe
        limit 1
    ) as n
)

select
    found.symbol,
    found.timeframe
from found;

create function market_data.define_views(moving boolean) returns void
language plpgsql
as $define$
begin
    execute $view$
        create or replace view market_data.bars as
        select
            s.symbol,
            s.timeframe,
            r.ts,
            r.open,
            r.high,
            r.low,
            r.close,
            r.volume,
            r.vwap,
            r.trades::bigint as trades,
            r.ingested_at,
            r.recorded_at
        from market_data.series as s
        inner join market_data.records as r on s.id = r.series
    $view$ || case when moving then $view$
        union all
        select
            b.symbol,
            b.timeframe,
            b.ts,
            b.open,
            b.high,
            b.low,
            b.close,
            b.volume,
            b.vwap,
            b.trades,
            b.ingested_at,
            b.recorded_at
        from market_data.bars_to_move as b
        inner join market_data.series_to_move as m on b.symbol = m.symbol and b.timeframe = m.timeframe
    $view$ else '' end;
    execute $view$
        create or replace view market_data.features as
        select
            s.symbol,
            s.timeframe,
            r.ts,
            r.log_return,
            r.return_1h,
            r.return_1d,
            r.volatility_20,
            r.volatility_50,
            r.atr,
            r.rolling_volume_20,
            r.volume_ratio,
            case (r.codes >> 0) & 3 when 1 then false when 2 then true end as hh,
            case (r.codes >> 2) & 3 when 1 then false when 2 then true end as hl,
            case (r.codes >> 4) & 3 when 1 then false when 2 then true end as lh,
            case (r.codes >> 6) & 3 when 1 then false when 2 then true end as ll,
            case (r.codes >> 8) & 3 when 1 then 'up' when 2 then 'down' when 3 then 'neutral' end as trend_direction,
            case (r.codes >> 10) & 3 when 1 then 'bullish' when 2 then 'bearish' when 3 then 'range' end as structure_label,
            case (r.codes >> 12) & 3 when 1 then 'low' when 2 then 'medium' when 3 then 'high' end as volatility_regime,
            case (r.codes >> 14) & 3 when 1 then 'uptrend' when 2 then 'downtrend' when 3 then 'ranging' end as trend_regime,
            case (r.codes >> 16) & 3 when 1 then 'compressed' when 2 then 'expanded' end as compression_regime,
            r.ingested_at + r.features_after * interval '1 second' as features_computed_at,
            r.extra
        from market_data.series as s
        inner join market_data.records as r on s.id = r.series
        where r.features_after is not null
    $view$ || case when moving then $view$
        union all
        select
            f.symbol,
            f.timeframe,
            f.ts,
            f.log_return,
            f.return_1h,
            f.return_1d,
            f.volatility_20,
            f.volatility_50,
            f.atr,
            f.rolling_volume_20,
            f.volume_ratio,
            f.hh,
            f.hl,
            f.lh,
            f.ll,
            f.trend_direction,
            f.structure_label,
            f.volatility_regime,
            f.trend_regime,
            f.compression_regime,
            f.features_computed_at,
            f.extra
        from market_data.features_to_move as f
        inner join market_data.series_to_move as m on f.symbol = m.symbol and f.timeframe = m.timeframe
    $view$ else '' end;
end;
$define$;

select market_data.define_views(true);

create function market_data.move_series(symbol text, timeframe text) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
-- Moves a series to records; returns how many bars it has. A second call does nothing.
declare
    number integer;
    first_ts timestamptz;
    last_ts timestamptz;
    moved bigint;
    computed bigint;
begin
    delete from market_data.series_to_move as m
    where m.symbol = move_series.symbol and m.timeframe = move_series.timeframe;
    if not found then
        return 0;
    end if;
    number := market_data.number_series(move_series.symbol, move_series.timeframe);
    select min(b.ts), max(b.ts) into first_ts, last_ts
    from market_data.bars_to_move as b
    where b.symbol = move_series.symbol and b.timeframe = move_series.timeframe;
    perform market_data.make_partitions(move_series.timeframe, first_ts, last_ts);
    insert into market_data.records (
        series, codes, ts, open, high, low, close, volume, vwap, log_return, return_1h, return_1d, volatility_20, volatility_50, atr, rolling_volume_20, volume_ratio,
        trades, features_after, ingested_at, recorded_at, extra
    )
    select
        number,
        case when f.hh then 2 when not f.hh then 1 else 0 end
        + case when f.hl then 8 when not f.hl then 4 else 0 end
        + case when f.lh then 32 when not f.lh then 16 else 0 end
        + case when f.ll then 128 when not f.ll then 64 else 0 end
        + case f.trend_direction when 'up' then 256 when 'down' then 512 when 'neutral' then 768 else 0 end
        + case f.structure_label when 'bullish' then 1024 when 'bearish' then 2048 when 'range' then 3072 else 0 end
        + case f.volatility_regime when 'low' then 4096 when 'medium' then 8192 when 'high' then 12288 else 0 end
        + case f.trend_regime when 'uptrend' then 16384 when 'downtrend' then 32768 when 'ranging' then 49152 else 0 end
        + case f.compression_regime when 'compressed' then 65536 when 'expanded' then 131072 else 0 end,
        b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, f.log_return, f.return_1h, f.return_1d, f.volatility_20, f.volatility_50, f.atr, f.rolling_volume_20, f.volume_ratio,
        b.trades, ceil(extract(epoch from f.features_computed_at - b.ingested_at)), b.ingested_at, b.recorded_at,
        f.extra
    from market_data.bars_to_move as b
    left join market_data.features_to_move as f
        on
            f.symbol = b.symbol
            and f.timeframe = b.timeframe
            and f.ts = b.ts
            and f.symbol = move_series.symbol
            and f.timeframe = move_series.timeframe
    where b.symbol = move_series.symbol and b.timeframe = move_series.timeframe
    order by b.ts;
    get diagnostics moved = row_count;
    return moved;
end;
$$;

create function market_data.define_readers() returns void
language plpgsql
as $define$
-- The functions that read through the views, on records itself: a view's join hides from the planner which partitions a
-- series is in, and that its rows are in order.
begin
    execute $reader$
        create or replace function market_data.bars_as_of(symbol text, timeframe text, instant timestamptz)
        returns setof market_data.bars
        language sql stable parallel safe
        as $$
            -- A single SELECT, which PostgreSQL merges into the caller's query: bounds on ts reach the indexes of both relations.
            -- A column added to bars has to be added here.
            select distinct on (v.ts)
                v.symbol, v.timeframe, v.ts, v.open, v.high, v.low, v.close, v.volume, v.vwap, v.trades, v.ingested_at,
                v.recorded_at
            from (
                select
                    bars_as_of.symbol, bars_as_of.timeframe, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap,
                    b.trades::bigint, b.ingested_at,
                    b.recorded_at, null::bigint as id
                from market_data.records as b
                where
                    b.series = (
                        select s.id from market_data.series as s
                        where s.symbol = bars_as_of.symbol and s.timeframe = bars_as_of.timeframe
                    )
                    -- What the timeframe says of the number, so that its partitions alone are planned for.
                    and b.series >= market_data.timeframe_code(bars_as_of.timeframe) << 24
                    and b.series < (market_data.timeframe_code(bars_as_of.timeframe) + 1) << 24
                    and b.ingested_at <= bars_as_of.instant
                union all
                select
                    r.symbol, r.timeframe, r.ts, r.open, r.high, r.low, r.close, r.volume, r.vwap, r.trades, r.ingested_at,
                    r.recorded_at, r.id
                from market_data.bar_revisions as r
                where
                    r.symbol = bars_as_of.symbol
                    and r.timeframe = bars_as_of.timeframe
                    and r.ingested_at <= bars_as_of.instant
                    and r.superseded_at > bars_as_of.instant
            ) as v
            -- Two versions claim the instant only where a clock was set back: the one stored last counts, null being the present.
            order by v.ts desc, v.id desc
        $$
    $reader$;
    execute $reader$
        create or replace function market_data.bars_recorded_by(symbol text, timeframe text, instant timestamptz)
        returns setof market_data.bars
        language sql stable parallel safe
        as $$
            -- bars_as_of, going by the database's instants instead of the pipeline's.
            select distinct on (v.ts)
                v.symbol, v.timeframe, v.ts, v.open, v.high, v.low, v.close, v.volume, v.vwap, v.trades, v.ingested_at,
                v.recorded_at
            from (
                select
                    bars_recorded_by.symbol, bars_recorded_by.timeframe, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap,
                    b.trades::bigint, b.ingested_at,
                    b.recorded_at, null::bigint as id
                from market_data.records as b
                where
                    b.series = (
                        select s.id from market_data.series as s
                        where s.symbol = bars_recorded_by.symbol and s.timeframe = bars_recorded_by.timeframe
                    )
                    -- What the timeframe says of the number, so that its partitions alone are planned for.
                    and b.series >= market_data.timeframe_code(bars_recorded_by.timeframe) << 24
                    and b.series < (market_data.timeframe_code(bars_recorded_by.timeframe) + 1) << 24
                    and coalesce(b.recorded_at, b.ingested_at) <= bars_recorded_by.instant
                union all
                select
                    r.symbol, r.timeframe, r.ts, r.open, r.high, r.low, r.close, r.volume, r.vwap, r.trades, r.ingested_at,
                    r.recorded_at, r.id
                from market_data.bar_revisions as r
                where
                    r.symbol = bars_recorded_by.symbol
                    and r.timeframe = bars_recorded_by.timeframe
                    and coalesce(r.recorded_at, r.ingested_at) <= bars_recorded_by.instant
                    and coalesce(r.supersession_recorded_at, r.superseded_at) > bars_recorded_by.instant
            ) as v
            order by v.ts desc, v.id desc
        $$
    $reader$;
    execute $reader$
        create or replace function market_data.dividend_factors(symbol text, instant timestamptz default 'infinity')
        returns table (
            ex_date date,
            in_force_from timestamptz,
            amount double precision,
            previous_close double precision,
            shares double precision,
            factor double precision
        )
        language sql stable parallel safe
        as $$
            select
                paid.ex_date,
                paid.in_force_from,
                paid.amount,
                (paid.before).close,
                split.factor,
                case
                    when paid.amount < (paid.before).close * split.factor
                        then 1 - paid.amount / ((paid.before).close * split.factor)
                    else 1
                end
            from (
                select
                    day.ex_date,
                    day.in_force_from,
                    day.amount,
                    case
                        when dividend_factors.instant = 'infinity' then (
                            select
                                row(
                                    dividend_factors.symbol, '1d', b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap,
                                    b.trades::bigint, b.ingested_at, b.recorded_at
                                )::market_data.bars
                            from market_data.records_1d as b
                            where
                                b.series = (
                                    select s.id from market_data.series as s
                                    where s.symbol = dividend_factors.symbol and s.timeframe = '1d'
                                )
                                and b.ts < day.in_force_from
                            order by b.ts desc limit 1
                        )
                        -- As a rule a close of the last days; only without one are all before them read.
                        else coalesce(
                            (
                                select b
                                from market_data.bars_as_of(dividend_factors.symbol, '1d', dividend_factors.instant) as b
                                where b.ts < day.in_force_from and b.ts >= day.in_force_from - interval '14 days'
                                order by b.ts desc limit 1
                            ),
                            (
                                select b
                                from market_data.bars_as_of(dividend_factors.symbol, '1d', dividend_factors.instant) as b
                                where b.ts < day.in_force_from - interval '14 days'
                                order by b.ts desc limit 1
                            )
                        )
                    end as before
                from (
                    select
                        d.ex_date,
                        d.ex_date::timestamp at time zone 'America/New_York' as in_force_from,
                        sum(d.amount order by d.amount) as amount
                    from market_data.dividends_as_of(dividend_factors.instant) as d
                    where
                        d.symbol = dividend_factors.symbol
                        and d.currency = 'USD'
                        and d.ex_date <= (
                            case
                                when dividend_factors.instant = 'infinity' then market_data.clock()
                                else dividend_factors.instant
                            end at time zone 'America/New_York'
                        )::date
                    group by d.ex_date
                ) as day
            ) as paid
            cross join lateral (
                select market_data.product(s.factor) as factor
                from market_data.splits_as_of(dividend_factors.instant) as s
                where
                    s.symbol = dividend_factors.symbol
                    and s.execution_date <= paid.ex_date
                    and s.execution_date::timestamp at time zone 'America/New_York' > (paid.before).ts
            ) as split
            where (paid.before).close is not null
        $$
    $reader$;
end;
$define$;

comment on function market_data.define_readers() is 'Lets bars_as_of, bars_recorded_by and dividend_factors read records, once everything is moved.';

create function market_data.end_move() returns void
language plpgsql
as $$
begin
    lock table market_data.series_to_move in access exclusive mode;
    if exists (select from market_data.series_to_move) then
        raise exception 'bars are still being moved';
    end if;
    perform market_data.define_views(false);
    perform market_data.define_readers();
    drop table market_data.series_to_move;
    drop table market_data.bars_to_move;
    drop table market_data.features_to_move;
    drop function market_data.move_series(text, text);
    drop function market_data.define_views(boolean);
    drop function market_data.define_readers();
    drop function market_data.refuse_while_moving();
end;
$$;

comment on function market_data.move_series(text, text) is 'Moves the bars and features of a series to records, for `market-data migrate`.';
comment on function market_data.end_move() is 'Drops the tables that bars and features were moved from, for `market-data migrate`.';
comment on function market_data.define_views(boolean) is 'Defines the views bars and features, with what is still to be moved or without.';

comment on view market_data.bars is 'RAW bars, never split-adjusted: read bars_adjusted for continuous prices. 5m and 1d are fetched; 15m, 1h and 4h are made of 5m. Rows of records, without the features.';
comment on column market_data.bars.ts is 'The bar''s START. A day bar starts at 00:00 New York (crypto, forex: 00:00 UTC), also of an index, whose day the vendor begins an hour later; 4h bars start at 04, 08, 12 and 16 New York.';
comment on column market_data.bars.open is 'First trade''s price, US dollars, as traded.';
comment on column market_data.bars.high is 'Highest price, US dollars, as traded.';
comment on column market_data.bars.low is 'Lowest price, US dollars, as traded.';
comment on column market_data.bars.close is 'Last trade''s price, US dollars, as traded; the auction print for day bars.';
comment on column market_data.bars.volume is 'Shares traded (crypto: units; forex: quotes); may be fractional. Null for indices, which have none.';
comment on column market_data.bars.vwap is 'Volume-weighted average price, US dollars; null where the vendor sent none.';
comment on column market_data.bars.trades is 'Number of trades; null where the vendor sent none.';
comment on column market_data.bars.ingested_at is 'When these values were stored.';
comment on column market_data.bars.recorded_at is 'When the database received the statement that stored these values, at most a minute before it had them unless the owner stored them, by its own clock, which the pipeline cannot set; null before migration 0025.';
comment on view market_data.features is 'The 17 features of each bar, computed from split-adjusted bars up to and including it; nothing looks ahead. Rows of records, without the prices.';
comment on column market_data.features.ts is 'The bar''s START.';
comment on column market_data.features.log_return is 'ln of close over the previous close.';
comment on column market_data.features.return_1h is 'close over the close one hour earlier in the session, minus 1.';
comment on column market_data.features.return_1d is 'close over the previous sessions last close, minus 1.';
comment on column market_data.features.volatility_20 is 'annualised sample standard deviation of 20 log returns.';
comment on column market_data.features.volatility_50 is 'annualised sample standard deviation of 50 log returns.';
comment on column market_data.features.atr is 'Wilders average true range over 14 bars, adjusted US dollars.';
comment on column market_data.features.rolling_volume_20 is 'mean volume of 20 bars, adjusted shares.';
comment on column market_data.features.volume_ratio is 'volume over rolling_volume_20.';
comment on column market_data.features.hh is 'high above the highest of the 5 bars before.';
comment on column market_data.features.hl is 'low above the lowest of the 5 bars before.';
comment on column market_data.features.lh is 'high below the highest of the 5 bars before.';
comment on column market_data.features.ll is 'low below the lowest of the 5 bars before.';
comment on column market_data.features.trend_direction is 'up, down or neutral: close against the close 5 bars before, 1 %.';
comment on column market_data.features.structure_label is 'bullish, bearish or range.';
comment on column market_data.features.volatility_regime is 'low, medium or high against the median of 50 volatility_50.';
comment on column market_data.features.trend_regime is 'uptrend, downtrend or ranging: EMA 20 against EMA 50.';
comment on column market_data.features.compression_regime is 'compressed or expanded: Bollinger width against its median of 50.';
comment on column market_data.features.features_computed_at is 'When the computation that produced this row ran, rounded up to a whole number of seconds after ingested_at of its bar.';
comment on column market_data.features.extra is 'The project''s own features by name: numbers, booleans or texts, null where one has no value; null when none is declared. Read one as (extra ->> ''name'')::double precision.';

create function market_data.refuse_direct_write() returns trigger
language plpgsql
as $$
begin
    raise exception using
        errcode = 'feature_not_supported',
        message = format('market_data.%s is a view and cannot be written', tg_table_name),
        detail = 'A bar and its features are one row of market_data.records, which the pipeline alone writes.',
        hint = 'Let the pipeline fetch and compute: market-data backfill. What one adds belongs into tables of one''s own.';
end;
$$;

comment on function market_data.refuse_direct_write() is 'Says to those who wrote bars or features themselves why they cannot.';

create trigger refuse_direct_write instead of insert or update or delete on market_data.bars
for each row execute function market_data.refuse_direct_write();
create trigger refuse_direct_write instead of insert or update or delete on market_data.features
for each row execute function market_data.refuse_direct_write();

create function market_data.bars_as_of(symbol text, timeframe text, instant timestamptz)
returns setof market_data.bars
language sql stable parallel safe
as $$
    -- A single SELECT, which PostgreSQL merges into the caller's query: bounds on ts reach the indexes of both relations.
    -- A column added to bars has to be added here.
    select distinct on (v.ts)
        v.symbol, v.timeframe, v.ts, v.open, v.high, v.low, v.close, v.volume, v.vwap, v.trades, v.ingested_at,
        v.recorded_at
    from (
        select
            b.symbol, b.timeframe, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades, b.ingested_at,
            b.recorded_at, null::bigint as id
        from market_data.bars as b
        where b.symbol = bars_as_of.symbol and b.timeframe = bars_as_of.timeframe and b.ingested_at <= bars_as_of.instant
        union all
        select
            r.symbol, r.timeframe, r.ts, r.open, r.high, r.low, r.close, r.volume, r.vwap, r.trades, r.ingested_at,
            r.recorded_at, r.id
        from market_data.bar_revisions as r
        where
            r.symbol = bars_as_of.symbol
            and r.timeframe = bars_as_of.timeframe
            and r.ingested_at <= bars_as_of.instant
            and r.superseded_at > bars_as_of.instant
    ) as v
    -- Two versions claim the instant only where a clock was set back: the one stored last counts, null being the present.
    order by v.ts desc, v.id desc
$$;

comment on function market_data.bars_as_of(text, text, timestamptz) is
'The RAW bars of a series as they were stored at the instant, one row per ts, in no order. A version holds during [ingested_at, superseded_at), which is empty for one replaced at the instant it was stored.';

create function market_data.bars_recorded_by(symbol text, timeframe text, instant timestamptz)
returns setof market_data.bars
language sql stable parallel safe
as $$
    -- bars_as_of, going by the database's instants instead of the pipeline's.
    select distinct on (v.ts)
        v.symbol, v.timeframe, v.ts, v.open, v.high, v.low, v.close, v.volume, v.vwap, v.trades, v.ingested_at,
        v.recorded_at
    from (
        select
            b.symbol, b.timeframe, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades, b.ingested_at,
            b.recorded_at, null::bigint as id
        from market_data.bars as b
        where
            b.symbol = bars_recorded_by.symbol
            and b.timeframe = bars_recorded_by.timeframe
            and coalesce(b.recorded_at, b.ingested_at) <= bars_recorded_by.instant
        union all
        select
            r.symbol, r.timeframe, r.ts, r.open, r.high, r.low, r.close, r.volume, r.vwap, r.trades, r.ingested_at,
            r.recorded_at, r.id
        from market_data.bar_revisions as r
        where
            r.symbol = bars_recorded_by.symbol
            and r.timeframe = bars_recorded_by.timeframe
            and coalesce(r.recorded_at, r.ingested_at) <= bars_recorded_by.instant
            and coalesce(r.supersession_recorded_at, r.superseded_at) > bars_recorded_by.instant
    ) as v
    order by v.ts desc, v.id desc
$$;

comment on function market_data.bars_recorded_by(text, text, timestamptz) is
'The RAW bars of a series as the database itself had recorded them at the instant, one row per ts, in no order. What bars_as_of returns at the same instant differs only by commits of the seconds around it, unless the pipeline''s instants are wrong.';

create view market_data.bars_adjusted as
select
    b.symbol,
    b.timeframe,
    b.ts,
    b.open * f.factor as open,
    b.high * f.factor as high,
    b.low * f.factor as low,
    b.close * f.factor as close,
    b.volume / f.factor as volume,
    b.vwap * f.factor as vwap,
    b.trades,
    b.ingested_at
from market_data.bars as b
cross join lateral (
    select market_data.product(s.factor) as factor
    from market_data.splits as s
    where
        s.symbol = b.symbol
        and s.counts
        and b.ts < s.execution_date::timestamp at time zone 'America/New_York'
        and s.execution_date <= (market_data.clock() at time zone 'America/New_York')::date
) as f;

comment on view market_data.bars_adjusted is 'Bars with prices and volume adjusted for the splits in force now: price x split_from / split_to for every later split.';

create view market_data.recorded_instants as
select
    'bars' as relation,
    'ingested_at' as instant,
    symbol,
    timeframe,
    ts,
    ingested_at as claimed_at,
    recorded_at
from market_data.bars
union all
select
    'bar_revisions' as relation,
    'ingested_at' as instant,
    symbol,
    timeframe,
    ts,
    ingested_at as claimed_at,
    recorded_at
from market_data.bar_revisions
union all
select
    'bar_revisions' as relation,
    'superseded_at' as instant,
    symbol,
    timeframe,
    ts,
    superseded_at as claimed_at,
    supersession_recorded_at as recorded_at
from market_data.bar_revisions
union all
select
    'ingest_log' as relation,
    'finished_at' as instant,
    symbol,
    timeframe,
    null::timestamptz as ts,
    finished_at as claimed_at,
    recorded_at
from market_data.ingest_log
union all
select
    'run_log' as relation,
    'started_at' as instant,
    null::text as symbol,
    null::text as timeframe,
    null::timestamptz as ts,
    started_at as claimed_at,
    recorded_at
from market_data.run_log
union all
select
    'splits' as relation,
    'first_seen_at' as instant,
    s.symbol,
    null::text as timeframe,
    null::timestamptz as ts,
    s.first_seen_at as claimed_at,
    max(c.recorded_at) as recorded_at
from market_data.splits as s
left join market_data.split_changes as c
    on
        s.symbol = c.symbol
        and s.execution_date = c.execution_date
        and s.split_from = c.split_from
        and s.split_to = c.split_to
group by s.symbol, s.execution_date, s.split_from, s.split_to, s.first_seen_at
union all
select
    'split_revisions' as relation,
    'superseded_at' as instant,
    symbol,
    null::text as timeframe,
    null::timestamptz as ts,
    superseded_at as claimed_at,
    recorded_at
from market_data.split_revisions
union all
select
    'dividends' as relation,
    'first_seen_at' as instant,
    d.symbol,
    null::text as timeframe,
    null::timestamptz as ts,
    d.first_seen_at as claimed_at,
    max(c.recorded_at) as recorded_at
from market_data.dividends as d
left join market_data.dividend_changes as c
    on
        d.symbol = c.symbol
        and d.ex_date = c.ex_date
        and d.amount = c.amount
        and d.currency = c.currency
group by d.symbol, d.ex_date, d.amount, d.currency, d.first_seen_at
union all
select
    'dividend_revisions' as relation,
    'superseded_at' as instant,
    symbol,
    null::text as timeframe,
    null::timestamptz as ts,
    superseded_at as claimed_at,
    recorded_at
from market_data.dividend_revisions;

comment on view market_data.recorded_instants is 'Each instant that the pipeline gave beside that of the database: claimed_at is the former, recorded_at the latter, null before migration 0025. They differ by the seconds of a commit and of two clocks.';

create view market_data.bars_total_return as
select b.*
from market_data.series_state as s
cross join lateral (
    with dividend as materialized (
        select
            d.in_force_from,
            d.factor
        from market_data.dividend_factors(s.symbol) as d
    )

    select
        a.symbol,
        a.timeframe,
        a.ts,
        a.open * f.factor as open,
        a.high * f.factor as high,
        a.low * f.factor as low,
        a.close * f.factor as close,
        a.volume,
        a.vwap * f.factor as vwap,
        a.trades,
        a.ingested_at,
        f.factor as dividend_factor
    from market_data.bars_adjusted as a
    cross join
        lateral (
            select market_data.product(dividend.factor) as factor from dividend
            where a.ts < dividend.in_force_from
        ) as f
    where a.symbol = s.symbol and a.timeframe = s.timeframe
) as b;

comment on view market_data.bars_total_return is 'bars_adjusted with prices also adjusted for the dividends in force now (dividend_factors): returns of its closes are total returns. Volume is adjusted for splits alone.';
comment on column market_data.bars_total_return.dividend_factor is 'What the prices of bars_adjusted are multiplied by: close / dividend_factor is adjusted for splits alone.';

create function market_data.bars_total_return_as_of(symbol text, timeframe text, instant timestamptz)
returns setof market_data.bars_total_return
language sql stable parallel safe
as $$
    with dividend as materialized (
        select d.in_force_from, d.factor
        from market_data.dividend_factors(bars_total_return_as_of.symbol, bars_total_return_as_of.instant) as d
    ),

    split as materialized (
        select s.factor, s.execution_date::timestamp at time zone 'America/New_York' as in_force_from
        from market_data.splits_as_of(bars_total_return_as_of.instant) as s
        where
            s.symbol = bars_total_return_as_of.symbol
            and s.execution_date <= (bars_total_return_as_of.instant at time zone 'America/New_York')::date
    )

    select
        b.symbol,
        b.timeframe,
        b.ts,
        b.open * f.shares * f.dividends,
        b.high * f.shares * f.dividends,
        b.low * f.shares * f.dividends,
        b.close * f.shares * f.dividends,
        b.volume / f.shares,
        b.vwap * f.shares * f.dividends,
        b.trades,
        b.ingested_at,
        f.dividends
    from
        market_data.bars_as_of(
            bars_total_return_as_of.symbol, bars_total_return_as_of.timeframe, bars_total_return_as_of.instant
        ) as b
    cross join lateral (
        select
            (select market_data.product(s.factor) from split as s where b.ts < s.in_force_from) as shares,
            (select market_data.product(d.factor) from dividend as d where b.ts < d.in_force_from) as dividends
    ) as f
$$;

comment on function market_data.bars_total_return_as_of(text, text, timestamptz) is
'The bars of a series as they were stored at the instant, adjusted for the splits and dividends that were known and in force then, in no order.';

create or replace function market_data.supersede_bars(
    symbol text, timeframe text, starts timestamptz[], superseded_at timestamptz, run_id text
)
returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    -- The number and the bounds as constants: the planner then looks at no other partitions.
    execute format(
        'with old as (
            delete from market_data.records as r
            where r.series = %s and r.ts = any($1) and r.ts between %L and %L
            returning r.*
        )

        insert into market_data.bar_revisions (
            symbol, timeframe, ts, open, high, low, close, volume, vwap, trades, ingested_at, superseded_at, run_id,
            recorded_at
        )
        select
            $2, $3, o.ts, o.open, o.high, o.low, o.close, o.volume, o.vwap, o.trades, o.ingested_at, $4, $5,
            o.recorded_at
        from old as o',
        market_data.series_id(supersede_bars.symbol, supersede_bars.timeframe),
        (select min(s) from unnest(supersede_bars.starts) as s),
        (select max(s) from unnest(supersede_bars.starts) as s)
    ) using supersede_bars.starts, supersede_bars.symbol, supersede_bars.timeframe, supersede_bars.superseded_at,
        supersede_bars.run_id;
end;
$$;

comment on function market_data.supersede_bars(text, text, timestamptz[], timestamptz, text) is 'Removes the records of a series that start at the given instants, and keeps their bars in bar_revisions.';

create trigger check_source before insert on market_data.records execute function market_data.check_source();
create trigger check_source before insert on market_data.records_5m execute function market_data.check_source();
create trigger check_source before insert on market_data.records_15m execute function market_data.check_source();
create trigger check_source before insert on market_data.records_1h execute function market_data.check_source();
create trigger check_source before insert on market_data.records_4h execute function market_data.check_source();
create trigger check_source before insert on market_data.records_1d execute function market_data.check_source();

do $$
declare
    relation text;
begin
    foreach relation in array array['records', 'records_5m', 'records_15m', 'records_1h', 'records_4h', 'records_1d'] loop
        execute format(
            'create trigger refuse_slow_statement after insert on market_data.%I for each statement
            when (clock_timestamp() - statement_timestamp() > interval ''1 minute'')
            execute function market_data.refuse_slow_statement()',
            relation
        );
        execute format('alter table market_data.%I enable always trigger refuse_slow_statement', relation);
    end loop;
end;
$$;

create or replace function market_data.apply_privileges(login text)
returns text
language plpgsql
as $$
declare
    readers constant text := 'market_data_reader';
    writers constant text := 'market_data_writer';
    may_take constant text := case
        when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member'
    end;
    wanting text[] := '{}';
    role_name text;
    member text;
    relation record;
begin
    foreach role_name in array array[readers, writers] loop
        if to_regrole(role_name) is null then
            begin
                execute format('create role %I', role_name);
            exception
                when insufficient_privilege then wanting := wanting || format('create role %I', role_name);
                when duplicate_object or unique_violation then null; -- a migration of another database was quicker
            end;
        end if;
        foreach member in array array[current_user, login] loop
            if to_regrole(quote_ident(member)) is null then
                continue;
            end if;
            if to_regrole(role_name) is null or not pg_has_role(member, role_name, may_take) then
                begin
                    execute format('grant %I to %I', role_name, member);
                exception
                    when insufficient_privilege or undefined_object then
                        wanting := wanting || format('grant %I to %I', role_name, member);
                    when unique_violation or internal_error then null; -- as above
                end;
            end if;
        end loop;
    end loop;

    if to_regrole(readers) is not null and to_regrole(writers) is not null then
        for relation in
            select
                c.oid::regclass as name,
                c.relname ~ '^(ingest_log|run_log|schema_migrations|series|series_to_move)$' or c.relname ~ '(^(bars|features|records)(_|$)|_(revisions|changes)$)' as guarded
            from pg_catalog.pg_class as c
            where
                c.relnamespace = 'market_data'::regnamespace
                and c.relkind in ('r', 'p', 'v', 'm')
                and pg_has_role(current_user, c.relowner, 'usage')
        loop
            execute format('revoke all on %s from %I, %I', relation.name, readers, writers);
            execute format('grant select on %s to %I, %I', relation.name, readers, writers);
            if not relation.guarded then
                execute format('grant insert, update, delete on %s to %I', relation.name, writers);
            end if;
        end loop;
        -- Whatever the writer adds for good, the database alone says when: it may give every column but that one.
        for relation in
            select
                c.oid::regclass as name,
                string_agg(quote_ident(a.attname), ', ' order by a.attnum) as given
            from pg_catalog.pg_class as c
            inner join pg_catalog.pg_attribute as a on a.attrelid = c.oid
            where
                c.relnamespace = 'market_data'::regnamespace
                and c.relkind in ('r', 'p')
                and (
                    (c.relname ~ '^records(_|$)' and c.relkind = 'p')
                    or c.relname ~ '_revisions$'
                    or c.relname in ('ingest_log', 'run_log')
                )
                and c.relname <> 'bar_revisions'
                and a.attnum > 0
                and not a.attisdropped
                and a.attidentity = ''
                and a.attname <> 'recorded_at'
            group by c.oid
        loop
            execute format('grant insert (%s) on %s to %I', relation.given, relation.name, writers);
        end loop;
        -- Of a stored record, the writer may change what is computed.
        for relation in
            select c.oid::regclass as name
            from pg_catalog.pg_class as c
            where c.relnamespace = 'market_data'::regnamespace and c.relname ~ '^records(_|$)' and c.relkind = 'p'
        loop
            execute format(
                'grant update (codes, log_return, return_1h, return_1d, volatility_20, volatility_50, atr, rolling_volume_20, volume_ratio,
                features_after, extra) on %s to %I',
                relation.name, writers
            );
        end loop;
        -- Whoever writes to these views is told why that cannot be.
        execute format('grant insert, update, delete on market_data.bars, market_data.features to %I', writers);
        execute format('grant execute on function market_data.series_id(text, text) to %I', writers);
        if to_regprocedure('market_data.settle_partition(text)') is not null then
            execute format('grant execute on function market_data.settle_partition(text) to %I', writers);
        end if;
        execute format(
            'grant execute on function market_data.make_partitions(text, timestamptz, timestamptz) to %I', writers
        );
        execute format(
            'grant execute on function market_data.supersede_bars(text, text, timestamptz[], timestamptz, text) to %I',
            writers
        );
        execute format('grant insert on market_data.backfill_requests to %I', readers);
        -- What a later migration makes has its grants at once, not only when this function runs again after it.
        execute format('alter default privileges in schema market_data grant select on tables to %I', readers);
        execute format(
            'alter default privileges in schema market_data grant select, insert, update, delete on tables to %I',
            writers
        );
        execute format('grant usage on schema market_data to %I, %I', readers, writers);
    end if;
    return nullif(array_to_string(wanting, '; '), '');
end;
$$;

-- Nothing to move in a new database.
do $$
begin
    if not exists (select from market_data.series_to_move) then
        perform market_data.end_move();
    end if;
end;
$$;

-- migrate:down
-- Forward only: rolling back would drop bars. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
