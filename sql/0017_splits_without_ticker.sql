-- migrate:up
-- A split that tells no ticker fails nobody, since it may be anybody's; it is told by every run.

comment on column market_data.unreadable_splits.symbol is 'Empty for a row that tells no ticker: no series fails for it, each run warns of it, and known splits that such a list no longer names stay.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
