"""Measurements of this code on the machine at hand; each module runs as `python -m benchmarks.NAME`."""
