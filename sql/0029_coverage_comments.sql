-- migrate:up
-- 0028 described coverage.status without the refused days that 0022 had added.

comment on column market_data.coverage.status is
'complete: settled and stored. provisional: stored, read again until settled. empty_confirmed: the vendor gave nothing, twice, after settling; before the first bar of a series, once. clamped: before the plan''s history. failed: the last attempt failed, or its answer was refused (see reason).';

comment on column market_data.ingest_log.days_refused is
'Session days of which the vendor sent a row that cannot be used: they are requested again automatically. Null for rows from before this was counted.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
