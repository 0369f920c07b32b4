-- migrate:up
-- Reading a value from a row takes about 50 ns of the server's time, whatever asks for it: a second for ten symbols' year
-- of 5-minute bars. What has settled is therefore also kept in columns, a series' rows of a partition in one row here, which
-- readers take instead. The rows of records stay what they are: these are derived from them, and deleted in the same
-- transaction as one of them changes.

create table market_data.packed_records (
    series integer not null,
    partition oid not null,
    first_ts timestamptz not null,
    end_ts timestamptz not null,
    rows integer not null,
    times bytea not null,
    bars bytea not null,
    features bytea not null,
    primary key (series, partition)
);

comment on table market_data.packed_records is 'The rows of one series in one settled partition of records, once more, in columns: what readers take instead of them. A row is deleted with any change of what it was made of, and made again at night; all may be deleted at any time.';
comment on column market_data.packed_records.series is 'See the table series.';
comment on column market_data.packed_records.partition is 'The partition of records that it was made of; readers ignore what was made of one that is no longer there.';
comment on column market_data.packed_records.first_ts is 'Where the partition begins.';
comment on column market_data.packed_records.end_ts is 'Where the partition ends, exclusive.';
comment on column market_data.packed_records.rows is 'How many rows of records it holds, all that the series has there.';
comment on column market_data.packed_records.times is 'Arrow IPC stream: ts.';
comment on column market_data.packed_records.bars is 'Arrow IPC stream: the columns of the bars, in the order of ts; NaN for null.';
comment on column market_data.packed_records.features is 'Arrow IPC stream: the columns of the features, in the order of ts, and whether there are any; NaN for null. Own features are in records alone.';

-- The values are compressed already.
alter table market_data.packed_records alter column times set storage external;
alter table market_data.packed_records alter column bars set storage external;
alter table market_data.packed_records alter column features set storage external;

create function market_data.unpack_changed() returns trigger
language plpgsql
as $$
-- Of a row of a packed partition that was stored, changed or removed.
begin
    if tg_op = 'TRUNCATE' then
        delete from market_data.packed_records as p where p.partition = tg_relid;
        return null;
    end if;
    if tg_op <> 'INSERT' then
        delete from market_data.packed_records as p where p.series = old.series and p.partition = tg_relid;
    end if;
    if tg_op <> 'DELETE' then
        delete from market_data.packed_records as p where p.series = new.series and p.partition = tg_relid;
    end if;
    return null;
end;
$$;

comment on function market_data.unpack_changed() is 'Deletes the packed rows of a series in a partition in which a row of it changes.';

create function market_data.unpack_series(series integer) returns void
language plpgsql
as $$
-- Before a transaction changes thousands of rows of a series: they need not be looked at one by one until it ends.
begin
    delete from market_data.packed_records as p where p.series = unpack_series.series;
    perform set_config('market_data.unpacked_series', unpack_series.series::text, true);
end;
$$;

comment on function market_data.unpack_series(integer) is 'Deletes all packed rows of a series, of which this transaction changes many.';

create function market_data.hold_for_packing(name text, out partition oid, out first_ts timestamptz, out end_ts timestamptz)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
-- Lets nobody store in a partition until the end of this transaction, and sees to it that from then on whoever does
-- unpacks what it changes. Others wait behind it as long as lock_timeout lets it wait.
declare
    bound text;
    event text;
begin
    select c.oid, pg_get_expr(c.relpartbound, c.oid) into hold_for_packing.partition, bound
    from pg_class as c
    inner join pg_inherits as i on i.inhrelid = c.oid
    inner join pg_class as p on p.oid = i.inhparent
    where
        c.relname = hold_for_packing.name
        and c.relnamespace = 'market_data'::regnamespace
        and c.relkind = 'r'
        and p.relname ~ '^records_';
    if not found then
        raise exception 'market_data.% is no partition of records', hold_for_packing.name;
    end if;
    first_ts := substring(bound from 'FROM \(''([^'']+)''\)')::timestamptz;
    end_ts := substring(bound from 'TO \(''([^'']+)''\)')::timestamptz;
    perform set_config('market_data.unpacked_series', '', true);
    execute format('lock table market_data.%I in share row exclusive mode', hold_for_packing.name);
    if exists (
        select from pg_trigger as t where t.tgrelid = hold_for_packing.partition and t.tgname = 'unpack_truncated'
    ) then
        return;
    end if;
    foreach event in array array['insert', 'update', 'delete', 'truncate'] loop
        execute format(
            'create trigger unpack_%1$s after %2$s on market_data.%3$I %4$s execute function market_data.unpack_changed()',
            case event when 'insert' then 'inserted' else event || 'd' end,
            event,
            hold_for_packing.name,
            case
                when event = 'truncate' then 'for each statement'
                else format(
                    'for each row when (%s.series::text is distinct from current_setting(''market_data.unpacked_series'', true)%s)',
                    case event when 'insert' then 'new' else 'old' end,
                    case event when 'update' then ' or new.series <> old.series' else '' end
                )
            end
        );
        -- Also where rows are stored by a replica of another server, or with triggers switched off.
        execute format(
            'alter table market_data.%I enable always trigger unpack_%s',
            hold_for_packing.name, case event when 'insert' then 'inserted' else event || 'd' end
        );
    end loop;
end;
$$;

comment on function market_data.hold_for_packing(text) is 'Keeps a partition of records from being written to until the end of the transaction, and watches it from then on; returns its oid and bounds.';

revoke all on function market_data.hold_for_packing(text) from public;

-- What apply_privileges grants, whatever else migrations before this one have added to it.
do $$
declare
    before constant text := pg_get_functiondef('market_data.apply_privileges(text)'::regprocedure);
    anchor constant text := 'execute format(''grant insert on market_data.backfill_requests to %I'', readers);';
    after constant text := replace(
        before,
        anchor,
        'execute format(''grant execute on function market_data.hold_for_packing(text) to %I'', writers);' || E'\n        ' || anchor
    );
begin
    if after = before then
        raise exception 'market_data.apply_privileges is not as this migration expects it';
    end if;
    execute after;
end;
$$;

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
