-- migrate:up
-- Bars as the vendor published them, the values they replaced, and the splits that adjust them.

create table market_data.bars (
    symbol text not null,
    timeframe text not null,
    ts timestamptz not null,
    open double precision not null,
    high double precision not null,
    low double precision not null,
    close double precision not null,
    volume double precision not null,
    vwap double precision,
    trades bigint,
    ingested_at timestamptz not null,
    primary key (symbol, timeframe, ts)
) partition by list (timeframe);

comment on table market_data.bars is 'RAW bars, never split-adjusted: read bars_adjusted for continuous prices. 5m and 1d are fetched; 15m, 1h and 4h are made of 5m.';
comment on column market_data.bars.ts is 'The bar''s START. A day bar starts at 00:00 New York (crypto: 00:00 UTC); 4h bars start at 04, 08, 12 and 16 New York.';
comment on column market_data.bars.open is 'First trade''s price, US dollars, as traded.';
comment on column market_data.bars.high is 'Highest price, US dollars, as traded.';
comment on column market_data.bars.low is 'Lowest price, US dollars, as traded.';
comment on column market_data.bars.close is 'Last trade''s price, US dollars, as traded; the auction print for day bars.';
comment on column market_data.bars.volume is 'Shares (crypto: units) traded; may be fractional.';
comment on column market_data.bars.vwap is 'Volume-weighted average price, US dollars; null where the vendor sent none.';
comment on column market_data.bars.trades is 'Number of trades; null where the vendor sent none.';
comment on column market_data.bars.ingested_at is 'When these values were stored.';

create table market_data.bars_5m partition of market_data.bars for values in ('5m');
create table market_data.bars_15m partition of market_data.bars for values in ('15m');
create table market_data.bars_1h partition of market_data.bars for values in ('1h');
create table market_data.bars_4h partition of market_data.bars for values in ('4h');
create table market_data.bars_1d partition of market_data.bars for values in ('1d');

create table market_data.bar_revisions (
    symbol text not null,
    timeframe text not null,
    ts timestamptz not null,
    open double precision not null,
    high double precision not null,
    low double precision not null,
    close double precision not null,
    volume double precision not null,
    vwap double precision,
    trades bigint,
    ingested_at timestamptz not null,
    superseded_at timestamptz not null,
    run_id text not null
);

comment on table market_data.bar_revisions is 'The old values of every bar that changed: they held during [ingested_at, superseded_at).';
comment on column market_data.bar_revisions.superseded_at is 'When the vendor''s correction was stored.';
comment on column market_data.bar_revisions.run_id is 'The run that stored the correction.';

create index bar_revisions_series on market_data.bar_revisions (symbol, timeframe, ts, superseded_at);

create table market_data.splits (
    symbol text not null,
    execution_date date not null,
    split_from double precision not null check (split_from > 0),
    split_to double precision not null check (split_to > 0),
    first_seen_at timestamptz not null,
    primary key (symbol, execution_date)
);

comment on table market_data.splits is 'Stock splits: split_from old shares become split_to new ones at 00:00 New York of execution_date. Future ones are listed too.';
comment on column market_data.splits.first_seen_at is 'When the vendor first listed it to us.';

create table market_data.reference_checks (
    name text primary key,
    since date not null,
    verified_at timestamptz not null
);

comment on column market_data.reference_checks.since is 'The first date the answer covered.';
comment on table market_data.reference_checks is 'When market-wide reference data (splits) was last read from the vendor.';

create aggregate market_data.product(double precision) (
    sfunc = float8mul,
    stype = double precision,
    initcond = '1'
);

comment on aggregate market_data.product(double precision) is 'Product of the values; 1 for none.';

create view market_data.bars_adjusted as
select
    b.symbol,
    b.timeframe,
    b.ts,
    b.open * f.factor as open,
    b.high * f.factor as high,
    b.low * f.factor as low,
    b.close * f.factor as close,
    b.volume / f.factor as volume,
    b.vwap * f.factor as vwap,
    b.trades,
    b.ingested_at
from market_data.bars as b
cross join lateral (
    select market_data.product(s.split_from / s.split_to) as factor
    from market_data.splits as s
    where
        s.symbol = b.symbol
        and b.ts < s.execution_date::timestamp at time zone 'America/New_York'
        and s.execution_date <= (market_data.clock() at time zone 'America/New_York')::date
) as f;

comment on view market_data.bars_adjusted is 'Bars with prices and volume adjusted for the splits in force now: price x split_from / split_to for every later split.';

-- migrate:down
-- Forward only: rolling back would drop bars. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
