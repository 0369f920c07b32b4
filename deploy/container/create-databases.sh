#!/bin/sh
# Create the logins and the two databases. The image of PostgreSQL runs this once, when its volume is empty.
# The owner migrates; the pipeline works with a login that cannot alter the audit log (docs/adr/0008).
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
  --set owner="$(cat /run/secrets/owner_password)" --set pipeline="$(cat /run/secrets/pipeline_password)" <<'SQL'
create role pipeline_owner login createrole password :'owner';
create role pipeline login password :'pipeline';
create database market_data owner pipeline_owner;
create database dagster owner pipeline;
SQL
