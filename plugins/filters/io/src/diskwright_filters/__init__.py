"""Filters that change how a disk is read and written, not what it holds."""
