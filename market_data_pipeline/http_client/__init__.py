"""Bars and features over HTTP, for those who have no database login: the readers' functions on the read API.

    from market_data_pipeline.http_client import Client

    client = Client("https://example.org/market-data")
    bars = client.read_bars(["AAPL", "MSFT"], "1d", start="2026-01-01")

It needs pandas and pyarrow, and no settings. Frames are those of `market_data_pipeline.read_bars` and its companions;
all pages of an answer are read, and the failures of the API are raised as classes.
"""

from market_data_pipeline.http_client.client import Client as Client
from market_data_pipeline.http_client.errors import ApiError as ApiError
from market_data_pipeline.http_client.errors import ApiUnavailableError as ApiUnavailableError
from market_data_pipeline.http_client.errors import NotTrackedError as NotTrackedError
from market_data_pipeline.http_client.errors import RefusedError as RefusedError
from market_data_pipeline.http_client.errors import WrongRequestError as WrongRequestError
