"""All that knows SQL: one module per family of relations; the migrations are in `sql/`."""
