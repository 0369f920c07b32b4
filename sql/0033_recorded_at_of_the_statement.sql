-- migrate:up
-- Bars are stored by COPY, which puts a page of rows into a table at once unless a default is volatile: then it stores,
-- and logs for recovery, each row on its own. clock_timestamp() is volatile; statement_timestamp() is not, and of a
-- COPY it is the instant at which the server received it, the same for all of its rows.
--
-- A writer could thereby backdate rows by holding a COPY open. A statement that has stored bars for longer than a minute
-- is therefore refused at its end: of each row, recorded_at is at most that minute early. A statement of ours takes
-- seconds, and one that waits a minute for a lock is ended as well. Whoever may give recorded_at anyway (the owner, who
-- restores or moves millions of rows) may take longer.

alter table market_data.bars alter column recorded_at set default statement_timestamp();
comment on column market_data.bars.recorded_at is 'When the database received the statement that stored these values, at most a minute before it had them unless the owner stored them, by its own clock, which the pipeline cannot set; null before migration 0025.';

create function market_data.refuse_slow_statement()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if not has_column_privilege(current_user, tg_relid, 'recorded_at', 'insert') then
        raise exception using
            errcode = 'query_canceled',
            message = 'bars must be stored within a minute of the start of the statement, which is their recorded_at';
    end if;
    return null;
end;
$$;

comment on function market_data.refuse_slow_statement() is 'Refuses rows whose statement began too long before its end; for triggers that know how long. A new partition of bars needs its trigger.';

do $$
declare
    relation text;
begin
    foreach relation in array array['bars', 'bars_5m', 'bars_15m', 'bars_1h', 'bars_4h', 'bars_1d'] loop
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

-- migrate:down
-- Forward only: rolling back would slow each load down. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
