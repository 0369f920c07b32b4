-- migrate:up
-- Forex and indices beside US stocks and crypto. An index has no volume: null, not 0, of its bars only.

alter table market_data.symbols drop constraint symbols_asset_class_check;
alter table market_data.symbols add constraint symbols_asset_class_check
check (asset_class in ('us_equity', 'crypto', 'forex', 'index'));
alter table market_data.sessions drop constraint sessions_asset_class_check;
alter table market_data.sessions add constraint sessions_asset_class_check
check (asset_class in ('us_equity', 'crypto', 'forex', 'index'));

comment on column market_data.symbols.symbol is 'The vendor''s ticker, case-sensitive: AAPL, BRK.B, KIMpL, X:BTCUSD, C:EURUSD, I:SPX.';
comment on column market_data.symbols.asset_class is 'Chooses the calendar: us_equity and index (New York, 04:00 to 20:00), crypto (round the clock, UTC days) or forex (UTC days, from Sunday 17:00 to Friday 17:00 New York).';
comment on column market_data.sessions.session_date is 'The exchange-local date (New York; UTC for crypto and forex).';
comment on column market_data.sessions.opens_at is 'First instant of a minute bar: 04:00 New York; for crypto and forex 00:00 UTC, on Sundays 17:00 New York for forex. The grid of every intraday timeframe starts at 04:00 New York or 00:00 UTC.';
comment on column market_data.sessions.closes_at is 'First instant after the session: 20:00 New York, 17:00 on early closes; for crypto and forex 24:00 UTC, on Fridays 17:00 New York for forex.';
comment on column market_data.coverage.session_date is 'The exchange-local date (New York; UTC for crypto and forex).';

-- Bars that are stored already have a volume and need no look; each new one is checked, which costs nothing measurable.
alter table market_data.bars alter column volume drop not null;
alter table market_data.bars add constraint volume_unless_index
check (volume is not null or symbol like 'I:%') not valid;
alter table market_data.bar_revisions alter column volume drop not null;
alter table market_data.bar_revisions add constraint volume_unless_index
check (volume is not null or symbol like 'I:%') not valid;
alter table market_data.stray_bars alter column volume drop not null;
alter table market_data.stray_bars add constraint volume_unless_index
check (volume is not null or symbol like 'I:%') not valid;

comment on column market_data.bars.ts is 'The bar''s START. A day bar starts at 00:00 New York (crypto, forex: 00:00 UTC), also of an index, whose day the vendor begins an hour later; 4h bars start at 04, 08, 12 and 16 New York.';
comment on column market_data.bars.volume is 'Shares traded (crypto: units; forex: quotes); may be fractional. Null for indices, which have none.';
comment on column market_data.bars.vwap is 'Volume-weighted average price, US dollars; null where the vendor sent none.';

-- migrate:down
-- Forward only: rolling back would refuse what is stored. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
