"""What deploy/ holds is executed, or validated by what its readers accept."""
