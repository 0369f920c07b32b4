"""Backups of both databases: made, restored and verified."""
