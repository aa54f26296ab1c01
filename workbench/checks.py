"""Is it a whole number, is it a number, is that device there: asked and refused in the same words by every room.

A whole number is an int or one of numpy's integers; True and 2.0 are none. A number is any real one that is finite;
True is none. A device is "cpu", "cuda" or "cuda:N".
"""

from __future__ import annotations

import math
import re
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


def device(asked: Any, *, auto: bool = False, here: bool = True) -> str:
    """The name of the device that was ``asked`` for, by name or as torch's own.

    Args:
        auto: "auto" is a name as well: the GPU where there is one, else the CPU.
        here: the work is done in this process, so the device has to be there.

    Raises:
        BadInput: another kind of device, or one that torch does not see here.
    """
    name, legal = str(asked), "'cpu', 'cuda' or 'cuda:N'"
    if auto:
        name, legal = _best() if name == "auto" else name, f"'auto', {legal}"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise BadInput(f"device must be {legal}, got {_given(asked)}")
    if here and name != "cpu" and int(name.partition(":")[2] or 0) >= _cards():
        seen = f"{_cards()} CUDA device(s)" if _cards() else "no CUDA device"
        raise BadInput(f"device {name!r} was asked for, but torch sees {seen} here; leave it out or say 'cpu'")
    return name


def _best() -> str:
    return "cuda" if _cards() else "cpu"


def _cards() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


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
