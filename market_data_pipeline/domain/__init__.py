"""Pure knowledge about series, sessions, bars and features: no Dagster, SQL, HTTP, environment or clock."""
