-- migrate:up
-- Whether bars of a series are to be expected: one that is delisted is not late, and one that has fallen silent is.

alter table market_data.series_state
add column life text not null default 'trading'
check (life in ('trading', 'silent', 'halted', 'delisted', 'unknown')),
add column life_since timestamptz;

comment on column market_data.series_state.life is 'trading; silent: more sessions than usual have passed without a bar while other symbols traded; halted: the vendor lists the ticker as inactive, without a date of delisting; delisted: the vendor says so; unknown: the vendor knows no such ticker and never had a bar of it. Of a halted, delisted or unknown one no bars are expected: it is never late.';
comment on column market_data.series_state.life_since is 'Since when: the start of the last bar of a silent or halted series, the vendor''s date of a delisted one; null for one that trades or never did.';

create table market_data.listings (
    symbol text primary key references market_data.symbols (symbol),
    asked_at timestamptz not null,
    known boolean,
    active boolean not null default false,
    list_date date,
    delisted_at timestamptz,
    name text
);

comment on table market_data.listings is 'What the vendor''s reference data said of a ticker, asked once a day at most, and only while it has no bars where it should.';
comment on column market_data.listings.asked_at is 'When the vendor was last asked.';
comment on column market_data.listings.known is 'Whether the vendor knows the ticker; null when it could not be asked.';
comment on column market_data.listings.active is 'Whether the ticker is listed.';
comment on column market_data.listings.list_date is 'The ticker''s first day, where the vendor has it.';
comment on column market_data.listings.delisted_at is 'When the ticker was delisted; null while it is listed, or where the vendor has no date.';
comment on column market_data.listings.name is 'Of the company or the pair.';

comment on column market_data.coverage.status is
'complete: settled and stored. provisional: stored, read again until settled. empty_confirmed: the vendor gave nothing, twice, after settling; before the first bar of a series, once. clamped: before the plan''s history. failed: the last attempt failed.';

comment on column market_data.open_alerts.kind is 'series: one beyond its tier''s RPO. life: a symbol that is halted, delisted or unknown to the vendor. silence: a market of which the vendor has no bars at all. run: a job whose last run failed; untold: one whose alert was not delivered yet. rate_limit, vendor_key: of the vendor as a whole.';

-- migrate:down
-- Forward only: rolling back would drop what readers rely on. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
