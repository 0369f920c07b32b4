-- migrate:up
-- What people have been told is wrong and not yet told is over, so that each change is told once, also after a restart.

create table market_data.open_alerts (
    kind text not null,
    subject text not null,
    opened_at timestamptz not null,
    detail text not null default '',
    primary key (kind, subject)
);

comment on table market_data.open_alerts is 'Alerts that were sent and are not over: a row goes when its recovery has been told.';
comment on column market_data.open_alerts.kind is 'series: one beyond its tier''s RPO. run: a job whose last run failed; untold: one of which nobody has been told yet. rate_limit, vendor_key: of the vendor as a whole.';
comment on column market_data.open_alerts.subject is 'The series (AAPL|5m), the job and its shard, the run, or empty where there is only one.';
comment on column market_data.open_alerts.opened_at is 'When it was first told.';
comment on column market_data.open_alerts.detail is 'What was told, in short: the same thing again is not told again.';

-- migrate:down
-- Forward only: rolling back would repeat alerts. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
