"""The features: the 17 that are built in, and those that a project declares for itself."""
