-- migrate:up
-- The ledger: which session days are held and how well, and every execution of every series.

create table market_data.coverage (
    symbol text not null,
    timeframe text not null check (timeframe in ('5m', '1d')),
    session_date date not null,
    status text not null check (status in ('complete', 'provisional', 'empty_confirmed', 'clamped', 'failed')),
    rows integer not null,
    fetched_at timestamptz not null,
    run_id text not null,
    primary key (symbol, timeframe, session_date)
);

comment on table market_data.coverage is 'Per symbol, fetched timeframe and session day: what the vendor''s answer covers.';
comment on column market_data.coverage.session_date is 'The exchange-local date (New York; UTC for crypto).';
comment on column market_data.coverage.status is
'complete: settled and stored. provisional: stored, read again until settled. empty_confirmed: the vendor gave nothing, twice, after settling. clamped: before the plan''s history. failed: the last attempt failed.';
comment on column market_data.coverage.rows is 'Bars stored for the day.';

create table market_data.ingest_log (
    id bigint generated always as identity primary key,
    run_id text not null,
    symbol text not null,
    timeframe text not null,
    started_at timestamptz not null,
    finished_at timestamptz not null,
    status text not null check (status in ('ok', 'unchanged', 'failed')),
    requests integer not null default 0,
    rate_limited integer not null default 0,
    rows_fetched bigint not null default 0,
    rows_inserted bigint not null default 0,
    rows_updated bigint not null default 0,
    features_written bigint not null default 0,
    fetch_seconds double precision not null default 0,
    store_seconds double precision not null default 0,
    compute_seconds double precision not null default 0,
    error_class text,
    error text
);

comment on table market_data.ingest_log is 'The audit trail: append-only, one row per series per run, committed together with the data it speaks of.';
comment on column market_data.ingest_log.run_id is 'Dagster''s run id.';
comment on column market_data.ingest_log.requests is 'Requests sent for this series: one that serves several timeframes is counted with the fetched one, the market''s splits with the first series of the run.';
comment on column market_data.ingest_log.rate_limited is 'Answers 429 among them.';
comment on column market_data.ingest_log.fetch_seconds is 'Time waiting for and decoding the vendor''s answers.';
comment on column market_data.ingest_log.store_seconds is 'Time in PostgreSQL.';
comment on column market_data.ingest_log.compute_seconds is 'Time resampling and computing features.';

create index ingest_log_run on market_data.ingest_log (run_id);
create index ingest_log_series on market_data.ingest_log (symbol, timeframe, id desc);
create index ingest_log_finished on market_data.ingest_log (finished_at);

create function market_data.refuse_change() returns trigger
language plpgsql
as $$
begin
    raise exception 'market_data.% is append-only', tg_table_name using errcode = 'insufficient_privilege';
end;
$$;

comment on function market_data.refuse_change() is 'Keeps the audit trail append-only.';

create trigger ingest_log_append_only
before update or delete or truncate on market_data.ingest_log
for each statement execute function market_data.refuse_change();

create trigger bar_revisions_append_only
before update or delete or truncate on market_data.bar_revisions
for each statement execute function market_data.refuse_change();

-- migrate:down
-- Forward only: rolling back would drop bars. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
