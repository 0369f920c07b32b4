"""The main job as Dagster sees it: one module per Dagster concept."""
