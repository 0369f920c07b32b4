-- migrate:up
-- The vendor withdraws whole days too. One such answer may be a mistake of its own, so two are asked for.

alter table market_data.coverage add column doubted_at timestamptz;

comment on column market_data.coverage.doubted_at is 'When the answer of fetched_at had no bar of the day though rows are stored: they stay until a second look finds none again. Null for a day as the vendor has it.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
