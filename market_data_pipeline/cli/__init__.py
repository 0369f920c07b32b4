"""The `market-data` command: parse, call, print."""
