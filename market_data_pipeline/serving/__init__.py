"""The read API and its pages."""
