"""Days and nights in which much goes wrong, replayed against the sandbox."""
