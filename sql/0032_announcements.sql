-- migrate:up
-- What the vendor announces about trading days, so that a closing that the calendar does not know makes nothing late.

create table market_data.announcements (
    asset_class text not null check (asset_class in ('us_equity', 'crypto')),
    session_date date not null,
    source text not null check (source in ('upcoming', 'now')),
    status text not null check (status in ('closed', 'early_close')),
    name text,
    closes_at timestamptz,
    first_seen_at timestamptz not null,
    withdrawn_at timestamptz,
    recorded_at timestamptz not null default clock_timestamp(),
    primary key (asset_class, session_date, source, first_seen_at)
);

comment on table market_data.announcements is 'Holidays, early closes and closings as the vendor announces them, in force during [first_seen_at, withdrawn_at). The calendar of sessions stays the base: a closing only says that no bars of that day are due.';
comment on column market_data.announcements.session_date is 'The exchange-local date.';
comment on column market_data.announcements.source is 'upcoming: its list of coming days. now: its market status, asked during a session in which nobody had a bar.';
comment on column market_data.announcements.status is 'closed: no trading on that day. early_close: regular trading ends at closes_at.';
comment on column market_data.announcements.name is 'Of the holiday, or what the market status said.';
comment on column market_data.announcements.closes_at is 'When regular trading ends on an early close; null otherwise.';
comment on column market_data.announcements.first_seen_at is 'When the vendor first said so.';
comment on column market_data.announcements.withdrawn_at is 'When it no longer said so; null while it does.';
comment on column market_data.announcements.recorded_at is 'When the database stored the row, by its own clock.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
