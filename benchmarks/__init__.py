"""Measurements of this code; each module runs as `python -m benchmarks.NAME` and measures the machine it runs on."""
