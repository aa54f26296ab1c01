"""Is it a whole number, is it a number: asked and refused in the same words by every generator.

A whole number is an int or one of numpy's integers; True and 2.0 are none. A number is any real one that is finite;
True is none.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """``value`` as an int, or a ValueError that names the argument and its range, whose ends belong to it."""
    good = isinstance(value, Integral) and not isinstance(value, bool)
    if not good or int(value) < least or (most is not None and int(value) > most):
        legal = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={value!r}: expected a whole number {legal}")
    return int(value)


def between(name: str, value: Any, low: float = 0, high: float = 1) -> float:
    """``value`` as a float in [low, high], or a ValueError that names the argument and its range."""
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f"{name}={value!r}: expected a number from {low} to {high}")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and bool(abs(value) < math.inf)
