-- migrate:up
-- When the database itself stored what the pipeline says it stored at an instant of its own clock.
--
-- The pipeline gives ingested_at, superseded_at, started_at and first_seen_at, so a mistake in it, or whoever has its
-- login, could give any other. recorded_at is the database's clock at that statement, and no login but the owner's can
-- give it. It is null for what was stored before this migration.
--
-- In bars it costs 8 bytes and 0.4 microseconds a row. A row for each commit and series instead would cost as long, to
-- group what was copied, and more space: a tick stores a bar or two of a series, for which that row has 100 bytes.

alter table market_data.bars add column recorded_at timestamptz;
alter table market_data.bars alter column recorded_at set default clock_timestamp();
comment on column market_data.bars.recorded_at is 'When the database stored these values, by its own clock, which the pipeline cannot set; null before migration 0025.';

alter table market_data.bar_revisions
add column recorded_at timestamptz,
add column supersession_recorded_at timestamptz;
alter table market_data.bar_revisions alter column supersession_recorded_at set default clock_timestamp();
comment on column market_data.bar_revisions.recorded_at is 'When the database stored the old values, as bars.recorded_at was.';
comment on column market_data.bar_revisions.supersession_recorded_at is 'When the database stored the correction, by its own clock; null before migration 0025.';

alter table market_data.ingest_log add column recorded_at timestamptz;
alter table market_data.ingest_log alter column recorded_at set default clock_timestamp();
comment on column market_data.ingest_log.recorded_at is 'When the database stored the row, by its own clock, which the pipeline cannot set; null before migration 0025.';

alter table market_data.run_log add column recorded_at timestamptz;
alter table market_data.run_log alter column recorded_at set default clock_timestamp();
comment on column market_data.run_log.recorded_at is 'When the database stored the row, by its own clock, which the pipeline cannot set; null before migration 0025.';

alter table market_data.split_revisions add column recorded_at timestamptz;
alter table market_data.split_revisions alter column recorded_at set default clock_timestamp();
comment on column market_data.split_revisions.recorded_at is 'When the database stored the row, by its own clock, which the pipeline cannot set; null before migration 0025.';

-- Unlike those, splits are updated and deleted in place: each change is recorded, whoever makes it.
create table market_data.split_changes (
    id bigint generated always as identity primary key,
    change text not null check (change in ('insert', 'update', 'delete')),
    symbol text not null,
    execution_date date not null,
    split_from double precision not null,
    split_to double precision not null,
    counts boolean not null,
    first_seen_at timestamptz not null,
    recorded_at timestamptz not null default clock_timestamp()
);

comment on table market_data.split_changes is 'Every change of market_data.splits since migration 0025, written by the database itself: append-only. Changes of vendor_id and doubt alone are left out.';
comment on column market_data.split_changes.change is 'What happened to the row: the values are those after it, for a delete those before.';
comment on column market_data.split_changes.recorded_at is 'When, by the database''s own clock.';

create index split_changes_symbol on market_data.split_changes (symbol, execution_date);

create trigger split_changes_append_only
before update or delete or truncate on market_data.split_changes
for each statement execute function market_data.refuse_change();

alter table market_data.split_changes enable always trigger split_changes_append_only;

create function market_data.record_split_change() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    split market_data.splits;
begin
    if tg_op = 'DELETE' then
        split := old;
    else
        split := new;
    end if;
    insert into market_data.split_changes (
        change, symbol, execution_date, split_from, split_to, counts, first_seen_at
    )
    values (
        lower(tg_op), split.symbol, split.execution_date, split.split_from, split.split_to, split.counts,
        split.first_seen_at
    );
    return null;
end;
$$;

comment on function market_data.record_split_change() is 'Records a change of a split, with the owner''s rights.';

revoke all on function market_data.record_split_change() from public;

create trigger splits_are_recorded
after insert or delete on market_data.splits
for each row execute function market_data.record_split_change();

create trigger split_updates_are_recorded
after update on market_data.splits
for each row
when (
    (old.symbol, old.execution_date, old.split_from, old.split_to, old.counts, old.first_seen_at)
    is distinct from (new.symbol, new.execution_date, new.split_from, new.split_to, new.counts, new.first_seen_at)
)
execute function market_data.record_split_change();

alter table market_data.splits enable always trigger splits_are_recorded;
alter table market_data.splits enable always trigger split_updates_are_recorded;

create or replace function market_data.supersede_bars(
    symbol text, timeframe text, starts timestamptz[], superseded_at timestamptz, run_id text
)
returns void
language sql security definer
set search_path = pg_catalog, pg_temp
as $$
    with old as (
        delete from market_data.bars as b
        where
            b.symbol = supersede_bars.symbol
            and b.timeframe = supersede_bars.timeframe
            and b.ts = any(supersede_bars.starts)
        returning b.*
    )

    insert into market_data.bar_revisions (
        symbol, timeframe, ts, open, high, low, close, volume, vwap, trades, ingested_at, superseded_at, run_id,
        recorded_at
    )
    select
        o.symbol, o.timeframe, o.ts, o.open, o.high, o.low, o.close, o.volume, o.vwap, o.trades, o.ingested_at,
        supersede_bars.superseded_at, supersede_bars.run_id, o.recorded_at
    from old as o
$$;

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
from market_data.split_revisions;

comment on view market_data.recorded_instants is
'Each instant that the pipeline gave beside that of the database: claimed_at is the former, recorded_at the latter, null before migration 0025. They differ by the seconds of a commit and of two clocks.';
comment on column market_data.recorded_instants.instant is 'The column of `relation` that holds claimed_at.';

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
                c.relname ~ '^(ingest_log|run_log|bar_revisions|split_revisions|split_changes|schema_migrations)$' or c.relname ~ '^bars(_|$)' as guarded
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
                and (c.relname ~ '^bars(_|$)' or c.relname in ('ingest_log', 'run_log', 'split_revisions'))
                and a.attnum > 0
                and not a.attisdropped
                and a.attidentity = ''
                and a.attname <> 'recorded_at'
            group by c.oid
        loop
            execute format('grant insert (%s) on %s to %I', relation.given, relation.name, writers);
        end loop;
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

-- migrate:down
-- Forward only: rolling back would lose what the database recorded. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
