-- migrate:up
-- Which bars a commit touched, so that a copy of a series is brought up to date by what changed since it was made, and
-- not by comparing everything.

alter table market_data.ingest_log
add column changed_from timestamptz,
add column changed_until timestamptz;

comment on column market_data.ingest_log.changed_from is 'Start of the first bar whose values or features this commit stored, changed or removed: all of them lie in [changed_from, changed_until). Null where nothing changed, and for all rows from before migration 0030.';
comment on column market_data.ingest_log.changed_until is 'End of the last bar whose values or features this commit stored, changed or removed.';
comment on column market_data.ingest_log.status is 'ok: bars or features changed. unchanged: none did. failed: nothing was stored.';

create index ingest_log_changes on market_data.ingest_log (symbol, timeframe, id) where status = 'ok';

-- migrate:down
-- Forward only: rolling back would lose what the log says. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
