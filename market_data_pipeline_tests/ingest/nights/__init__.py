"""Nine nights of a small universe in which much goes wrong, replayed quarter of an hour by quarter of an hour."""
