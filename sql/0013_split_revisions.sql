-- migrate:up
-- What was known of splits when: the vendor corrects dates and ratios, and a backtest has to see what stood there then.

create table market_data.split_revisions (
    symbol text not null,
    execution_date date not null,
    split_from double precision not null,
    split_to double precision not null,
    first_seen_at timestamptz not null,
    superseded_at timestamptz not null
);

comment on table market_data.split_revisions is 'Splits as the vendor listed them before it corrected or withdrew them: they held during [first_seen_at, superseded_at).';
comment on column market_data.split_revisions.superseded_at is 'When a list without this split, or with another ratio, was stored.';
comment on column market_data.splits.first_seen_at is 'When the vendor first listed it to us with this ratio.';

create index split_revisions_symbol on market_data.split_revisions (symbol, execution_date);

create trigger split_revisions_append_only
before update or delete or truncate on market_data.split_revisions
for each statement execute function market_data.refuse_change();

alter table market_data.split_revisions enable always trigger split_revisions_append_only;

create function market_data.splits_as_of(instant timestamptz)
returns setof market_data.splits
language sql stable parallel safe
as $$
    -- A single SELECT, which PostgreSQL merges into the caller's query, as in bars_as_of.
    select s.symbol, s.execution_date, s.split_from, s.split_to, s.first_seen_at
    from market_data.splits as s
    where s.first_seen_at <= splits_as_of.instant
    union all
    select r.symbol, r.execution_date, r.split_from, r.split_to, r.first_seen_at
    from market_data.split_revisions as r
    where r.first_seen_at <= splits_as_of.instant and r.superseded_at > splits_as_of.instant
$$;

comment on function market_data.splits_as_of(timestamptz) is
'The splits that the vendor had listed to us at the instant, with the ratios it gave then; those of later days are among them.';

-- migrate:down
-- Forward only: rolling back would drop bars. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
