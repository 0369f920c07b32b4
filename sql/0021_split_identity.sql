-- migrate:up
-- A split is identified by ticker, day and ratio: two of one day are two splits, and their factors multiply. Rows of the
-- vendor's list that may be about one event are all kept; `counts` says which of them adjust prices.
--
-- Code of before this migration reads the tables as it did. It cannot store a new list of splits, which it reads once a
-- day: a run of it that tries while a deployment is under way fails, and the next run of the present code succeeds.

alter table market_data.splits
add column factor double precision generated always as (split_from / split_to) stored,
add column vendor_id text,
add column counts boolean not null default true,
add column doubt text,
drop constraint splits_pkey,
add primary key (symbol, execution_date, factor);

comment on table market_data.splits is 'Stock splits as the vendor lists them: split_from old shares become split_to new ones at 00:00 New York of execution_date. Future ones are listed too. Those of one day multiply.';
comment on column market_data.splits.factor is 'What prices before the day are multiplied by. With ticker and day it identifies a split: two different ratios on one day are two splits.';
comment on column market_data.splits.vendor_id is 'The vendor''s id of the row; null where it gives none. The same split has another id on another of its endpoints.';
comment on column market_data.splits.counts is 'Whether prices are adjusted by it: false where other rows of the list are about the same event and the prices around, or the later date, speak for those.';
comment on column market_data.splits.doubt is 'Why it is in doubt whether it counts, in a sentence; null when it is not.';
comment on column market_data.splits.first_seen_at is 'Since when the row has been known as it is: the vendor lists this ratio for this day, and it counts or does not.';

alter table market_data.split_revisions
add column vendor_id text,
add column counts boolean not null default true;

comment on column market_data.split_revisions.counts is 'Whether prices were adjusted by it at that time.';
comment on column market_data.split_revisions.vendor_id is 'The vendor''s id of the row; null where it gave none.';

create or replace function market_data.splits_as_of(instant timestamptz)
returns setof market_data.splits
language sql stable parallel safe
as $$
    -- A single SELECT, which PostgreSQL merges into the caller's query, as in bars_as_of.
    select
        s.symbol, s.execution_date, s.split_from, s.split_to, s.first_seen_at, s.factor, s.vendor_id, s.counts, s.doubt
    from market_data.splits as s
    where s.counts and s.first_seen_at <= splits_as_of.instant
    union all
    select
        r.symbol, r.execution_date, r.split_from, r.split_to, r.first_seen_at, r.split_from / r.split_to, r.vendor_id,
        r.counts, null
    from market_data.split_revisions as r
    where r.counts and r.first_seen_at <= splits_as_of.instant and r.superseded_at > splits_as_of.instant
$$;

comment on function market_data.splits_as_of(timestamptz) is
'The splits that prices were adjusted by at the instant: those that the vendor had listed to us by then, with the ratios it gave then, future ones included, except those that did not count.';

create or replace view market_data.bars_adjusted as
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
    select market_data.product(s.factor) as factor
    from market_data.splits as s
    where
        s.symbol = b.symbol
        and s.counts
        and b.ts < s.execution_date::timestamp at time zone 'America/New_York'
        and s.execution_date <= (market_data.clock() at time zone 'America/New_York')::date
) as f;

create table market_data.reference_failures (
    name text primary key,
    since timestamptz not null,
    error text not null
);

comment on table market_data.reference_failures is 'Whole-market answers that cannot be had at present, such as the list of splits: bars are stored all the same, adjusted by what is known. A row goes with the next answer.';
comment on column market_data.reference_failures.since is 'When a request for it failed for the first time since the last answer.';
comment on column market_data.reference_failures.error is 'Why the last request failed, in a sentence.';

-- migrate:down
-- Forward only: rolling back would lose splits. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
