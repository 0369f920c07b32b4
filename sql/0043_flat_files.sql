-- migrate:up
-- The vendor's flat files, the second way in: which file, in which version, a day's bars came from.
--
-- A file that the vendor replaces has another ETag and gets a row of its own; the days that were read from the earlier
-- one are read again, and what differs is a correction like any other.

create table market_data.flat_files (
    id integer generated always as identity primary key,
    dataset text not null,
    session_date date not null,
    etag text not null,
    bytes bigint not null,
    published_at timestamptz not null,
    first_listed_at timestamptz not null,
    unique (dataset, session_date, etag)
);

comment on table market_data.flat_files is 'Versions of the vendor''s flat files from which bars were read: one file holds a day of the whole market.';
comment on column market_data.flat_files.id is 'What coverage.file_id names.';
comment on column market_data.flat_files.dataset is 'The vendor''s folder: minute_aggs_v1 or day_aggs_v1.';
comment on column market_data.flat_files.session_date is 'The exchange-local date (New York) that the file holds.';
comment on column market_data.flat_files.etag is 'The ETag of the version, as the object store gives it.';
comment on column market_data.flat_files.bytes is 'Its size, compressed.';
comment on column market_data.flat_files.published_at is 'When the vendor stored this version.';
comment on column market_data.flat_files.first_listed_at is 'When a run found it first.';

alter table market_data.coverage add column file_id integer;

comment on column market_data.coverage.file_id is 'The version of the flat file that the day''s bars came from, see flat_files; null for REST. Bars from a file have no vwap until REST fills it.';

-- migrate:down
-- Forward only: rolling back would lose where bars came from. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
