"""All that knows the vendor's wire."""
