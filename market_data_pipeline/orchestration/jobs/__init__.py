"""The jobs: one refresh per tier, and the nightly ones."""
