"""Null devices."""
