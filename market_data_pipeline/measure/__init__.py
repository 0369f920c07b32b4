"""Measurements of the product in scratch projects: baseline, load test, outage drill."""
