"""The raw format."""
