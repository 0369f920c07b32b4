-- migrate:up
-- The vendor's rate limit, shared by all processes that use the key: who waits, and until when nobody may send.
-- The calls themselves are in ratelimit___polygon, which pyrate-limiter's bucket creates in this schema.

create unlogged table market_data.rate_limit_queue (
    id uuid primary key,
    bucket text not null,
    priority smallint not null,
    since timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null
);

comment on table market_data.rate_limit_queue is 'Threads that wait for their turn to call the vendor. Worth nothing after a crash, hence unlogged.';
comment on column market_data.rate_limit_queue.bucket is 'The limit that is shared: polygon.';
comment on column market_data.rate_limit_queue.priority is 'Who goes first: 0 critical, 1 standard, 2 low_priority; then by since.';
comment on column market_data.rate_limit_queue.expires_at is 'When the waiter is taken for dead; it moves this on while it waits.';

create table market_data.rate_limit_pauses (
    bucket text primary key,
    until timestamptz not null
);

comment on table market_data.rate_limit_pauses is 'Until when nobody calls the vendor, because it answered 429.';

-- migrate:down
-- Forward only: rolling back would drop bars. A mistake is mended by the next migration.
do $$ begin raise exception 'migrations run forward only'; end $$;
