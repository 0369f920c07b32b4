-- migrate:up
-- The newest day bars as whole-market answers gave them, so that one request serves every tier of the universe; and
-- what the answers to each series weighed, so that the next backfill's size can be told beforehand.

create table market_data.market_days (
    session_date date not null,
    symbol text not null,
    fetched_at timestamptz not null,
    open double precision,
    high double precision,
    low double precision,
    close double precision,
    volume double precision,
    vwap double precision,
    trades bigint,
    primary key (session_date, symbol)
);

comment on table market_data.market_days is 'The vendor''s last grouped-daily answer of each of the last days, for the symbols that were followed then. A cache: worth nothing after two weeks, emptied as it is written.';
comment on column market_data.market_days.session_date is 'New York date of the day bar.';
comment on column market_data.market_days.fetched_at is 'When the vendor was asked: a series that takes its bar from here is held as of then.';
comment on column market_data.market_days.open is 'US dollars, raw; null, as all values then, when the answer had no row for the symbol, which proves nothing.';

alter table market_data.ingest_log add column bytes bigint not null default 0;

comment on column market_data.ingest_log.bytes is 'Bodies of the answers as they came over the wire, compressed where the vendor compresses.';

-- migrate:down
-- Forward only: rolling back would drop what was learned. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
