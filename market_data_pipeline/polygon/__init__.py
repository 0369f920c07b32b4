"""Everything that knows the vendor's REST API."""
