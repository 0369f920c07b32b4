-- migrate:up
-- The audit log's rows that say "unchanged" are summed up by day once they are old.
--
-- Where 2,000 symbols are refreshed every 15 minutes, the log grows by 960,000 rows a day, of which two thirds say that
-- nothing changed. What changed or failed stays for good, as do warnings and times outside an objective.

create table market_data.ingest_log_days (
    id bigint generated always as identity primary key,
    symbol text not null,
    timeframe text not null,
    day date not null,
    refreshes integer not null,
    first_started_at timestamptz not null,
    last_finished_at timestamptz not null,
    first_recorded_at timestamptz,
    last_recorded_at timestamptz,
    requests bigint not null,
    rate_limited bigint not null,
    bytes bigint not null,
    pages bigint not null,
    rows_fetched bigint not null,
    fetch_seconds double precision not null,
    store_seconds double precision not null,
    compute_seconds double precision not null,
    first_id bigint not null,
    last_id bigint not null,
    digest bytea not null,
    rolled_up_at timestamptz not null default clock_timestamp()
);

comment on table market_data.ingest_log_days is 'Rows of ingest_log that said "unchanged" and nothing else, summed up: as a rule one row per series and day, more where a day was summed up in parts. Append-only, written by roll_up_ingest_log.';
comment on column market_data.ingest_log_days.day is 'UTC, of finished_at.';
comment on column market_data.ingest_log_days.refreshes is 'How many rows: refreshes that found nothing to change.';
comment on column market_data.ingest_log_days.first_started_at is 'The earliest started_at.';
comment on column market_data.ingest_log_days.last_finished_at is 'The latest finished_at.';
comment on column market_data.ingest_log_days.first_recorded_at is 'The earliest recorded_at; null where none had one.';
comment on column market_data.ingest_log_days.last_recorded_at is 'The latest recorded_at; null where none had one.';
comment on column market_data.ingest_log_days.requests is 'The sum, as are the other counters; they mean what they mean in ingest_log.';
comment on column market_data.ingest_log_days.first_id is 'The lowest ingest_log.id among them.';
comment on column market_data.ingest_log_days.last_id is 'The highest ingest_log.id among them; rows between the two that are in ingest_log are not among them.';
comment on column market_data.ingest_log_days.digest is 'SHA-256 of the rows as jsonb texts in the order of their ids, one a line, with time zone UTC: proves what a backup of them holds.';
comment on column market_data.ingest_log_days.rolled_up_at is 'When, by the database''s own clock.';

create index ingest_log_days_series on market_data.ingest_log_days (symbol, timeframe, day);

create table market_data.ingest_log_runs (
    id bigint generated always as identity primary key,
    run_id text not null,
    series text[] not null,
    started_at timestamptz not null,
    finished_at timestamptz not null,
    first_recorded_at timestamptz,
    requests bigint not null,
    rolled_up_at timestamptz not null default clock_timestamp()
);

comment on table market_data.ingest_log_runs is 'The same rows by run: which series it found unchanged. A run may have several rows. Append-only, written by roll_up_ingest_log.';
comment on column market_data.ingest_log_runs.run_id is 'Dagster''s run id.';
comment on column market_data.ingest_log_runs.series is 'Like AAPL|5m; one that had two rows in the run stands here twice.';
comment on column market_data.ingest_log_runs.started_at is 'The earliest started_at of these series.';
comment on column market_data.ingest_log_runs.finished_at is 'The latest finished_at of these series.';
comment on column market_data.ingest_log_runs.first_recorded_at is 'The earliest recorded_at of these rows; null where none had one.';
comment on column market_data.ingest_log_runs.requests is 'Requests sent for these series.';
comment on column market_data.ingest_log_runs.rolled_up_at is 'When, by the database''s own clock.';

create index ingest_log_runs_run on market_data.ingest_log_runs (run_id);

create trigger ingest_log_days_append_only
before update or delete or truncate on market_data.ingest_log_days
for each statement execute function market_data.refuse_change();

create trigger ingest_log_runs_append_only
before update or delete or truncate on market_data.ingest_log_runs
for each statement execute function market_data.refuse_change();

alter table market_data.ingest_log_days enable always trigger ingest_log_days_append_only;
alter table market_data.ingest_log_runs enable always trigger ingest_log_runs_append_only;

-- Rows leave the log in no other way than through roll_up_ingest_log, and only those that say nothing but "unchanged".
create function market_data.refuse_change_of_log() returns trigger
language plpgsql
as $$
begin
    if tg_op = 'DELETE' and current_setting('market_data.rolls_up', true) = pg_current_xact_id()::text then
        return null;
    end if;
    raise exception 'market_data.% is append-only', tg_table_name using errcode = 'insufficient_privilege';
end;
$$;

comment on function market_data.refuse_change_of_log() is 'Keeps the audit log append-only, but for what roll_up_ingest_log sums up.';

create function market_data.refuse_loss_of_log() returns trigger
language plpgsql
as $$
begin
    if exists (
        select from gone
        where status <> 'unchanged' or warning is not null or outside_rpo_since is not null or days_refused > 0
    ) then
        raise exception 'market_data.% keeps what changed, failed or was late', tg_table_name using errcode = 'insufficient_privilege';
    end if;
    return null;
end;
$$;

comment on function market_data.refuse_loss_of_log() is 'Keeps every row of the audit log that says more than "unchanged", whoever deletes.';

drop trigger ingest_log_append_only on market_data.ingest_log;

create trigger ingest_log_append_only
before update or delete or truncate on market_data.ingest_log
for each statement execute function market_data.refuse_change_of_log();

create trigger ingest_log_keeps_news
after delete on market_data.ingest_log
referencing old table as gone
for each statement execute function market_data.refuse_loss_of_log();

alter table market_data.ingest_log enable always trigger ingest_log_append_only;
alter table market_data.ingest_log enable always trigger ingest_log_keeps_news;

create function market_data.roll_up_ingest_log(
    day date, symbols text[], timeframes text[], first_id bigint, last_id bigint
) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
-- Sums up the rows of some symbols and one day (UTC) that say nothing but "unchanged", and takes them out of the log.
-- A series' newest row stays: since when it was last refreshed is read from it. first_id and last_id, both included, only
-- bound where the rows are looked for. Returns how many rows were taken out.
declare
    taken bigint;
begin
    -- Reports look back a day.
    if day > (market_data.clock() at time zone 'UTC')::date - 2 then
        raise exception 'market_data.ingest_log: % is too recent to be summed up', day;
    end if;
    perform set_config('market_data.rolls_up', pg_current_xact_id()::text, true);
    with gone as (
        delete from market_data.ingest_log as l
        where
            l.symbol = any(roll_up_ingest_log.symbols)
            and l.timeframe = any(roll_up_ingest_log.timeframes)
            and l.id between roll_up_ingest_log.first_id and roll_up_ingest_log.last_id
            and l.finished_at >= roll_up_ingest_log.day::timestamptz
            and l.finished_at < (roll_up_ingest_log.day + 1)::timestamptz
            and l.status = 'unchanged'
            and l.warning is null
            and l.outside_rpo_since is null
            and coalesce(l.days_refused, 0) = 0
            and exists (
                select from market_data.ingest_log as n
                where n.symbol = l.symbol and n.timeframe = l.timeframe and n.id > l.id
            )
        returning l.*
    ),
    by_day as (
        insert into market_data.ingest_log_days (
            symbol, timeframe, day, refreshes, first_started_at, last_finished_at, first_recorded_at, last_recorded_at,
            requests, rate_limited, bytes, pages, rows_fetched, fetch_seconds, store_seconds, compute_seconds,
            first_id, last_id, digest
        )
        select
            g.symbol, g.timeframe, roll_up_ingest_log.day, count(*), min(g.started_at), max(g.finished_at),
            min(g.recorded_at), max(g.recorded_at), sum(g.requests), sum(g.rate_limited), sum(g.bytes),
            coalesce(sum(g.pages), 0), sum(g.rows_fetched), sum(g.fetch_seconds), sum(g.store_seconds),
            sum(g.compute_seconds), min(g.id), max(g.id),
            sha256(convert_to(string_agg(to_jsonb(g)::text, chr(10) order by g.id), 'UTF8'))
        from gone as g
        group by g.symbol, g.timeframe
        order by g.symbol, g.timeframe
        returning refreshes
    ),
    by_run as (
        insert into market_data.ingest_log_runs (
            run_id, series, started_at, finished_at, first_recorded_at, requests
        )
        select
            g.run_id, array_agg(g.symbol || '|' || g.timeframe order by g.id), min(g.started_at), max(g.finished_at),
            min(g.recorded_at), sum(g.requests)
        from gone as g
        group by g.run_id
        order by min(g.id)
    )
    select coalesce(sum(refreshes), 0) into taken from by_day;
    perform set_config('market_data.rolls_up', '', true);
    return taken;
end;
$$;

comment on function market_data.roll_up_ingest_log(date, text[], text[], bigint, bigint) is
'Sums up old rows of ingest_log that say "unchanged" in ingest_log_days and ingest_log_runs; returns how many. Runs with the owner''s rights: the only way out of the log.';

revoke all on function market_data.roll_up_ingest_log(date, text[], text[], bigint, bigint) from public;

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
                c.relname ~ '^(ingest_log|ingest_log_days|ingest_log_runs|run_log|schema_migrations|series|series_to_move)$' or c.relname ~ '(^(bars|features|records)(_|$)|_(revisions|changes)$)' as guarded
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
        execute format(
            'grant execute on function market_data.roll_up_ingest_log(date, text[], text[], bigint, bigint) to %I', writers
        );
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

-- migrate:down
-- Forward only: rolling back would open the audit trail. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
