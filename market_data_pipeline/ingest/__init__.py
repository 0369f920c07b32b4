"""The main job without Dagster: series in, outcomes out."""
