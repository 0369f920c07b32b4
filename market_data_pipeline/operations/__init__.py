"""What an operator asks for: start, stop, plan, gaps, reports."""
