"""Is it a whole number, is it a number: asked and refused in the same words by every room.

A whole number is an int or one of numpy's integers; True and 2.0 are none. A number is any real one that is finite;
True is none.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, TypeGuard

from workbench.errors import BadInput


def is_whole(value: Any, least: int | None = None, most: int | None = None) -> TypeGuard[int]:
    """Whether ``value`` is a whole number within the bounds, which belong to it."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return (least is None or least <= int(value)) and (most is None or int(value) <= most)


def whole(name: str, value: Any, least: int | None = 1, most: int | None = None, *, more: str = "") -> int:
    """``value`` as an int.

    ``more`` stands in the message behind the bounds: " or None", " (0: all of them)".

    Raises:
        BadInput: no whole number, or one outside the bounds.

    >>> whole("heads", 4)
    4
    >>> whole("heads", 2.0)
    Traceback (most recent call last):
    workbench.errors.BadInput: heads must be a whole number of at least 1, got 2.0
    """
    if not is_whole(value, least, most):
        raise BadInput(f"{name} must be a whole number{_bounds(least, most)}{more}, got {_given(value)}")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    more: str = "",
) -> float:
    """``value`` as a float: finite, from ``least`` to ``most``, which belong to it, and ``above`` what does not.

    Raises:
        BadInput: no finite number, or one outside the bounds.
    """
    found = float(value) if is_number(value) else math.nan
    inside = (least is None or least <= found) and (above is None or above < found) and (most is None or found <= most)
    if math.isnan(found) or not inside:
        raise BadInput(f"{name} must be a finite number{_bounds(least, most, above)}{more}, got {_given(value)}")
    return found


def _bounds(least: float | None, most: float | None, above: float | None = None) -> str:
    if least is not None and most is not None:
        return f" from {least:,} to {most:,}"
    said = [] if least is None else [f"of at least {least:,}"]
    said += [] if above is None else [f"above {above:,}"]
    said += [] if most is None else [f"{'of ' if not said else ''}at most {most:,}"]
    return f" {' and '.join(said)}" if said else ""


def _given(value: Any, longest: int = 100) -> str:
    said = repr(value)
    return said if len(said) <= longest else f"{said[:longest]}..."
