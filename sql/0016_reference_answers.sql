-- migrate:up
-- What answers for the whole market cost, so that the next ones can be planned; and the followed tickers whose splits
-- the vendor lists in a way that nobody can read, so that they fail and no other does.

alter table market_data.reference_checks
add column requests integer not null default 1,
add column bytes bigint not null default 0;

comment on table market_data.reference_checks is 'When market-wide reference data (the list of splits; a day of all stocks) was last read from the vendor, and what that cost.';
comment on column market_data.reference_checks.requests is 'Pages of the answer.';
comment on column market_data.reference_checks.bytes is 'The answer as it came over the wire; 0 when that was not weighed.';

create table market_data.unreadable_splits (
    symbol text primary key,
    error text not null,
    seen_at timestamptz not null
);

comment on table market_data.unreadable_splits is 'Tickers whose splits could not be read in the last list of the vendor: their series fail until a list is readable, because nobody knows what to adjust them with.';
comment on column market_data.unreadable_splits.error is 'What is wrong with the row, in a sentence.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
