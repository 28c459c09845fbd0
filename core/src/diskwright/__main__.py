"""``python -m diskwright``."""

from .cli import entry_point

entry_point()
