-- migrate:up
-- Who asked for each run, when, why and for what: Dagster's history can be pruned or lost, the audit trail cannot.

create table market_data.run_log (
    id bigint generated always as identity primary key,
    run_id text not null,
    started_at timestamptz not null,
    job text not null,
    trigger text not null,
    requested_by text not null,
    reason text not null,
    series text not null
);

comment on table market_data.run_log is 'One row per run that writes series, added before its first series: append-only. What came of each series is in ingest_log.';
comment on column market_data.run_log.run_id is 'Dagster''s run id.';
comment on column market_data.run_log.trigger is 'What started it: schedule, sensor, retry, backfill, cli or manual.';
comment on column market_data.run_log.requested_by is 'The schedule''s or sensor''s name, or user@host; dagster for a run launched in its own UI, which knows no users.';
comment on column market_data.run_log.reason is 'Why, in words: the scheduled time, the series that were late, the request that was queued.';
comment on column market_data.run_log.series is 'What it was for: symbols and timeframes, or the range of partitions.';

create index run_log_run on market_data.run_log (run_id);

create trigger run_log_append_only
before update or delete or truncate on market_data.run_log
for each statement execute function market_data.refuse_change();

alter table market_data.run_log enable always trigger run_log_append_only;

-- migrate:down
-- Forward only: rolling back would drop the audit trail. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
