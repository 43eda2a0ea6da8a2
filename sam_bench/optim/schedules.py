"""Scheduling functions p(s): the probability of a sharpness-aware step at s = t/T, for RST and G-RST.

Zhao, Zhang, Hu: Randomized Sharpness-Aware Training for Boosting Computational Efficiency in Deep Learning,
arXiv 2203.09962. The authors' code has the constant, piecewise and linear families. The trigonometric family here is a
half cosine between any two values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from sam_bench.optim.checks import require_number

Schedule = Callable[[float], float]  # s = t/T in [0, 1] -> the probability of a sharpness-aware step


@dataclass(frozen=True)
class _UnitInterval:
    """Each family stays within [0, 1] if its settings do."""

    def __post_init__(self) -> None:
        for field in fields(self):
            require_number(field.name, getattr(self, field.name), low=0, high=1)


@dataclass(frozen=True)
class Constant(_UnitInterval):
    """p(s) = p."""

    p: float

    def __call__(self, s: float) -> float:
        """p(s)."""
        return self.p


@dataclass(frozen=True)
class Piecewise(_UnitInterval):
    """p(s) = a for s <= b, else 1 - a. With a = 0 it is SGD, then SAM; with a = 1 it is SAM, then SGD."""

    a: float
    b: float

    def __call__(self, s: float) -> float:
        """p(s)."""
        return self.a if s <= self.b else 1 - self.a


@dataclass(frozen=True)
class Linear(_UnitInterval):
    """p(s) = start + (end - start)s."""

    start: float
    end: float

    def __call__(self, s: float) -> float:
        """p(s)."""
        return self.start + (self.end - self.start) * s


@dataclass(frozen=True)
class Trigonometric(Linear):
    """p(s) = end + (start - end)(1 + cos πs)/2, a half cosine."""

    def __call__(self, s: float) -> float:
        """p(s)."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * s)) / 2
