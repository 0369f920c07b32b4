"""The alerts: what is worth one, and how it is delivered."""
