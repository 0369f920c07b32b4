"""The rules that stored bars and features must meet, as SQL."""
