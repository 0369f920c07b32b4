-- migrate:up
-- The backups that were made of this database, so that every process can tell how old the last one is.

create table market_data.backups (
    id bigint generated always as identity primary key,
    taken_at timestamptz not null,
    finished_at timestamptz not null,
    location text not null,
    bytes bigint not null,
    next_due_at timestamptz
);

comment on table market_data.backups is 'Backups that were finished: one row each. A restored database knows those before the one that it was restored from.';
comment on column market_data.backups.taken_at is 'What the backup holds: every transaction that was committed before this instant of the database''s clock.';
comment on column market_data.backups.finished_at is 'When it was complete and in its place, by the database''s clock.';
comment on column market_data.backups.location is 'host:folder of it, as the program that made it saw them.';
comment on column market_data.backups.bytes is 'Size of its files.';
comment on column market_data.backups.next_due_at is 'By when the next one has to be finished; null when none is scheduled.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
