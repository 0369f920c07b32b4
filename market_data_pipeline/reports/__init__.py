"""Reports on the whole pipeline: one query and one model each, for API, pages, command line and sensors."""
