-- migrate:up
-- Cash dividends as the vendor lists them, what was known of them when, and prices adjusted for them.
--
-- A dividend is identified by ticker, ex date, amount and currency: one of the same amount for the same day is the same
-- dividend listed twice. One whose amount or ex date is corrected is withdrawn and another one is listed.
--
-- Tables whose names end in _revisions or _changes are only added to, from now on by their names.

create table market_data.dividends (
    symbol text not null,
    ex_date date not null,
    amount double precision not null check (amount > 0),
    currency text not null,
    declaration_date date,
    record_date date,
    pay_date date,
    frequency integer,
    type text,
    vendor_id text,
    first_seen_at timestamptz not null,
    primary key (symbol, ex_date, amount, currency)
);

comment on table market_data.dividends is 'Cash dividends of the symbols that are followed or were, as the vendor lists them; future ones too. Those of one day add up.';
comment on column market_data.dividends.symbol is 'The vendor''s ticker.';
comment on column market_data.dividends.ex_date is 'The first day on which a buyer does not receive it: prices from 00:00 New York of that day on are without it.';
comment on column market_data.dividends.amount is 'Of one share of the ex date, as declared: never adjusted for later splits.';
comment on column market_data.dividends.currency is 'Of the amount, ISO 4217. Prices are in USD, and a dividend in another currency does not adjust them.';
comment on column market_data.dividends.declaration_date is 'When it was announced; null where the vendor does not say.';
comment on column market_data.dividends.record_date is 'Whoever holds shares on this day receives it; null where the vendor does not say.';
comment on column market_data.dividends.pay_date is 'When it is paid; null where the vendor does not say.';
comment on column market_data.dividends.frequency is 'Payments a year: 0 for one that is paid once, 1, 2, 4, 12, 24, 52, 365; null where the vendor does not say.';
comment on column market_data.dividends.type is 'recurring, special, supplemental, irregular, unknown; long_term_gain and short_term_gain from the older list. All of them adjust prices.';
comment on column market_data.dividends.vendor_id is 'The vendor''s id of the row; null where it gives none. The same dividend may have another id on another of its endpoints.';
comment on column market_data.dividends.first_seen_at is 'Since when the row has been known as it is.';

create table market_data.dividend_revisions (
    symbol text not null,
    ex_date date not null,
    amount double precision not null,
    currency text not null,
    declaration_date date,
    record_date date,
    pay_date date,
    frequency integer,
    type text,
    vendor_id text,
    first_seen_at timestamptz not null,
    superseded_at timestamptz not null,
    recorded_at timestamptz default clock_timestamp()
);

comment on table market_data.dividend_revisions is 'Dividends as the vendor listed them before it corrected or withdrew them: they held during [first_seen_at, superseded_at).';
comment on column market_data.dividend_revisions.superseded_at is 'When a list without this dividend, or with other dates or another type, was stored.';
comment on column market_data.dividend_revisions.recorded_at is 'When the database stored the row, by its own clock, which the pipeline cannot set.';

create index dividend_revisions_symbol on market_data.dividend_revisions (symbol, ex_date);

create trigger dividend_revisions_append_only
before update or delete or truncate on market_data.dividend_revisions
for each statement execute function market_data.refuse_change();

alter table market_data.dividend_revisions enable always trigger dividend_revisions_append_only;

create table market_data.dividend_changes (
    id bigint generated always as identity primary key,
    change text not null check (change in ('insert', 'update', 'delete')),
    symbol text not null,
    ex_date date not null,
    amount double precision not null,
    currency text not null,
    declaration_date date,
    record_date date,
    pay_date date,
    frequency integer,
    type text,
    first_seen_at timestamptz not null,
    recorded_at timestamptz not null default clock_timestamp()
);

comment on table market_data.dividend_changes is 'Every change of market_data.dividends, written by the database itself: append-only. Changes of vendor_id alone are left out.';
comment on column market_data.dividend_changes.change is 'What happened to the row: the values are those after it, for a delete those before.';
comment on column market_data.dividend_changes.recorded_at is 'When, by the database''s own clock.';

create index dividend_changes_symbol on market_data.dividend_changes (symbol, ex_date);

create trigger dividend_changes_append_only
before update or delete or truncate on market_data.dividend_changes
for each statement execute function market_data.refuse_change();

alter table market_data.dividend_changes enable always trigger dividend_changes_append_only;

create function market_data.record_dividend_change() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    dividend market_data.dividends;
begin
    if tg_op = 'DELETE' then
        dividend := old;
    else
        dividend := new;
    end if;
    insert into market_data.dividend_changes (
        change, symbol, ex_date, amount, currency, declaration_date, record_date, pay_date, frequency, type,
        first_seen_at
    )
    values (
        lower(tg_op), dividend.symbol, dividend.ex_date, dividend.amount, dividend.currency,
        dividend.declaration_date, dividend.record_date, dividend.pay_date, dividend.frequency, dividend.type,
        dividend.first_seen_at
    );
    return null;
end;
$$;

comment on function market_data.record_dividend_change() is 'Records a change of a dividend, with the owner''s rights.';

revoke all on function market_data.record_dividend_change() from public;

create trigger dividends_are_recorded
after insert or delete on market_data.dividends
for each row execute function market_data.record_dividend_change();

create trigger dividend_updates_are_recorded
after update on market_data.dividends
for each row
when (
    (
        old.symbol, old.ex_date, old.amount, old.currency, old.declaration_date, old.record_date, old.pay_date,
        old.frequency, old.type, old.first_seen_at
    )
    is distinct from (
        new.symbol, new.ex_date, new.amount, new.currency, new.declaration_date, new.record_date, new.pay_date,
        new.frequency, new.type, new.first_seen_at
    )
)
execute function market_data.record_dividend_change();

alter table market_data.dividends enable always trigger dividends_are_recorded;
alter table market_data.dividends enable always trigger dividend_updates_are_recorded;

create trigger dividends_inserted after insert on market_data.dividends
referencing new table as changed for each statement execute function market_data.notify_series_of_symbols();
create trigger dividends_updated after update on market_data.dividends
referencing new table as changed for each statement execute function market_data.notify_series_of_symbols();
create trigger dividends_deleted after delete on market_data.dividends
referencing old table as changed for each statement execute function market_data.notify_series_of_symbols();
create trigger dividends_truncated after truncate on market_data.dividends
for each statement execute function market_data.notify_series_of_symbols();

create table market_data.dividend_checks (
    symbol text primary key,
    verified_at timestamptz not null
);

comment on table market_data.dividend_checks is 'Symbols whose dividends were read once from the first one on, since when the market''s list of recent and coming ones keeps them.';
comment on column market_data.dividend_checks.verified_at is 'When a list with the symbol''s dividends was last read.';

create table market_data.unreadable_dividends (
    symbol text primary key,
    error text not null,
    seen_at timestamptz not null
);

comment on table market_data.unreadable_dividends is 'Tickers with a dividend that could not be read in the last list of the vendor: their known dividends stay as they are.';
comment on column market_data.unreadable_dividends.symbol is 'Empty for a row that tells no ticker.';
comment on column market_data.unreadable_dividends.error is 'What is wrong with the row, in a sentence.';

create or replace view market_data.recorded_instants as
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
                c.relname ~ '^(ingest_log|run_log|schema_migrations)$' or c.relname ~ '(^bars(_|$)|_(revisions|changes)$)' as guarded
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
                and (c.relname ~ '(^bars(_|$)|_revisions$)' or c.relname in ('ingest_log', 'run_log'))
                and c.relname <> 'bar_revisions'
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
-- Forward only: rolling back would lose what was known of dividends. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
