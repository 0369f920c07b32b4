"""Measurements of this code; each runs as `python -m benchmarks.NAME`, and its figures hold for this machine only."""
