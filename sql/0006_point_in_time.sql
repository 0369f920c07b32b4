-- migrate:up
-- What was known when: bars as they were stored at an instant, and when settled days were last looked at again.

alter table market_data.bar_revisions add column id bigint generated always as identity;

comment on column market_data.bar_revisions.id is 'Ascending in the order in which the corrections were stored.';

create index bar_revisions_run on market_data.bar_revisions (run_id, id);

create function market_data.bars_as_of(symbol text, timeframe text, instant timestamptz)
returns setof market_data.bars
language sql stable parallel safe
as $$
    -- A single SELECT, which PostgreSQL merges into the caller's query: bounds on ts reach the indexes of both relations.
    -- A column added to bars has to be added here.
    select distinct on (v.ts)
        v.symbol, v.timeframe, v.ts, v.open, v.high, v.low, v.close, v.volume, v.vwap, v.trades, v.ingested_at
    from (
        select
            b.symbol, b.timeframe, b.ts, b.open, b.high, b.low, b.close, b.volume, b.vwap, b.trades, b.ingested_at,
            null::bigint as id
        from market_data.bars as b
        where b.symbol = bars_as_of.symbol and b.timeframe = bars_as_of.timeframe and b.ingested_at <= bars_as_of.instant
        union all
        select
            r.symbol, r.timeframe, r.ts, r.open, r.high, r.low, r.close, r.volume, r.vwap, r.trades, r.ingested_at,
            r.id
        from market_data.bar_revisions as r
        where
            r.symbol = bars_as_of.symbol
            and r.timeframe = bars_as_of.timeframe
            and r.ingested_at <= bars_as_of.instant
            and r.superseded_at > bars_as_of.instant
    ) as v
    -- Two versions claim the instant only where a clock was set back: the one stored last counts, null being the present.
    order by v.ts desc, v.id desc
$$;

comment on function market_data.bars_as_of(text, text, timestamptz) is
'The RAW bars of a series as they were stored at the instant, one row per ts, in no order. A version holds during [ingested_at, superseded_at), which is empty for one replaced at the instant it was stored.';

alter table market_data.coverage add column rechecked_at timestamptz;

comment on column market_data.coverage.fetched_at is 'When the vendor gave the answer that the row speaks of; for a day before the plan''s history, when that was found.';
comment on column market_data.coverage.rechecked_at is 'When the vendor was last asked again for the settled day, whatever came of it; null before the first time.';

alter table market_data.series_state add column audited_splits text;

comment on column market_data.series_state.audited_splits is 'The splits_digest under which all settled days were last read again; null before the first audit.';

-- migrate:down
-- Forward only: rolling back would drop bars. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
