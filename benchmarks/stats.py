"""Medians, ratios and growth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Several measurements of the same thing: the one in the middle, the lowest and the highest."""

    median: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """For the report."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Sum up measurements.

    :param values: at least one.
    """
    return Spread(median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours divided by theirs, pair by pair: the two of a pair ran one after the other, on a machine in the same mood.

    :param theirs: as many as ``ours``, at least one. What is less than the tick of a clock counts as one tick.
    """
    tick = 1e-3
    return spread([max(mine, tick) / max(other, tick) for mine, other in zip(ours, theirs, strict=True)])


@dataclass(frozen=True)
class Growth:
    """How a cost grows with the size of a problem: ``fixed + factor * size ** exponent``.

    :ivar exponent: 0: not at all, 1: linear, 2: quadratic.
    """

    fixed: float
    factor: float
    exponent: float

    def at(self, size: float) -> float:
        """The cost at a size, as fitted."""
        return float(self.fixed + self.factor * size**self.exponent)

    def as_json(self) -> dict[str, float]:
        """For the report."""
        return asdict(self)


FLAT = 1.25
"""A cost that is never more than this times the lowest is taken as not growing: so much is noise."""
STEPS = np.arange(0.05, 3.001, 0.05)
"""The exponents that are tried."""


def growth(sizes: Sequence[float], costs: Sequence[float]) -> Growth:
    """Fit growth to measurements; relative errors are kept small, as sizes go over orders of magnitude.

    :param sizes: > 0, at least two different ones.
    :param costs: as many, >= 0.
    """
    x = np.asarray(sizes, dtype=float)
    y = np.maximum(np.asarray(costs, dtype=float), 1e-9)
    if y.max() <= FLAT * y.min() or y[x.argmax()] <= FLAT * y[x.argmin()]:
        return Growth(float(np.median(y)), 0.0, 0.0)
    best, best_error = Growth(float(y.min()), 0.0, 0.0), math.inf
    for exponent in STEPS:
        fixed, factor = _line(x**exponent, y)
        error = float((((fixed + factor * x**exponent) / y - 1) ** 2).sum())
        if error < best_error * 0.999:
            best, best_error = Growth(fixed, factor, float(exponent)), error
    return best


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The line through points that has the smallest relative errors, with nothing negative in it."""
    scale = x.max()
    matrix = np.stack([1 / y, x / scale / y], axis=1)
    (fixed, factor), *_ = np.linalg.lstsq(matrix, np.ones_like(y), rcond=None)
    if fixed < 0:  # a line through the origin
        column = matrix[:, 1]
        fixed, factor = 0.0, float(column.sum() / (column @ column))
    return float(fixed), max(float(factor), 0.0) / float(scale)
