"""Argument checks of constructors. Each raises an `ArgumentError` that carries the argument's name."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


class ArgumentError(ValueError):
    """A constructor argument is invalid. The text is worded as in torch.optim: `Invalid rho: -1 (a number in [0, ∞))`.

    Attributes:
        name: the name of the argument.
        value: the value that was given.
        allowed: the valid values, in words.
    """

    def __init__(self, name: str, value: Any, allowed: str) -> None:
        super().__init__(name, value, allowed)
        self.name, self.value, self.allowed = name, value, allowed

    def __str__(self) -> str:
        return f"Invalid {self.name}: {self.value} ({self.allowed})"


def require_number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raise an ArgumentError unless the value is a finite number in [low, high], above `above` and below `below`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and low <= value <= high and (above is None or value > above) and (below is None or value < below):
        return
    left = f"({above}" if above is not None else f"[{low}" if low > -math.inf else "(-∞"
    right = f"{below})" if below is not None else f"{high}]" if high < math.inf else "∞)"
    raise ArgumentError(name, value, f"a number in {left}, {right}")


def require_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise an ArgumentError unless the value is an integer of at least `low` and at most `high`."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or value < low or (high is not None and value > high):
        allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        raise ArgumentError(name, value, allowed)


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise an ArgumentError unless the value is one of the choices."""
    if value not in choices:
        raise ArgumentError(name, value, f"one of {', '.join(choices)}")


def require_boolean(name: str, value: Any) -> None:
    """Raise an ArgumentError unless the value is True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(name, value, "true or false")


def require_start(name: str, value: Any, step: int, total_steps: int | None) -> None:
    """Raise an ArgumentError unless `step` is below `total_steps`. Does nothing if `total_steps` is None."""
    if total_steps is not None and step >= total_steps:
        allowed = f"an earlier start: this is step {step}, and the training has {total_steps} steps"
        raise ArgumentError(name, value, allowed)
