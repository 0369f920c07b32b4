"""SQL over market data, one module per relation family; queries about the whole are in `reports`."""
