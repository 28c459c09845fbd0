"""Findings about L2 tables, kept until it is known where they belong."""

from __future__ import annotations

import numpy as np

from diskwright.facts import CheckResult

from .refcount import Column


class TableLines:
    """Lines about L2 tables, for each table in the order of its entries.

    :ivar tables: the lines of the table at an offset, with entry and rank in it.
    """

    def __init__(self) -> None:
        self.tables: dict[int, list[tuple[int, int, str]]] = {}
        self._kept = 0

    def add(self, table: int, entry: int, rank: int, line: str) -> None:
        """Keep a line."""
        self.tables.setdefault(table, []).append((entry, rank, line))
        self._kept += 1

    @property
    def room(self) -> int:
        """How many more lines it makes sense to keep: more are not shown."""
        return max(0, CheckResult.MAX_FINDINGS - self._kept)

    def has(self, offsets: Column) -> Column:
        """Which of the tables have lines."""
        if not self.tables:
            return np.zeros(len(offsets), bool)
        return np.isin(offsets, np.array(list(self.tables), np.uint64))

    def of(self, table: int) -> list[tuple[int, int, str]]:
        """The lines of a table, in order."""
        return sorted(self.tables.get(table, ()))
