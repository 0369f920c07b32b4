"""What anyone asks of the whole: one question, one query, one model for API, pages, command line and sensors."""
