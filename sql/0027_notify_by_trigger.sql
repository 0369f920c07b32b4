-- migrate:up
-- Whatever changes an answer of the read API notifies `market_data_series`, whoever writes it: the state that every
-- commit of a series writes with its bars and features, a split, or a symbol that is followed or no more.
--
-- The payload is a series' partition key, `AAPL|5m`, or `*` for all. A notification arrives with the rows of its
-- transaction; equal ones of a transaction are one. Bars and features have no trigger of their own: they change with
-- the state, in one transaction, and collecting millions of new rows for a trigger would slow each load down.

create function market_data.notify_series()
returns trigger
language plpgsql
as $$
begin
    if tg_op = 'TRUNCATE' then
        perform pg_notify('market_data_series', '*');
    else
        perform pg_notify('market_data_series', changed.symbol || '|' || changed.timeframe) from changed;
    end if;
    return null;
end;
$$;

comment on function market_data.notify_series() is 'Notifies which series changed; for triggers that call the changed rows `changed`.';

create function market_data.notify_series_of_symbols()
returns trigger
language plpgsql
as $$
begin
    if tg_op = 'TRUNCATE' then
        perform pg_notify('market_data_series', '*');
    else
        perform pg_notify('market_data_series', s.symbol || '|' || s.timeframe)
        from market_data.series_state as s
        where s.symbol in (select changed.symbol from changed);
    end if;
    return null;
end;
$$;

comment on function market_data.notify_series_of_symbols() is 'Notifies the series of the symbols that changed; for triggers that call the changed rows `changed`.';

create trigger series_state_inserted after insert on market_data.series_state
referencing new table as changed for each statement execute function market_data.notify_series();
create trigger series_state_updated after update on market_data.series_state
referencing new table as changed for each statement execute function market_data.notify_series();
create trigger series_state_deleted after delete on market_data.series_state
referencing old table as changed for each statement execute function market_data.notify_series();
create trigger series_state_truncated after truncate on market_data.series_state
for each statement execute function market_data.notify_series();

create trigger splits_inserted after insert on market_data.splits
referencing new table as changed for each statement execute function market_data.notify_series_of_symbols();
create trigger splits_updated after update on market_data.splits
referencing new table as changed for each statement execute function market_data.notify_series_of_symbols();
create trigger splits_deleted after delete on market_data.splits
referencing old table as changed for each statement execute function market_data.notify_series_of_symbols();
create trigger splits_truncated after truncate on market_data.splits
for each statement execute function market_data.notify_series_of_symbols();

create trigger symbols_inserted after insert on market_data.symbols
referencing new table as changed for each statement execute function market_data.notify_series_of_symbols();
create trigger symbols_updated after update on market_data.symbols
referencing new table as changed for each statement execute function market_data.notify_series_of_symbols();
create trigger symbols_deleted after delete on market_data.symbols
referencing old table as changed for each statement execute function market_data.notify_series_of_symbols();

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
