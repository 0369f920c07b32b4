"""The lake: a columnar copy of bars and features for research, as Delta tables that any engine reads."""
