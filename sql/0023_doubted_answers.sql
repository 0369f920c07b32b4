-- migrate:up
-- An answer that takes away or changes much of a stored day is not believed until a second one says the same.

alter table market_data.coverage add column answer_digest text;

comment on column market_data.coverage.answer_digest is 'Of the bars that the last answer had for a doubted day: a second look that says the same has the same digest. Null for a day that is not doubted.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
