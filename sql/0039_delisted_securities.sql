-- migrate:up
-- Securities that are followed from their past, and history of securities that nobody rewrites: of a row, only its end
-- may be added, once, and the database itself says when that was stored. Triggers hold this, so that neither the writer
-- nor, by mistake, the owner gets around it.

alter table market_data.symbols add column security text;

comment on column market_data.symbols.security is 'The delisted security that it stands for, because it was followed from its past; null: whichever has the ticker now or, if none has, had it last.';

alter table market_data.securities add column end_recorded_at timestamptz;
alter table market_data.symbol_history add column end_recorded_at timestamptz;
alter table market_data.universe_membership add column end_recorded_at timestamptz;

comment on column market_data.securities.end_recorded_at is 'When the database stored superseded_at, by its own clock.';
comment on column market_data.symbol_history.end_recorded_at is 'When the database stored superseded_at, by its own clock; null before migration 0039.';
comment on column market_data.universe_membership.end_recorded_at is 'When the database stored followed_until, by its own clock; null before migration 0039.';

create or replace function market_data.symbol_history_as_of(instant timestamptz)
returns setof market_data.symbol_history
language sql stable parallel safe
as $$
    -- A single SELECT, which PostgreSQL merges into the caller's query, as in bars_as_of.
    select h.id, h.security, h.symbol, h.valid_from, h.valid_until, h.source, h.reason, h.first_seen_at,
        h.superseded_at, h.recorded_at, h.end_recorded_at
    from market_data.symbol_history as h
    where
        h.first_seen_at <= symbol_history_as_of.instant
        and (h.superseded_at is null or h.superseded_at > symbol_history_as_of.instant)
$$;

create function market_data.only_end_rows() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    ends constant text[] := array['superseded_at', 'followed_until', 'end_recorded_at'];
begin
    if tg_op = 'INSERT' then
        new.recorded_at := clock_timestamp();
        new.end_recorded_at := null;
        return new;
    end if;
    if to_jsonb(old) ->> 'followed_from' = to_jsonb(old) ->> tg_argv[0] then
        new.end_recorded_at := null;
        return new; -- it held for no time, under a clock that stands still: nothing that was known changes
    end if;
    if to_jsonb(new) - ends is distinct from to_jsonb(old) - ends
        or to_jsonb(old) ->> tg_argv[0] is not null
        or to_jsonb(new) ->> tg_argv[0] is null
    then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('%I.%I is append-only: a row may be ended, once, and nothing else', tg_table_schema, tg_table_name);
    end if;
    new.end_recorded_at := clock_timestamp();
    return new;
end;
$$;

comment on function market_data.only_end_rows() is 'Refuses every change of a row but its end, the column that the trigger names.';

create function market_data.only_by_trigger() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_trigger_depth() < 2
        or current_user <> (select pg_get_userbyid(c.relowner) from pg_class as c where c.oid = tg_relid)
    then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('%I.%I is append-only: the database writes it with each change of market_data.symbols', tg_table_schema, tg_table_name);
    end if;
    return null;
end;
$$;

comment on function market_data.only_by_trigger() is 'Refuses statements that do not come from a trigger of the owner.';

-- It is the only one that may write to universe_membership.
alter function market_data.record_membership() security definer set search_path = pg_catalog, pg_temp;
revoke all on function market_data.record_membership() from public;

do $$
declare
    relation text;
begin
    foreach relation in array array['securities', 'symbol_history', 'universe_membership'] loop
        execute format(
            'create trigger %I before insert or update on market_data.%I for each row
            execute function market_data.only_end_rows(%L)',
            relation || '_only_end', relation,
            case relation when 'universe_membership' then 'followed_until' else 'superseded_at' end
        );
        execute format('alter table market_data.%I enable always trigger %I', relation, relation || '_only_end');
        execute format(
            'create trigger %I before delete or truncate on market_data.%I for each statement
            execute function market_data.refuse_change()',
            relation || '_append_only', relation
        );
        execute format('alter table market_data.%I enable always trigger %I', relation, relation || '_append_only');
    end loop;
end;
$$;

create trigger universe_membership_by_trigger before insert or update on market_data.universe_membership
for each statement execute function market_data.only_by_trigger();
alter table market_data.universe_membership enable always trigger universe_membership_by_trigger;

-- migrate:down
-- Forward only: rolling back would open the history of securities. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
