-- migrate:up
-- Prices adjusted for dividends too: backward and multiplicative, by ex date, together with the splits.

create function market_data.dividends_as_of(instant timestamptz)
returns setof market_data.dividends
language sql stable parallel safe
as $$
    -- A single SELECT, which PostgreSQL merges into the caller's query, as in bars_as_of.
    select
        d.symbol, d.ex_date, d.amount, d.currency, d.declaration_date, d.record_date, d.pay_date, d.frequency, d.type,
        d.vendor_id, d.first_seen_at
    from market_data.dividends as d
    where d.first_seen_at <= dividends_as_of.instant
    union all
    select
        r.symbol, r.ex_date, r.amount, r.currency, r.declaration_date, r.record_date, r.pay_date, r.frequency, r.type,
        r.vendor_id, r.first_seen_at
    from market_data.dividend_revisions as r
    where r.first_seen_at <= dividends_as_of.instant and r.superseded_at > dividends_as_of.instant
$$;

comment on function market_data.dividends_as_of(timestamptz) is
'The dividends that the vendor had listed to us at the instant, as it listed them then; those of later days are among them.';

create function market_data.dividend_factors(symbol text, instant timestamptz default 'infinity')
returns table (
    ex_date date,
    in_force_from timestamptz,
    amount double precision,
    previous_close double precision,
    shares double precision,
    factor double precision
)
language sql stable parallel safe
as $$
    select
        paid.ex_date,
        paid.in_force_from,
        paid.amount,
        (paid.before).close,
        split.factor,
        case
            when paid.amount < (paid.before).close * split.factor
                then 1 - paid.amount / ((paid.before).close * split.factor)
            else 1
        end
    from (
        select
            day.ex_date,
            day.in_force_from,
            day.amount,
            case
                when dividend_factors.instant = 'infinity' then (
                    select b from market_data.bars as b
                    where b.symbol = dividend_factors.symbol and b.timeframe = '1d' and b.ts < day.in_force_from
                    order by b.ts desc limit 1
                )
                -- As a rule a close of the last days; only without one are all before them read.
                else coalesce(
                    (
                        select b
                        from market_data.bars_as_of(dividend_factors.symbol, '1d', dividend_factors.instant) as b
                        where b.ts < day.in_force_from and b.ts >= day.in_force_from - interval '14 days'
                        order by b.ts desc limit 1
                    ),
                    (
                        select b
                        from market_data.bars_as_of(dividend_factors.symbol, '1d', dividend_factors.instant) as b
                        where b.ts < day.in_force_from - interval '14 days'
                        order by b.ts desc limit 1
                    )
                )
            end as before
        from (
            select
                d.ex_date,
                d.ex_date::timestamp at time zone 'America/New_York' as in_force_from,
                sum(d.amount order by d.amount) as amount
            from market_data.dividends_as_of(dividend_factors.instant) as d
            where
                d.symbol = dividend_factors.symbol
                and d.currency = 'USD'
                and d.ex_date <= (
                    case
                        when dividend_factors.instant = 'infinity' then market_data.clock()
                        else dividend_factors.instant
                    end at time zone 'America/New_York'
                )::date
            group by d.ex_date
        ) as day
    ) as paid
    cross join lateral (
        select market_data.product(s.factor) as factor
        from market_data.splits_as_of(dividend_factors.instant) as s
        where
            s.symbol = dividend_factors.symbol
            and s.execution_date <= paid.ex_date
            and s.execution_date::timestamp at time zone 'America/New_York' > (paid.before).ts
    ) as split
    where (paid.before).close is not null
$$;

comment on function market_data.dividend_factors(text, timestamptz) is
'What the prices of a symbol that start before in_force_from (00:00 New York of the ex date) are multiplied by for the dividends of each day in force, as known at the instant; without one, now. factor is 1 - amount / (previous_close * shares): previous_close is the raw close of the last session before, shares makes it a price of a share of the ex date.';

create view market_data.bars_total_return as
select b.*
from market_data.series_state as s
cross join lateral (
    with dividend as materialized (
        select
            d.in_force_from,
            d.factor
        from market_data.dividend_factors(s.symbol) as d
    )

    select
        a.symbol,
        a.timeframe,
        a.ts,
        a.open * f.factor as open,
        a.high * f.factor as high,
        a.low * f.factor as low,
        a.close * f.factor as close,
        a.volume,
        a.vwap * f.factor as vwap,
        a.trades,
        a.ingested_at,
        f.factor as dividend_factor
    from market_data.bars_adjusted as a
    cross join
        lateral (
            select market_data.product(dividend.factor) as factor from dividend
            where a.ts < dividend.in_force_from
        ) as f
    where a.symbol = s.symbol and a.timeframe = s.timeframe
) as b;

comment on view market_data.bars_total_return is 'bars_adjusted with prices also adjusted for the dividends in force now (dividend_factors): returns of its closes are total returns. Volume is adjusted for splits alone.';
comment on column market_data.bars_total_return.dividend_factor is 'What the prices of bars_adjusted are multiplied by: close / dividend_factor is adjusted for splits alone.';

create function market_data.bars_total_return_as_of(symbol text, timeframe text, instant timestamptz)
returns setof market_data.bars_total_return
language sql stable parallel safe
as $$
    with dividend as materialized (
        select d.in_force_from, d.factor
        from market_data.dividend_factors(bars_total_return_as_of.symbol, bars_total_return_as_of.instant) as d
    ),

    split as materialized (
        select s.factor, s.execution_date::timestamp at time zone 'America/New_York' as in_force_from
        from market_data.splits_as_of(bars_total_return_as_of.instant) as s
        where
            s.symbol = bars_total_return_as_of.symbol
            and s.execution_date <= (bars_total_return_as_of.instant at time zone 'America/New_York')::date
    )

    select
        b.symbol,
        b.timeframe,
        b.ts,
        b.open * f.shares * f.dividends,
        b.high * f.shares * f.dividends,
        b.low * f.shares * f.dividends,
        b.close * f.shares * f.dividends,
        b.volume / f.shares,
        b.vwap * f.shares * f.dividends,
        b.trades,
        b.ingested_at,
        f.dividends
    from
        market_data.bars_as_of(
            bars_total_return_as_of.symbol, bars_total_return_as_of.timeframe, bars_total_return_as_of.instant
        ) as b
    cross join lateral (
        select
            (select market_data.product(s.factor) from split as s where b.ts < s.in_force_from) as shares,
            (select market_data.product(d.factor) from dividend as d where b.ts < d.in_force_from) as dividends
    ) as f
$$;

comment on function market_data.bars_total_return_as_of(text, text, timestamptz) is
'The bars of a series as they were stored at the instant, adjusted for the splits and dividends that were known and in force then, in no order.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
