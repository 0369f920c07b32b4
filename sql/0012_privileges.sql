-- migrate:up
-- Who may do what: an owner for migrations, a writer for the pipeline, a reader for the API and for people.
--
-- The roles belong to the server, the grants to this database: several databases of one server share the names. They
-- are given by a function and not by this file alone, because whoever migrates may not be allowed to make roles.

-- What pyrate-limiter would make at its first call, which the writer may not.
create table if not exists market_data.ratelimit___polygon (
    name varchar,
    weight smallint,
    item_timestamp timestamp
);

create index if not exists timestampindex_polygon on market_data.ratelimit___polygon (item_timestamp);

comment on table market_data.ratelimit___polygon is 'Calls of the last minutes to the vendor: the bucket of pyrate-limiter, in its own format (UTC without a zone).';

create function market_data.supersede_bars(
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
        symbol, timeframe, ts, open, high, low, close, volume, vwap, trades, ingested_at, superseded_at, run_id
    )
    select
        o.symbol, o.timeframe, o.ts, o.open, o.high, o.low, o.close, o.volume, o.vwap, o.trades, o.ingested_at,
        supersede_bars.superseded_at, supersede_bars.run_id
    from old as o
$$;

comment on function market_data.supersede_bars(text, text, timestamptz[], timestamptz, text) is
'Moves the bars that start at the given instants to bar_revisions. Runs with the owner''s rights: the only way for the writer to take a bar out, so no value changes without a trace.';

revoke all on function market_data.supersede_bars(text, text, timestamptz[], timestamptz, text) from public;

-- Also where triggers are switched off for a session (session_replication_role), which a superuser can do.
alter table market_data.ingest_log enable always trigger ingest_log_append_only;
alter table market_data.bar_revisions enable always trigger bar_revisions_append_only;

create function market_data.apply_privileges(login text)
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
                c.relname ~ '^(ingest_log|run_log|bar_revisions|schema_migrations)$' or c.relname ~ '^bars(_|$)' as guarded
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
        execute format('grant insert on market_data.ingest_log, market_data.run_log to %I', writers);
        for relation in
            select c.oid::regclass as name from pg_catalog.pg_class as c
            where
                c.relnamespace = 'market_data'::regnamespace and c.relkind in ('r', 'p') and c.relname ~ '^bars(_|$)'
        loop
            execute format('grant insert on %s to %I', relation.name, writers);
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

comment on function market_data.apply_privileges(text) is
'Makes the roles market_data_writer and market_data_reader where they lack, gives them to the caller and to the login named, and grants what they may do here. Returns the SQL that an administrator has to run first, null when nothing is left. Run by every `market-data migrate`. A table that is only ever appended to is to be named in it.';

revoke all on function market_data.apply_privileges(text) from public;

-- migrate:down
-- Forward only: rolling back would open the audit trail. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
