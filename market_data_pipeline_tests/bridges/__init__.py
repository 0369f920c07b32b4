"""Programs that run in environments of their own, where the package lies beside another framework."""
