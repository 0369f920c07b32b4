"""The sensors: what Dagster watches between the schedules."""
