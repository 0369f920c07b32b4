-- migrate:up
-- Which processes call the vendor on a plan without a limit of calls a minute: they share the calls that a second may hold.

create unlogged table market_data.rate_limit_senders (
    id uuid primary key,
    bucket text not null,
    expires_at timestamptz not null
);

comment on table market_data.rate_limit_senders is 'Processes that have called the vendor lately, on a plan without a limit of calls a minute. Worth nothing after a crash, hence unlogged.';
comment on column market_data.rate_limit_senders.bucket is 'The limit that is shared: polygon.';
comment on column market_data.rate_limit_senders.expires_at is 'When the process counts no longer; it postpones this while it calls.';

-- migrate:down
-- Forward only. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
