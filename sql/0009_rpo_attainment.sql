-- migrate:up
-- For how much of its time a series kept its tier's promise: the stretches in which it did not, in the audit trail.

alter table market_data.symbols add column followed_since timestamptz;

comment on column market_data.symbols.followed_since is 'When it was last taken into the universe; null for added_at, where it never left.';

alter table market_data.ingest_log add column outside_rpo_since timestamptz;

comment on column market_data.ingest_log.outside_rpo_since is
'Until this execution finished the series was outside its tier''s RPO since this instant: [outside_rpo_since, finished_at). Null when it was inside throughout.';

create index ingest_log_outside_rpo on market_data.ingest_log (finished_at) where outside_rpo_since is not null;

create function market_data.outside_rpo_since(
    symbol text, timeframe text, due_at timestamptz, rpo interval, until timestamptz
) returns timestamptz
language sql stable
as $$
    -- greatest() passes over nulls: a series that was never computed lacks its first bar since its symbol is followed,
    -- and one without an execution has none whose stretch could have ended already.
    select greatest(
        promised.ends_at,
        (
            select l.finished_at from market_data.ingest_log as l
            where l.symbol = outside_rpo_since.symbol and l.timeframe = outside_rpo_since.timeframe
            order by l.id desc limit 1
        )
    )
    from (
        select greatest(coalesce(s.followed_since, s.added_at), outside_rpo_since.due_at) + outside_rpo_since.rpo as ends_at
        from market_data.symbols as s
        where s.symbol = outside_rpo_since.symbol
    ) as promised
    where promised.ends_at < outside_rpo_since.until
$$;

comment on function market_data.outside_rpo_since(text, text, timestamptz, interval, timestamptz) is
'Since when, after its last execution, a series is outside its RPO at `until`, when its first missing bar fell due at due_at (null: never computed); null when it is inside.';

-- migrate:down
-- Forward only: rolling back would drop what was learned. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
