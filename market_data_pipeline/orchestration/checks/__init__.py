"""The asset checks: freshness of every series after each refresh, and the quality of what is stored, nightly."""
