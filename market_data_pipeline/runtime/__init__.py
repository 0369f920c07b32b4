"""What keeps the pipeline running on one machine: up, down, the embedded PostgreSQL, the sandbox process."""
