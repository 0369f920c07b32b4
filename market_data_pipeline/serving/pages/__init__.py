"""The HTML pages: the status page and the page of one series."""
