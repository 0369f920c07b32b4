-- migrate:up
-- What is followed: symbols, the state of each of their series, and who asked for more.
--
-- All timestamps are instants (timestamptz, shown in the session's time zone). All intervals are
-- half-open [start, end). A series is one symbol at one timeframe; `ts` is always a bar's START.

create schema if not exists market_data;

comment on schema market_data is
'Bars, features and their audit trail. Instants are timestamptz; intervals are half-open [start, end).';

create function market_data.clock() returns timestamptz
language sql stable
return coalesce(
    nullif(current_setting('market_data.as_of', true), '')::timestamptz,
    now()
);

comment on function market_data.clock() is
'The pipeline''s now: the session setting market_data.as_of when a replay sets it, else the real clock.';

create table market_data.symbols (
    symbol text primary key,
    tier text not null check (tier in ('critical', 'standard', 'low_priority')),
    asset_class text not null check (asset_class in ('us_equity', 'crypto')),
    active boolean not null default true,
    added_at timestamptz not null
);

comment on table market_data.symbols is 'The universe. A removed symbol stays with active = false: its bars and its history remain.';
comment on column market_data.symbols.symbol is 'The vendor''s ticker, case-sensitive: AAPL, BRK.B, KIMpL, X:BTCUSD.';
comment on column market_data.symbols.asset_class is 'Chooses the calendar: us_equity (New York, 04:00 to 20:00) or crypto (round the clock, UTC days).';

create table market_data.series_state (
    symbol text not null references market_data.symbols (symbol),
    timeframe text not null check (timeframe in ('5m', '15m', '1h', '4h', '1d')),
    tier text not null check (tier in ('critical', 'standard', 'low_priority')),
    first_ts timestamptz,
    last_ts timestamptz,
    bar_count bigint not null default 0,
    verified_at timestamptz,
    next_due_at timestamptz,
    features_computed_at timestamptz,
    feature_count bigint not null default 0,
    feature_version integer not null default 0,
    splits_digest text not null default '',
    revision bigint not null default 0,
    base_revision bigint not null default 0,
    quiet_slots integer not null default 0,
    last_error_class text,
    last_error text,
    consecutive_failures integer not null default 0,
    primary key (symbol, timeframe)
);

comment on table market_data.series_state is 'One row per series: what is held and when the next bar is due. Written by the commit that changes the series.';
comment on column market_data.series_state.first_ts is 'Start of the first bar held; null when none is.';
comment on column market_data.series_state.last_ts is 'Start of the last bar held; null when none is.';
comment on column market_data.series_state.verified_at is 'When the vendor''s answer for everything due was last taken in, or found not to be needed.';
comment on column market_data.series_state.next_due_at is 'When the first bar that is missing falls, or fell, due: staleness is greatest(clock() - next_due_at, 0).';
comment on column market_data.series_state.feature_version is 'Version of the feature definitions behind the stored rows; a lower one than the code''s is recomputed.';
comment on column market_data.series_state.splits_digest is 'The splits that the stored features were adjusted with; a different set recomputes them.';
comment on column market_data.series_state.revision is 'Commits that changed the series'' bars.';
comment on column market_data.series_state.base_revision is 'For resampled series: the 5m revision they are made of; a lower one than the 5m row''s is caught up.';
comment on column market_data.series_state.quiet_slots is 'Longest usual run of empty slots within a session; only a longer one at the trailing edge counts as missing.';
comment on column market_data.series_state.consecutive_failures is 'Failed executions since the last good one.';

create index series_state_next_due_at on market_data.series_state (next_due_at);

create table market_data.backfill_requests (
    id bigint generated always as identity primary key,
    symbol text not null,
    timeframe text not null check (timeframe in ('5m', '15m', '1h', '4h', '1d')),
    requested_at timestamptz not null,
    requested_by text not null,
    status text not null default 'queued' check (status in ('queued', 'running', 'done', 'failed', 'rejected')),
    run_id text
);

comment on table market_data.backfill_requests is 'Series that somebody asked for and that were never computed; a sensor turns each into a run.';
comment on column market_data.backfill_requests.requested_by is 'Where the wish came from, for example api.';

create unique index backfill_requests_open
on market_data.backfill_requests (symbol, timeframe)
where status in ('queued', 'running');

-- migrate:down
-- Forward only: rolling back would drop bars. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
