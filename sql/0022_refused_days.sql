-- migrate:up
-- One bad row must not stop a series: its day alone is refused, with the reason, and the other days come in.

alter table market_data.coverage add column reason text;

comment on column market_data.coverage.reason is 'Why the last answer about the day was refused: the row and what is wrong with it. Null for a day whose answer could be read.';
comment on column market_data.coverage.doubted_at is 'Since when the vendor''s answers about the day have not been believed: it was refused (see reason), or it lacks or changes much of what is stored. What is stored stays until a second look says the same. Null for a day as the vendor has it.';
comment on column market_data.coverage.status is
'complete: settled and stored. provisional: stored, read again until settled. empty_confirmed: the vendor gave nothing, twice, after settling. clamped: before the plan''s history. failed: the last attempt failed, or its answer was refused (see reason).';

alter table market_data.ingest_log add column days_refused integer;

comment on column market_data.ingest_log.days_refused is 'Session days of which the vendor sent a row that cannot be used: they are requested again by themselves. Null for rows of before this was counted.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
