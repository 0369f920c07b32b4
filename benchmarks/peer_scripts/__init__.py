"""Other ways of doing the same work, run by `benchmarks.peers` in their own environment, one process each."""
