-- migrate:up
-- Which symbols were followed when: a study of the past must not know which ones were left out since.

create table market_data.universe_membership (
    symbol text not null,
    tier text not null,
    followed_from timestamptz not null,
    followed_until timestamptz check (followed_until >= followed_from),
    recorded_at timestamptz not null default clock_timestamp(),
    primary key (symbol, followed_from)
);

comment on table market_data.universe_membership is 'When each symbol was followed, in which tier: [followed_from, followed_until). Written by the database itself with each change of market_data.symbols.';
comment on column market_data.universe_membership.followed_until is 'Null while it is followed in this tier. Of a symbol that was removed before migration 0038, its last refresh.';
comment on column market_data.universe_membership.recorded_at is 'When the database stored the row, by its own clock.';

insert into market_data.universe_membership (symbol, tier, followed_from, followed_until)
select
    s.symbol,
    s.tier,
    case when s.active then coalesce(s.followed_since, s.added_at) else s.added_at end as followed_from,
    case when not s.active then greatest(s.added_at, max(l.finished_at)) end as followed_until
from market_data.symbols as s
left join market_data.ingest_log as l on s.symbol = l.symbol
group by s.symbol;

create function market_data.record_membership() returns trigger
language plpgsql
as $$
begin
    if tg_op = 'UPDATE' and old.active and (not new.active or old.tier <> new.tier) then
        update market_data.universe_membership as m
        set followed_until = greatest(m.followed_from, market_data.clock())
        where m.symbol = new.symbol and m.followed_until is null;
    end if;
    if new.active and (tg_op = 'INSERT' or not old.active or old.tier <> new.tier) then
        insert into market_data.universe_membership (symbol, tier, followed_from)
        values (new.symbol, new.tier, case when tg_op = 'INSERT' then new.added_at else market_data.clock() end)
        on conflict (symbol, followed_from) do update set tier = excluded.tier, followed_until = null;
    end if;
    return null;
end;
$$;

comment on function market_data.record_membership() is 'Records since when a symbol is followed in a tier, and until when it was.';

create trigger membership_is_recorded after insert or update of active, tier on market_data.symbols
for each row execute function market_data.record_membership();

-- migrate:down
-- Forward only: rolling back would lose what was followed when. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
