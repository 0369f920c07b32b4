-- migrate:up
-- Settling a partition locked every partition of its timeframe, and so waited for a vacuum of any of them: with autovacuum
-- at work it failed night after night.

create or replace function market_data.settle_partition(name text) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
-- Writes a partition again in the order of its key, and swaps it for the old one. Readers and writers go on but for the
-- swap, which takes milliseconds. Returns how many rows it has.
declare
    fresh constant text := settle_partition.name || '_settling';
    began constant timestamptz := clock_timestamp();
    patience constant text := coalesce(nullif(current_setting('lock_timeout'), '0'), '1s');
    parent text;
    bound text;
    condition text;
    number integer;
    member text;
    held bigint;
begin
    if not pg_try_advisory_xact_lock(hashtext('market_data.settle_partition')) then
        raise exception using errcode = 'lock_not_available', message = 'another partition is being settled';
    end if;
    select p.relname, pg_get_expr(c.relpartbound, c.oid), pg_get_partition_constraintdef(c.oid)
    into parent, bound, condition
    from pg_class as c
    inner join pg_inherits as i on i.inhrelid = c.oid
    inner join pg_class as p on p.oid = i.inhparent
    where
        c.relname = settle_partition.name
        and c.relnamespace = 'market_data'::regnamespace
        and c.relkind = 'r'
        and p.relname ~ '^records_';
    if not found then
        raise exception 'market_data.% is no partition of records', settle_partition.name;
    end if;
    -- A vacuum of the partition gives way to whoever waits for it, after a second: it is ended here, where no reader waits.
    set local lock_timeout = '30s';
    execute format('lock table only market_data.%I in share update exclusive mode', settle_partition.name);
    -- The check is what the partition's bounds say, so that attaching it reads no row.
    execute format(
        'create table market_data.%1$I (like market_data.%2$I including defaults including constraints, check (%3$s))
        with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
        autovacuum_analyze_scale_factor = 0.02)',
        fresh, settle_partition.name, condition
    );
    foreach member in array array['market_data_reader', 'market_data_writer'] loop
        if to_regrole(member) is not null then
            execute format('revoke all on market_data.%I from %I', fresh, member);
            execute format('grant select on market_data.%I to %I', fresh, member);
        end if;
    end loop;
    execute format('insert into market_data.%I select * from market_data.%I order by series, ts', fresh, settle_partition.name);
    execute format('alter table market_data.%I add primary key (series, ts) with (fillfactor = 100)', fresh);
    execute format('analyze market_data.%I', fresh);
    -- Whoever waits for the swap makes all others wait: rather try again the next night. The other partitions are not
    -- locked, as a vacuum may be at work in any of them.
    perform set_config('lock_timeout', patience, true);
    execute format(
        'lock table only market_data.%I, only market_data.%I in access exclusive mode', parent, settle_partition.name
    );
    set local lock_timeout = default;
    -- What was stored meanwhile, and in transactions that were open then.
    for number in
        select distinct s.id
        from market_data.ingest_log as l
        inner join market_data.series as s on s.symbol = l.symbol and s.timeframe = l.timeframe
        where l.status = 'ok' and l.recorded_at >= began - interval '1 hour' and format('records_%s', s.timeframe) = parent
    loop
        execute format('delete from market_data.%I where series = $1', fresh) using number;
        execute format(
            'insert into market_data.%I select * from market_data.%I where series = $1 order by ts',
            fresh, settle_partition.name
        ) using number;
    end loop;
    execute format('alter table market_data.%I detach partition market_data.%I', parent, settle_partition.name);
    execute format('drop table market_data.%I', settle_partition.name);
    execute format('alter table market_data.%I rename to %I', fresh, settle_partition.name);
    execute format('alter index market_data.%I rename to %I', fresh || '_pkey', settle_partition.name || '_pkey');
    execute format('alter table market_data.%I attach partition market_data.%I %s', parent, settle_partition.name, bound);
    execute format('alter table market_data.%I drop constraint %I', settle_partition.name, fresh || '_check');
    execute format('select count(*) from market_data.%I', settle_partition.name) into held;
    insert into market_data.settled_partitions (partition, settled_at, rows, rewritten)
    values (settle_partition.name, market_data.clock(), held, true)
    on conflict (partition) do update
        set settled_at = excluded.settled_at, rows = excluded.rows, rewritten = excluded.rewritten;
    return held;
end;
$$;

comment on function market_data.settle_partition(text) is 'Writes a partition of records again in the order of its key; returns how many rows it has. Fails with lock_not_available if the partition is in use for longer than lock_timeout, or than a second if that is not set.';

revoke all on function market_data.settle_partition(text) from public;

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
