-- migrate:up
-- Health and the status page ask what failed, what was warned of and how many requests were sent in the last day. At
-- thousands of symbols each of the three read every row of that day.

create index ingest_log_failed on market_data.ingest_log (finished_at desc, id desc) where status = 'failed';
create index ingest_log_warned on market_data.ingest_log (finished_at) where warning is not null;
create index ingest_log_requested on market_data.ingest_log (finished_at) include (requests, rate_limited)
where requests > 0;

comment on index market_data.ingest_log_failed is 'For the newest failures.';
comment on index market_data.ingest_log_warned is 'For what was warned of lately.';
comment on index market_data.ingest_log_requested is 'For how many requests were sent lately.';

-- migrate:down
-- Forward only: a mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
