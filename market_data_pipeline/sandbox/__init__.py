"""For a machine with nothing: a Polygon-compatible server and an embedded PostgreSQL."""
