#!/bin/sh
# Write the secrets that compose.yaml names into the folder `secrets` beside it. What is there stays as it is.
#
#   POLYGON_API_KEY=your-key deploy/container/make-secrets.sh
#
# Each file can be read by everyone, because the user inside a container has another number, and the folder only by you.
set -eu
: "${POLYGON_API_KEY:?set it to the key of Massive (formerly Polygon.io)}"
folder=$(dirname "$0")/secrets
server=${DATABASE_SERVER:-database:5432}
mkdir -p "$folder"
chmod 0700 "$folder"

write() {
  [ -e "$folder/$1" ] || printf '%s' "$2" > "$folder/$1"
  chmod 0444 "$folder/$1"
}

for each in postgres_password owner_password pipeline_password broker_password api_token; do
  write "$each" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
done
pipeline=$(cat "$folder/pipeline_password")
write polygon_api_key "$POLYGON_API_KEY"
write broker_url "redis://:$(cat "$folder/broker_password")@${BROKER_SERVER:-broker:6379}/0"
write owner_url "postgresql://pipeline_owner:$(cat "$folder/owner_password")@$server/market_data"
write database_url "postgresql://pipeline:$pipeline@$server/market_data"
write dagster_url "postgresql+psycopg2://pipeline:$pipeline@$server/dagster"
