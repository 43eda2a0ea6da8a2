"""Scheduling functions p(s): the probability of a sharpness-aware step at s = t/T, for RST and G-RST.

Zhao, Zhang, Hu: Randomized Sharpness-Aware Training for Boosting Computational Efficiency in Deep Learning,
arXiv 2203.09962. The authors' code has the constant, piecewise and linear families. The trigonometric family here is a
half cosine between any two values.

A schedule is any function of s in [0, 1] with values in [0, 1]. Those below also have their exact integral, `mean`.
"""

import math
from dataclasses import dataclass, fields
from typing import Protocol

from sam_bench.optim.checks import require_number


class Schedule(Protocol):
    """p(s) for s = t/T in [0, 1]."""

    def __call__(self, s: float) -> float:
        """The probability of a sharpness-aware step at s."""
        ...


@dataclass(frozen=True)
class _UnitInterval:
    """Each family stays within [0, 1] exactly if its settings do."""

    def __post_init__(self) -> None:
        for field in fields(self):
            require_number(field.name, getattr(self, field.name), low=0, high=1)


@dataclass(frozen=True)
class Constant(_UnitInterval):
    """p(s) = p."""

    p: float

    def __call__(self, s: float) -> float:
        """The probability at s."""
        return self.p

    @property
    def mean(self) -> float:
        """The integral of p(s) over [0, 1]: p."""
        return self.p


@dataclass(frozen=True)
class Piecewise(_UnitInterval):
    """p(s) = a for s <= b, else 1 - a. With a = 0 it is SGD, then SAM; with a = 1 it is SAM, then SGD."""

    a: float
    b: float

    def __call__(self, s: float) -> float:
        """The probability at s."""
        return self.a if s <= self.b else 1 - self.a

    @property
    def mean(self) -> float:
        """The integral of p(s) over [0, 1]: ab + (1 - a)(1 - b)."""
        return self.a * self.b + (1 - self.a) * (1 - self.b)


@dataclass(frozen=True)
class Linear(_UnitInterval):
    """p(s) = start + (end - start)s."""

    start: float
    end: float

    def __call__(self, s: float) -> float:
        """The probability at s."""
        return self.start + (self.end - self.start) * s

    @property
    def mean(self) -> float:
        """The integral of p(s) over [0, 1]: (start + end)/2."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class Trigonometric(Linear):
    """p(s) = end + (start - end)(1 + cos πs)/2, a half cosine with the mean of the straight line."""

    def __call__(self, s: float) -> float:
        """The probability at s."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * s)) / 2
