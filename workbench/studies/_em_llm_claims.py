"""What EM-LLM claims and how each claim is tested on the study's frame (experiment, variant, unit, metric, value)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

S, SM, SC, S_C, SM_C = "S", "SM", "SC", "S+C", "SM+C"
F, R, RANDOM_TOPK, STREAMING, FULL = "InfLLM (F)", "R", "random-topk", "StreamingLLM", "full context"
SAME_F, SAME_R = "fixed, same number", "random, same number"
SOURCE = "arXiv 2407.09450"


def _pairs(frame: pd.DataFrame, experiment: str, metric: str, first: str, second: str) -> pd.DataFrame:
    rows = frame[(frame.experiment == experiment) & (frame.metric == metric) & frame.variant.isin([first, second])]
    keys = [key for key in ("seed", "length", "unit") if key in rows]
    wide = rows.pivot_table(index=keys, columns="variant", values="value", aggfunc="mean")
    return wide.dropna() if {first, second} <= set(wide) else wide.iloc[:0]


def difference(
    frame: pd.DataFrame, experiment: str, metric: str, first: str, second: str, sign: float = 1.0, direction: str = ">"
) -> Outcome:
    """mean of sign (first - second) over streams, paired, with its bootstrap interval, against 0."""
    pairs = _pairs(frame, experiment, metric, first, second)
    if len(pairs) < 2:
        return Outcome.unmeasured(f"no {metric} of {first} and {second}")
    interval = statistics.bootstrap(sign * (pairs[first] - pairs[second]))
    note = f"{first} {pairs[first].mean():.4g}, {second} {pairs[second].mean():.4g}"
    return Outcome.of(interval, 0.0, direction, note)


def both(frame: pd.DataFrame, tests: list[Callable[[pd.DataFrame], Outcome]]) -> Outcome:
    return Outcome.weakest([test(frame) for test in tests])


def _all(*arguments: tuple) -> Callable[[pd.DataFrame], Outcome]:
    return partial(both, tests=[partial(_call, arguments=given) for given in arguments])


def _call(frame: pd.DataFrame, arguments: tuple) -> Outcome:
    return difference(frame, *arguments)


def _passkey(frame: pd.DataFrame, variant: str, threshold: float, direction: str) -> Outcome:
    """Accuracy of a variant on streams longer than the model's trained window."""
    rows = frame[(frame.experiment == "passkey") & (frame.metric == "correct") & (frame.variant == variant)]
    rows = rows[rows.length > rows.window] if len(rows) else rows
    if len(rows) < 2:
        return Outcome.unmeasured(f"no pass keys of {variant} beyond the window")
    interval = statistics.wilson(int(rows.value.sum()), len(rows))
    return Outcome.of(interval, threshold, direction, f"{variant} {rows.value.mean():.3f} of {len(rows)}")


def passkeys(frame: pd.DataFrame) -> Outcome:
    return Outcome.weakest([_passkey(frame, SM, 0.8, ">="), _passkey(frame, FULL, 0.2, "<=")])


_Q, _SEG = "episodes", "segments"
CLAIMS = (
    Claim("F1", "surprise boundaries find the gold ones better than as many fixed or random ones",
          f"{SOURCE}, human segments", _all((_Q, "boundary F1", S, SAME_F), (_Q, "boundary F1", S, SAME_R))),
    Claim("DISTANCE", "surprise boundaries lie nearer to the gold ones (Wasserstein) than fixed and random ones",
          f"{SOURCE}, human-segmentation table",
          _all((_Q, "Wasserstein distance", S, SAME_F, -1.0), (_Q, "Wasserstein distance", S, SAME_R, -1.0))),
    Claim("MOD-SM", "refinement raises modularity: SM > S", f"{SOURCE}, segmentation quality",
          _all((_SEG, "modularity", SM, S))),
    Claim("MOD-S", "surprise events have a higher modularity than as many fixed events",
          f"{SOURCE}, segmentation quality",
          _all((_SEG, "modularity", S, SAME_F))),
    Claim("IIS", "intra/inter similarity: SM > S > fixed", f"{SOURCE}, segmentation quality",
          _all((_SEG, "I/IS", SM, S), (_SEG, "I/IS", S, SAME_F))),
    Claim("RECALL-RANDOM", "fetching by similarity brings back more of the fact than random events", "card, quick",
          _all((_Q, "fact recall", S, RANDOM_TOPK))),
    Claim("RECALL-F", "fact recall of S and SM is not below InfLLM's fixed blocks", f"{SOURCE}, main table",
          _all((_Q, "fact recall", S, F, 1.0, ">="), (_Q, "fact recall", SM, F, 1.0, ">="))),
    Claim("ANSWERS", "answers from S exceed those of sinks and window alone", f"{SOURCE}, main table",
          _all((_Q, "correct", S, STREAMING))),
    Claim("ANSWERS-F", "answers from SM+C are not below InfLLM's", f"{SOURCE}, main table",
          _all((_Q, "correct", SM_C, F, 1.0, ">=")), ("full",)),
    Claim("CONTIGUITY", "contiguity helps when the answer lies in the episode after the one named", f"{SOURCE}, +C",
          _all(("order", "correct", S_C, S)), ("full",)),
    Claim("CONTIGUITY-RECALL", "contiguity fetches more of the following episode", f"{SOURCE}, +C",
          _all(("order", "fact recall", S_C, S)), ("full",)),
    Claim("RECENCY", "order is lost: full context judges which event came first better than the memory",
          "CCN 2025, evaluating models of episodic memory", _all(("recency", "correct", FULL, S))),
    Claim("PASSKEY", "pass keys beyond the trained window: memory >= .8, plain model <= .2", f"{SOURCE}, figure 2",
          passkeys, ("full",)),
)  # fmt: skip
