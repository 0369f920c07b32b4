-- migrate:up
-- What this database holds bars of: a vendor's and made-up ones must never be in the same tables. The row comes with the
-- first bar, in its transaction, and afterwards every transaction that stores what another source sent is refused. A
-- connection names its source in the setting `market_data.source`; one that names none (a restore) is not checked.

create table market_data.source (
    single boolean primary key default true check (single),
    kind text not null check (kind in ('vendor', 'sandbox', 'replay')),
    host text,
    plan text not null,
    since timestamptz not null
);

comment on table market_data.source is 'Where the bars in this database come from: one row, written with the first bar.';
comment on column market_data.source.kind is 'vendor; sandbox: synthetic bars; replay: bars that a sandbox serves from files.';
comment on column market_data.source.host is 'The vendor''s host name; api.polygon.io also stands for api.massive.com, its newer name. Null unless kind is vendor.';
comment on column market_data.source.plan is 'The subscription with which bars were last stored.';
comment on column market_data.source.since is 'When the first bar was stored; for a database older than this table, when it was first used with it.';

create function market_data.check_source()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    sent jsonb := nullif(current_setting('market_data.source', true), '')::jsonb;
    held market_data.source%rowtype;
begin
    if sent is null then
        return null;
    end if;
    select * into held from market_data.source;
    if not found then
        insert into market_data.source (kind, host, plan, since)
        values (sent ->> 'kind', sent ->> 'host', sent ->> 'plan', market_data.clock())
        on conflict do nothing; -- waits for another transaction that does the same
        select * into held from market_data.source;
    end if;
    if (held.kind, held.host) is distinct from (sent ->> 'kind', sent ->> 'host') then
        raise exception using
            errcode = 'MD001',
            message = format(
                'the database holds bars of %s, and these are from %s',
                concat_ws(' ', held.kind, held.host), concat_ws(' ', sent ->> 'kind', sent ->> 'host')
            );
    end if;
    if held.plan is distinct from sent ->> 'plan' then
        update market_data.source set plan = sent ->> 'plan';
    end if;
    return null;
end;
$$;

comment on function market_data.check_source() is 'Remembers the source of the first bar, and refuses what another source sent. A new partition of bars needs its trigger.';

revoke all on function market_data.check_source() from public;

-- Bars are written to their partition.
create trigger check_source before insert on market_data.bars_5m execute function market_data.check_source();
create trigger check_source before insert on market_data.bars_15m execute function market_data.check_source();
create trigger check_source before insert on market_data.bars_1h execute function market_data.check_source();
create trigger check_source before insert on market_data.bars_4h execute function market_data.check_source();
create trigger check_source before insert on market_data.bars_1d execute function market_data.check_source();
create trigger check_source before insert on market_data.bars execute function market_data.check_source();
create trigger check_source before insert on market_data.splits execute function market_data.check_source();
create trigger check_source before insert on market_data.market_days execute function market_data.check_source();

-- migrate:down
-- Forward only: rolling back would forget what the bars are. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
