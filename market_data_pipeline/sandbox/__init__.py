"""The stand-in vendor: a Polygon-compatible server for development, demonstrations and tests."""
