"""The names of what limits a throttle group."""

from __future__ import annotations

from .fields import Field, integers

UNITS = ("bps", "iops")
SCOPES = ("total", "read", "write")
NAMES = (
    *(f"{unit}-{scope}{suffix}" for unit in UNITS for scope in SCOPES for suffix in ("", "-max", "-max-length")),
    "iops-size",
)
FIELDS = (
    Field("limits", "ThrottleLimits", "integer"),
    *integers(*(f"x-{name}" for name in NAMES)),
    *(Field(f"limits.{name}", "int", "integer", hidden=True) for name in NAMES),
)
"""Every name, old-fashioned and as a member of ``limits``."""
