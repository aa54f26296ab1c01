"""What MemoryBank claims and how each claim is tested.

Every test reads the study's tidy frame: experiment, policy, capacity, metric, unit (a simulated life, or a probe),
value (and the runner's seed). Pairs are the same unit of the same seed under two policies.

The paper has no experiment on forgetting. The margins of the life simulation are those of a pilot on other seeds,
written down before this study was; they were not changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench import statistics
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

EBB, LFU, FIFO, RANDOM = "EBB capacity", "LFU", "FIFO", "RANDOM"
HAZARD, BARE, BUG = "EBB hazard", "EBB hazard, no reinforcement", "as published (bug)"
OFF, NONE, RECENT = "nothing forgotten", "no memory", "recent exchanges"
TALK, WORLD, USERS = "talk about acquaintances", "companions world", "authors' users"
CAPACITY = 64
SOURCE = "arXiv 2305.10250"


def _wide(frame: pd.DataFrame, experiment: str, metric: str, policies: tuple[str, ...]) -> pd.DataFrame:
    """One column a policy, one line a unit; empty when a policy did not run. Sized policies at the common capacity."""
    rows = frame[(frame["experiment"] == experiment) & (frame["metric"] == metric) & frame["policy"].isin(policies)]
    rows = rows[rows["capacity"].isna() | (rows["capacity"] == CAPACITY)]
    keys = [key for key in ("seed", "unit") if key in rows]
    wide = rows.pivot_table(index=keys, columns="policy", values="value", aggfunc="mean")
    return wide.dropna() if set(policies) <= set(wide) else wide.iloc[:0]


def difference(
    frame: pd.DataFrame, experiment: str, metric: str, first: str, second: str, margin: float = 0.0
) -> Outcome:
    """Is ``first`` above ``second`` by more than ``margin``? Bootstrap interval of the paired differences."""
    wide = _wide(frame, experiment, metric, (first, second))
    if len(wide) < 2:
        return Outcome.unmeasured(f"no {metric} of {first} and {second} in {experiment!r}")
    note = f"{first} {wide[first].mean():.3f}, {second} {wide[second].mean():.3f}"
    return Outcome.of(statistics.of_differences(wide[first] - wide[second]), margin, ">", note)


def share(frame: pd.DataFrame, experiment: str, metric: str, policy: str, threshold: float) -> Outcome:
    """Is a share of yes/no outcomes above ``threshold``? Wilson interval.

    The authors' users are the same for every seed of the study, so that each of their questions counts once.
    """
    rows = frame[(frame["experiment"] == experiment) & (frame["metric"] == metric) & (frame["policy"] == policy)]
    rows = rows.drop_duplicates("unit") if experiment == USERS else rows
    if not len(rows):
        return Outcome.unmeasured(f"no {metric} of {policy} in {experiment!r}")
    found = statistics.wilson(int(rows["value"].sum()), len(rows))
    return Outcome.of(found, threshold, ">", f"{policy}: {found.effect:.3f} of {found.n}")


def over(
    first: str, second: str, margin: float = 0.0, experiment: str = "life", metric: str = "hit rate"
) -> Callable[[pd.DataFrame], Outcome]:
    """The test of "``first`` is above ``second`` by more than ``margin``"."""
    return lambda frame: difference(frame, experiment, metric, first, second, margin)


def above(threshold: float, experiment: str, metric: str, policy: str) -> Callable[[pd.DataFrame], Outcome]:
    """The test of "the share of ``policy`` is above ``threshold``"."""
    return lambda frame: share(frame, experiment, metric, policy, threshold)


_BOTH, _FULL = ("quick", "full"), ("full",)
_TESTED = (
    ("C1", "Generated talk: the gold exchange is among the six retrieved for more than .7 of the questions",
     "table 2", above(0.7, WORLD, "retrieved", OFF), _BOTH),
    ("C1u", "The authors' users: a piece of the day that a question names is among the first six, for more than .7",
     "table 2, by an automatic criterion", above(0.7, USERS, "day@6", "MiniLM, pieces"), _FULL),
    ("M1", "The embedded model answers more questions about acquaintances with the memory than without",
     "section 4, as an inequality", over(OFF, NONE, 0.0, TALK, "correct (embedded model)"), _BOTH),
    ("M2", "So do the extractive rules",
     "section 4, as an inequality", over(OFF, NONE, 0.0, TALK, "correct (extractive rules)"), _BOTH),
    ("M3", "Six retrieved pieces help the embedded model more than the six most recent exchanges",
     "ours", over(OFF, RECENT, 0.0, TALK, "correct (embedded model)"), _BOTH),
    ("C3a", "Equal size: lowest retention out (EBB) > oldest out (FIFO) + .2",
     "section 2.3, untested there", over(EBB, FIFO, 0.2), _BOTH),
    ("C3b", "Equal size: EBB > random eviction + .2",
     "section 2.3, untested there", over(EBB, RANDOM, 0.2), _BOTH),
    ("C3c", "Stochastic forgetting: with reinforcement > without + .1",
     "section 2.3, untested there", over(HAZARD, BARE, 0.1), _BOTH),
    ("C3d", "The published formula, swept daily, is worse than no reinforcement at all",
     "ours, on the released code", over(BARE, BUG), _BOTH),
    ("L1", "About equal size: deterministic eviction > forgetting by chance (which loses valuable facts by bad luck)",
     "ours", over(EBB, HAZARD), _BOTH),
    ("D1", "Interests drift every 20 days, equal size: EBB > fewest recalls out (LFU)",
     "ours", over(EBB, LFU, 0.0, "life with drift"), _FULL),
)  # fmt: skip
#: A difference of a hundredth or so under drift, and data that does not ship: only the full scale judges D1 and C1u.
CLAIMS = tuple(Claim(key, says, f"{SOURCE}, {source}", test, scales) for key, says, source, test, scales in _TESTED)
