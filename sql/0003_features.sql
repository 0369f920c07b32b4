-- migrate:up
-- Features: one row per bar, in the same series and at the same ts. Null where a feature's window is not full.

create table market_data.features (
    symbol text not null,
    timeframe text not null,
    ts timestamptz not null,
    log_return double precision,
    return_1h double precision,
    return_1d double precision,
    volatility_20 double precision,
    volatility_50 double precision,
    atr double precision,
    rolling_volume_20 double precision,
    volume_ratio double precision,
    hh boolean,
    hl boolean,
    lh boolean,
    ll boolean,
    trend_direction text,
    structure_label text,
    volatility_regime text,
    trend_regime text,
    compression_regime text,
    features_computed_at timestamptz not null,
    primary key (symbol, timeframe, ts)
) partition by list (timeframe);

comment on table market_data.features is 'The 17 features of each bar, computed from split-adjusted bars up to and including it; nothing looks ahead.';
comment on column market_data.features.ts is 'The bar''s START.';
comment on column market_data.features.log_return is 'ln of close over the previous close.';
comment on column market_data.features.return_1h is 'close over the close one hour earlier in the session, minus 1.';
comment on column market_data.features.return_1d is 'close over the previous sessions last close, minus 1.';
comment on column market_data.features.volatility_20 is 'annualised sample standard deviation of 20 log returns.';
comment on column market_data.features.volatility_50 is 'annualised sample standard deviation of 50 log returns.';
comment on column market_data.features.atr is 'Wilders average true range over 14 bars, adjusted US dollars.';
comment on column market_data.features.rolling_volume_20 is 'mean volume of 20 bars, adjusted shares.';
comment on column market_data.features.volume_ratio is 'volume over rolling_volume_20.';
comment on column market_data.features.hh is 'high above the highest of the 5 bars before.';
comment on column market_data.features.hl is 'low above the lowest of the 5 bars before.';
comment on column market_data.features.lh is 'high below the highest of the 5 bars before.';
comment on column market_data.features.ll is 'low below the lowest of the 5 bars before.';
comment on column market_data.features.trend_direction is 'up, down or neutral: close against the close 5 bars before, 1 %.';
comment on column market_data.features.structure_label is 'bullish, bearish or range.';
comment on column market_data.features.volatility_regime is 'low, medium or high against the median of 50 volatility_50.';
comment on column market_data.features.trend_regime is 'uptrend, downtrend or ranging: EMA 20 against EMA 50.';
comment on column market_data.features.compression_regime is 'compressed or expanded: Bollinger width against its median of 50.';
comment on column market_data.features.features_computed_at is 'When the computation that produced this row ran.';

create table market_data.features_5m partition of market_data.features for values in ('5m');
create table market_data.features_15m partition of market_data.features for values in ('15m');
create table market_data.features_1h partition of market_data.features for values in ('1h');
create table market_data.features_4h partition of market_data.features for values in ('4h');
create table market_data.features_1d partition of market_data.features for values in ('1d');

-- migrate:down
-- Forward only: rolling back would drop bars. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
