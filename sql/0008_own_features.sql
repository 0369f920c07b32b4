-- migrate:up
-- Features that a project declares for itself, beside the 17, and what went wrong without failing a series.

alter table market_data.features add column extra jsonb;

comment on column market_data.features.extra is 'The project''s own features by name: numbers, booleans or texts, null where one has no value; null when none is declared. Read one as (extra ->> ''name'')::double precision.';

alter table market_data.series_state add column own_features text not null default '';

comment on column market_data.series_state.own_features is 'Fingerprint of the own features behind the stored rows, with a trailing ! where one of them failed; another one than the code''s recomputes them.';

alter table market_data.ingest_log add column warning text;

comment on column market_data.ingest_log.warning is 'What went wrong and did not fail the series, for example an own feature that raises; null when nothing did.';

-- migrate:down
-- Forward only: rolling back would drop features. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
