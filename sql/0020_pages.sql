-- migrate:up
-- How many pages a series' answers took, so that the next ones can be planned.

alter table market_data.ingest_log add column pages integer;

comment on column market_data.ingest_log.pages is 'Pages of the series'' own answers, each counted once: without attempts that failed and without what was asked for the whole market. Null for rows of before this was counted.';

-- migrate:down
-- Forward only: rolling back would drop what was learned. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
