"""The read API and its pages: what is stored, served quickly and with its freshness."""
