"""Tests of the read API, against a real PostgreSQL and, where the network matters, a running server."""
