"""MemoryBank's forgetting curve and the rules by which it can be applied: pure functions over arrays.

Retention (paper, section 2.3) is R = exp(-t / (λ S)): t days since the last recall, S the strength (1 when new, +1 at
every recall), λ days per unit of strength (1 in the paper's formula). The paper gives no schedule, threshold or time
unit; how R decides what is forgotten is therefore a named rule.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workbench.checks import number
from workbench.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

#: The rules. ``none`` keeps everything (the published code's default).
RULES = ("hazard", "sweep", "threshold", "capacity", "as_published_bug", "none")
FORMULAS = ("paper", "as_published_bug")
DAY = 86_400.0


def retention(days: Any, strength: Any = 1.0, time_scale: float = 1.0, *, formula: str = "paper") -> np.ndarray:
    """R after ``days`` without recall, of the broadcast shape of ``days`` and ``strength``, in [0, 1].

    ``formula="paper"`` is exp(-t / (λ S)): strength slows forgetting. ``"as_published_bug"`` is what the released code
    computes, exp(-t / λ * S) with λ = 5: by operator precedence strength *speeds it up*. It is there to be shown.

    Raises BadInput for a negative or undefined time (a recall in the future is a wrong date, not R > 1), a strength
    or a time scale that is not above zero.
    """
    import numpy as np

    t, s = _checked(days, strength, time_scale)
    if formula not in FORMULAS:
        raise BadInput(f"formula={formula!r} is not one of {', '.join(map(repr, FORMULAS))}")
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(-t / (time_scale * s)) if formula == "paper" else np.exp(-t / time_scale * s)


def keep_probability(
    rule: str, since: Any, until: Any, strength: Any = 1.0, time_scale: float = 1.0, threshold: float = 0.3
) -> np.ndarray:
    """Probability that one sweep at ``until`` keeps an item that was last swept (or recalled) at ``since``.

    Both are days since the last recall, ``since <= until``.

    - ``hazard``: R(until) / R(since). Whatever the schedule of sweeps, the item is alive at t with probability R(t).
    - ``sweep``: R(until), at every sweep anew (the structure of the published code). Daily sweeps multiply.
    - ``as_published_bug``: as ``sweep``, with the released code's formula.
    - ``threshold``: 1 where R(until) >= threshold, else 0.
    - ``capacity``, ``none``: 1 (a full store evicts by :func:`eviction_order` instead).
    """
    import numpy as np

    known_rule(rule)
    t0, s = _checked(since, strength, time_scale)
    t1, _ = _checked(until, strength, time_scale)
    if np.any(t1 < t0):
        raise BadInput("keep_probability: until must not lie before since (days since the last recall)")
    if rule == "hazard":
        return np.exp(-(t1 - t0) / (time_scale * s))
    if rule in ("sweep", "as_published_bug"):
        return retention(t1, s, time_scale, formula="paper" if rule == "sweep" else rule)
    if rule == "threshold":
        return (retention(t1, s, time_scale) >= checked_threshold(threshold)).astype(float)
    return np.ones(np.broadcast_shapes(t1.shape, s.shape))


def forgotten_now(
    rule: str,
    days: Any,
    strength: Any,
    luck: Any,
    *,
    time_scale: float = 1.0,
    threshold: float = 0.3,
) -> np.ndarray:
    """Which items a sweep forgets, as booleans; ``days`` since each one's last recall, ``luck`` uniform in [0, 1).

    ``hazard`` wants luck that stays the same from one recall to the next: the item then has one lifetime,
    -λ S ln(1 - luck), exponential with mean λ S, and is forgotten by the first sweep after it. That is
    :func:`keep_probability` at every schedule of sweeps at once. ``sweep`` and ``as_published_bug`` want fresh luck at
    every sweep. The other rules do not look at it.
    """
    import numpy as np

    known_rule(rule)
    t, s = _checked(days, strength, time_scale)
    chance = np.asarray(luck, dtype=float)
    if rule in ("capacity", "none"):
        return np.zeros(np.broadcast_shapes(t.shape, s.shape), dtype=bool)
    if rule == "threshold":
        return retention(t, s, time_scale) < checked_threshold(threshold)
    formula = "as_published_bug" if rule == "as_published_bug" else "paper"
    return retention(t, s, time_scale, formula=formula) < 1.0 - chance


def eviction_order(retentions: Any, times: Any) -> np.ndarray:
    """Indices in the order in which a full store lets go: lowest retention first, ties oldest first, then lower index.

    Args:
        retentions: R of every item, shape (n,). times: when each was stored, shape (n,).
    """
    import numpy as np

    r, born = np.asarray(retentions, dtype=float), np.asarray(times, dtype=float)
    if r.ndim != 1 or r.shape != born.shape:
        raise BadInput(f"eviction_order needs two flat arrays of one length, got {r.shape} and {born.shape}")
    return np.lexsort((np.arange(len(r)), born, r))


def forgetting_day(strength: float = 1.0, time_scale: float = 1.0, threshold: float = 0.3) -> float:
    """Days after which ``threshold`` forgets: λ S ln(1 / θ)."""
    _checked(0.0, strength, time_scale)
    return time_scale * strength * math.log(1.0 / checked_threshold(threshold))


def compounded(sweeps: Any, strength: Any = 1.0, time_scale: float = 1.0) -> np.ndarray:
    """Survival after n daily sweeps that each keep with R(t): exp(-n (n + 1) / (2 λ S)), far below R(n)."""
    n, s = _checked(sweeps, strength, time_scale)
    return retention(n * (n + 1) / 2, s, time_scale)


def curves(
    strengths: Any = (1, 2, 3, 4, 5, 6, 7, 8), time_scale: float = 1.0, *, days: float = 30.0, points: int = 121
) -> pd.DataFrame:
    """The curves as a tidy frame: curve ("paper", "as_published_bug", "daily sweeps"), S, day, R.

    ``daily sweeps`` is what is left when R(t) is applied once a day, drawn at whole days.
    """
    import numpy as np
    import pandas as pd

    grid, whole = np.linspace(0.0, days, points), np.arange(int(days) + 1.0)
    parts = []
    for s in strengths:
        for formula in FORMULAS:
            r = retention(grid, s, time_scale, formula=formula)
            parts.append(pd.DataFrame({"curve": formula, "S": float(s), "day": grid, "R": r}))
        r = compounded(whole, s, time_scale)
        parts.append(pd.DataFrame({"curve": "daily sweeps", "S": float(s), "day": whole, "R": r}))
    return pd.concat(parts, ignore_index=True)


def luck_of(seed: int, *keys: Any) -> np.ndarray:
    """Uniform numbers in [0, 1), one per row of ``keys``: the same for the same seed and keys, in any order or process.

    Keys are whole numbers (broadcast together); mixing is SplitMix64's finalizer (Steele, Lea, Flood 2014). A store
    that is closed and opened again, or swept in another order, thus draws the same fate for the same item.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        state = _mix(np.asarray(np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF)) + _golden())
        for key in keys:
            state = _mix((state ^ np.asarray(key, dtype=np.int64).astype(np.uint64)) + _golden())
    return (state >> np.uint64(11)).astype(float) * 2.0**-53


def _golden() -> np.uint64:
    import numpy as np

    return np.uint64(0x9E37_79B9_7F4A_7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    import numpy as np

    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return z ^ (z >> np.uint64(31))


def known_rule(rule: str) -> str:
    """``rule`` if it is one of :data:`RULES`, else BadInput."""
    if rule not in RULES:
        raise BadInput(f"forgetting rule {rule!r} is not one of {', '.join(map(repr, RULES))}")
    return rule


def checked_threshold(threshold: float) -> float:
    """θ in (0, 1], else BadInput: at 0 nothing is ever forgotten (that is the rule "none")."""
    return number("threshold θ", threshold, above=0, most=1, more=" (the rule 'none' keeps everything)")


def _checked(days: Any, strength: Any, time_scale: float) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    try:
        t, s = np.asarray(days, dtype=float), np.asarray(strength, dtype=float)
    except (TypeError, ValueError) as error:
        raise BadInput(f"days and strengths must be numbers, got {days!r:.40} and {strength!r:.40}") from error
    if not np.all(t >= 0):  # also catches NaN
        worst = float(np.nanmin(t)) if not np.all(np.isnan(t)) else math.nan
        raise BadInput(
            f"time since the last recall must be 0 days or more, got {worst:g}; is a memory dated after the question?"
        )
    if not np.all((s > 0) & np.isfinite(s)):
        raise BadInput(f"strength S must be a number above 0, got {s.min() if s.size else s}")
    if not (isinstance(time_scale, int | float) and time_scale > 0):
        raise BadInput(f"time_scale λ={time_scale!r} must be above 0 days per unit of strength")
    return t, s
