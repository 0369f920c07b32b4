"""Other ways of doing the same work, run by `benchmarks.peers` in an environment of their own, one process each."""
