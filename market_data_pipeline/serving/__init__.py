"""The read API and its status page: what is stored, told quickly and with its freshness.

Add here: endpoints and how an answer is made. Keep out: writing (ingest; the one exception is a backfill request) and
figures that the command line shows too (operations.reports).
"""
