"""Filters that inject errors, verify, log writes and vote."""
