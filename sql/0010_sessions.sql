-- migrate:up
-- The trading calendar for SQL: when bars may exist, as the pipeline's calendar has it.

create table market_data.sessions (
    asset_class text not null check (asset_class in ('us_equity', 'crypto')),
    session_date date not null,
    day_start timestamptz not null,
    day_end timestamptz not null,
    opens_at timestamptz not null,
    closes_at timestamptz not null,
    early_close boolean not null,
    primary key (asset_class, session_date)
);

comment on table market_data.sessions is 'Trading sessions with their extended hours [opens_at, closes_at). Written by the quality job whenever the calendar behind it has changed; holidays have no row.';
comment on column market_data.sessions.session_date is 'The exchange-local date (New York; UTC for crypto).';
comment on column market_data.sessions.day_start is 'The local midnight at which the day bar starts; day_end, its end, is the next one, 23 or 25 hours later twice a year.';
comment on column market_data.sessions.opens_at is 'First instant of a minute bar: 04:00 New York; 00:00 UTC for crypto. The grid of every intraday timeframe starts here.';
comment on column market_data.sessions.closes_at is 'First instant after the session: 20:00 New York, 17:00 on early closes; 24:00 UTC for crypto.';

-- migrate:down
-- Forward only: rolling back would drop what checks rely on. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
