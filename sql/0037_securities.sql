-- migrate:up
-- Which security a ticker is, and was: a series is the history of a security, whatever its ticker was at the time.
--
-- A followed symbol stands for the security that has the ticker now or, if none has, had it last. Bars are stored under
-- the symbol; `coverage.ticker` says under which ticker a day was requested. Days of a ticker that belonged to another
-- security are not part of the series: bars that were stored of them are in `bar_revisions`.

create table market_data.securities (
    security text not null,
    composite_figi text,
    cik text,
    name text,
    type text,
    list_date date,
    first_seen_at timestamptz not null,
    superseded_at timestamptz,
    recorded_at timestamptz not null default clock_timestamp(),
    primary key (security, first_seen_at)
);

comment on table market_data.securities is 'Securities behind the tickers that were ever followed, as the vendor''s reference data describe them: a row is in force during [first_seen_at, superseded_at).';
comment on column market_data.securities.security is 'Identifies it here: the composite FIGI where the vendor gives one, else its ticker and first day, such as ABC@2019-05-01.';
comment on column market_data.securities.composite_figi is 'Financial Instrument Global Identifier of the security in its country.';
comment on column market_data.securities.cik is 'The issuer''s number at the SEC.';
comment on column market_data.securities.name is 'Of the company or the fund.';
comment on column market_data.securities.type is 'The vendor''s code: CS for common stock, ETF, ADRC and others.';
comment on column market_data.securities.list_date is 'Its first day, where the vendor has it.';
comment on column market_data.securities.first_seen_at is 'Since when it has been described so.';
comment on column market_data.securities.superseded_at is 'When another description was stored; null for the present one.';
comment on column market_data.securities.recorded_at is 'When the database stored the row, by its own clock.';

create unique index securities_present on market_data.securities (security) where superseded_at is null;

create table market_data.symbol_history (
    id bigint generated always as identity primary key,
    security text not null,
    symbol text not null,
    valid_from date,
    valid_until date check (valid_until > valid_from),
    source text not null check (source in ('events', 'reference', 'override')),
    reason text,
    first_seen_at timestamptz not null,
    superseded_at timestamptz,
    recorded_at timestamptz not null default clock_timestamp()
);

comment on table market_data.symbol_history is 'Which security had which ticker during [valid_from, valid_until), New York dates, as was known during [first_seen_at, superseded_at). A row is closed when another is known to be right, never changed.';
comment on column market_data.symbol_history.symbol is 'The ticker.';
comment on column market_data.symbol_history.valid_from is 'First day; null where only an end is known.';
comment on column market_data.symbol_history.valid_until is 'First day on which it no longer was the ticker; null while it is.';
comment on column market_data.symbol_history.source is 'events: the vendor''s ticker events. reference: its details of the ticker on a day. override: a file of the project.';
comment on column market_data.symbol_history.reason is 'Why the file says so; null for what the vendor says.';
comment on column market_data.symbol_history.first_seen_at is 'Since when it has been known.';
comment on column market_data.symbol_history.superseded_at is 'When something else was stored; null for what is known at present.';
comment on column market_data.symbol_history.recorded_at is 'When the database stored the row, by its own clock.';

create index symbol_history_symbol on market_data.symbol_history (symbol);
create index symbol_history_security on market_data.symbol_history (security);

create function market_data.symbol_history_as_of(instant timestamptz)
returns setof market_data.symbol_history
language sql stable parallel safe
as $$
    -- A single SELECT, which PostgreSQL merges into the caller's query, as in bars_as_of.
    select h.id, h.security, h.symbol, h.valid_from, h.valid_until, h.source, h.reason, h.first_seen_at,
        h.superseded_at, h.recorded_at
    from market_data.symbol_history as h
    where
        h.first_seen_at <= symbol_history_as_of.instant
        and (h.superseded_at is null or h.superseded_at > symbol_history_as_of.instant)
$$;

comment on function market_data.symbol_history_as_of(timestamptz) is 'Which security had which ticker, as it was known at the instant.';

create table market_data.identity_checks (
    symbol text primary key references market_data.symbols (symbol),
    asked_at timestamptz not null,
    since date not null,
    again boolean not null default false,
    listed_at timestamptz,
    error text
);

comment on table market_data.identity_checks is 'When the vendor was asked which security a followed symbol is.';
comment on column market_data.identity_checks.since is 'From which day on its history was looked at.';
comment on column market_data.identity_checks.again is 'Whether something has changed since, so that the next refresh asks again.';
comment on column market_data.identity_checks.listed_at is 'When its ticker was last looked for in the vendor''s list of active ones, of which a page is read every day.';
comment on column market_data.identity_checks.error is 'Why it is not known, in a sentence; null when it is.';

create table market_data.identity_news (
    id bigint generated always as identity primary key,
    symbol text not null,
    change text not null,
    seen_at timestamptz not null,
    alerted_at timestamptz,
    recorded_at timestamptz not null default clock_timestamp()
);

comment on table market_data.identity_news is 'Renames and reuses of followed symbols, as they became known: each is alerted once.';
comment on column market_data.identity_news.change is 'What changed, in a sentence without the full stop.';
comment on column market_data.identity_news.seen_at is 'When it became known.';
comment on column market_data.identity_news.alerted_at is 'When it was alerted; null before.';

create index identity_news_symbol on market_data.identity_news (symbol, id);

alter table market_data.coverage add column ticker text;

comment on column market_data.coverage.ticker is 'The ticker under which the day was requested, where the security had another one than the symbol; empty for a day on which the symbol was another security, so that nothing was requested. Null: the symbol.';

-- migrate:down
-- Forward only: rolling back would lose what was known when. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
