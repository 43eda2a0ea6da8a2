"""Scheduling functions p(s): the probability of a sharpness-aware step at s = t/T, for RST and G-RST.

Zhao, Zhang, Hu: Randomized Sharpness-Aware Training, arXiv 2203.09962. The authors' code has constant, piecewise and
linear; the trigonometric family here is the half cosine between any two ends.

Each is a pure function of s in [0, 1] with its exact integral `mean`; each refuses settings that leave [0, 1]
with a ValueError. Nothing here needs torch, so a wrong schedule is refused before anything heavy is imported.
"""

import math
from dataclasses import dataclass, fields
from typing import Protocol


class Schedule(Protocol):
    """p(s) for s = t/T in [0, 1]."""

    def __call__(self, s: float) -> float:
        """The probability at s."""
        ...

    @property
    def mean(self) -> float:
        """The integral of p over [0, 1]."""
        ...


@dataclass(frozen=True)
class _InUnitInterval:
    """All four families stay within [0, 1] exactly when their own settings do."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"Invalid {field.name}: {value} (a number in [0, 1])")


@dataclass(frozen=True)
class Constant(_InUnitInterval):
    """p(s) = p."""

    p: float

    def __call__(self, s: float) -> float:
        """The probability at s."""
        return self.p

    @property
    def mean(self) -> float:
        """The integral over [0, 1]: p."""
        return self.p


@dataclass(frozen=True)
class Piecewise(_InUnitInterval):
    """p(s) = a for s <= b, else 1 - a; a=0 is SGD then SAM, a=1 SAM then SGD."""

    a: float
    b: float

    def __call__(self, s: float) -> float:
        """The probability at s."""
        return self.a if s <= self.b else 1 - self.a

    @property
    def mean(self) -> float:
        """The integral over [0, 1]: ab + (1-a)(1-b)."""
        return self.a * self.b + (1 - self.a) * (1 - self.b)


@dataclass(frozen=True)
class Linear(_InUnitInterval):
    """p(s) = start + (end - start)s."""

    start: float
    end: float

    def __call__(self, s: float) -> float:
        """The probability at s."""
        return self.start + (self.end - self.start) * s

    @property
    def mean(self) -> float:
        """The integral over [0, 1]: (start + end)/2."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class Trigonometric(_InUnitInterval):
    """p(s) = end + (start - end)(1 + cos πs)/2."""

    start: float
    end: float

    def __call__(self, s: float) -> float:
        """The probability at s."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * s)) / 2

    @property
    def mean(self) -> float:
        """The integral over [0, 1]: (start + end)/2."""
        return (self.start + self.end) / 2


# a name of conf/schedule/ -> its class
SCHEDULES: dict[str, type] = {
    "constant": Constant,
    "piecewise": Piecewise,
    "linear": Linear,
    "trigonometric": Trigonometric,
}
