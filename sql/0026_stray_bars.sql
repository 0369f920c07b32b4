-- migrate:up
-- A bar that lies in no session is not part of a series, whichever request brought it. What was left out is kept here,
-- because it may be the calendar that is wrong.

create table market_data.stray_bars (
    symbol text not null,
    timeframe text not null check (timeframe in ('5m', '1d')),
    ts timestamptz not null,
    open double precision not null,
    high double precision not null,
    low double precision not null,
    close double precision not null,
    volume double precision not null,
    vwap double precision,
    trades double precision,
    seen_at timestamptz not null,
    primary key (symbol, timeframe, ts)
);

comment on table market_data.stray_bars is 'Bars that the vendor sent although they lie in no session: the newest 1,000 of each fetched series. Not part of the series; nothing is computed from them.';
comment on column market_data.stray_bars.ts is 'The bar''s start.';
comment on column market_data.stray_bars.seen_at is 'When the vendor last sent it.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
