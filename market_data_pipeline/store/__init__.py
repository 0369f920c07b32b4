"""Everything that writes SQL, one module per relation family; questions about the whole are in `reports`."""
