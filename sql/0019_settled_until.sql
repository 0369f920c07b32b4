-- migrate:up
-- Until when bars are final, for whoever must not build on one that may still change.

alter table market_data.series_state add column settled_until timestamptz;

comment on column market_data.series_state.settled_until is 'Bars that start before this lie in days that have settled: only a rare late correction changes them, with the old value kept. Later ones may still change. The local midnight that begins the first session day not held for good, of the 5m bars for series made of those; null before the first commit that knew it.';

-- migrate:down
-- Forward only: rolling back would drop what readers rely on. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
