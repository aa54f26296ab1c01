"""What the paper on knowledge-conflict heads claims and how each claim is tested.

Every test reads the study's tidy frame: model, experiment, pruned, k, unit (a prompt or a draw), relation, form, step,
metric, value (and the runner's seed). Pairs are the same prompt of the same seed and model with other heads pruned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.statistics import HOLDS, NOT_REPRODUCED
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("memory", "context", "other")
SOURCE = "arXiv 2402.18154"
#: Margins of our own, set before any run of the study: what counts as "hardly hurt", and how far "beyond random" is.
HARDLY, BAND = -0.10, 0.975


def _pairs(frame: pd.DataFrame, metric: str, first: str, second: str, **where: str) -> pd.DataFrame:
    rows = frame[(frame.metric == metric) & frame.pruned.isin([first, second])]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    keys = [key for key in ("seed", "model", "unit") if key in rows]
    wide = rows.pivot_table(index=keys, columns="pruned", values="value", aggfunc="mean")
    return wide.dropna() if {first, second} <= set(wide) else wide.iloc[:0]


def _shift(frame: pd.DataFrame, metric: str, label: str, baseline: str = "nothing", threshold: float = 0.0) -> Outcome:
    pairs = _pairs(frame, metric, label, baseline)
    if len(pairs) < 2:
        return Outcome.unmeasured(f"{metric} was not measured with {label} and {baseline}")
    note = f"{metric}: {pairs[label].mean():.3f} against {pairs[baseline].mean():.3f} with {baseline}"
    interval = statistics.of_differences(pairs[label] - pairs[baseline])
    return Outcome.of(interval, threshold, ">" if threshold == 0 else ">=", note)


def _beyond_random(frame: pd.DataFrame, metric: str, label: str, outcome: Outcome) -> Outcome:
    """The claim also needs the rate to lie above the band of random heads of the same number."""
    rows = frame[(frame.experiment == "control") & (frame.pruned == label) & (frame.metric == metric)]
    sizes = set(rows.k)
    drawn = frame[(frame.pruned == "random heads") & (frame.metric == f"{metric} rate") & frame.k.isin(sizes)]
    if not len(drawn) or not len(rows):
        return Outcome.unmeasured("random heads were not drawn")
    top = float(drawn.value.quantile(BAND))
    note = f"{outcome.note}; {len(drawn)} random draws reach {top:.3f}"
    verdict = outcome.verdict
    if verdict == HOLDS and rows.value.mean() <= top:
        verdict = NOT_REPRODUCED
    return replace(outcome, verdict=verdict, note=note)


def memory_wins(frame: pd.DataFrame) -> Outcome:
    control = frame[frame.experiment == "control"]
    return _beyond_random(frame, "memory", "context heads", _shift(control, "memory", "context heads"))


def context_wins(frame: pd.DataFrame) -> Outcome:
    control = frame[frame.experiment == "control"]
    return _beyond_random(frame, "context", "memory heads", _shift(control, "context", "memory heads"))


def transfers(frame: pd.DataFrame) -> Outcome:
    """Both shifts, on relations and subjects that the heads were not found on, in each format: the smallest."""
    control = frame[frame.experiment == "control"]
    outcomes = []
    for form in ("statement", "question"):
        part = control[control.form == form]
        outcomes += [_shift(part, "memory", "context heads"), _shift(part, "context", "memory heads")]
    return Outcome.weakest(outcomes, "smallest of 2 formats x 2 directions")


def beats_prompt(frame: pd.DataFrame) -> Outcome:
    """PH3 minus an instruction, in the direction where the difference is smaller."""
    return _against(frame, {"memory": "prompt: memory", "context": "prompt: context"}, 0.0)


def as_good_as_contrast(frame: pd.DataFrame) -> Outcome:
    """PH3 minus contrasted decoding: alpha 1 for the context, -.5 for memory (-1 is closed book itself)."""
    return _against(frame, {"memory": "contrasted -0.50", "context": "contrasted +1.00"}, -0.05)


def _against(frame: pd.DataFrame, others: dict[str, str], threshold: float) -> Outcome:
    heads = {"memory": "context heads", "context": "memory heads"}
    both = [_shift(frame, metric, heads[metric], other, threshold) for metric, other in others.items()]
    return min(both, key=lambda outcome: outcome.effect if outcome.n else -1.0)


def closed_book_stays(frame: pd.DataFrame) -> Outcome:
    return _shift(frame[frame.experiment == "control"], "closed book", "context heads", threshold=HARDLY)


def reading_stays(frame: pd.DataFrame) -> Outcome:
    """Memory heads pruned: loss of closed-book recall minus loss of reading about people never seen."""
    control = frame[frame.experiment == "control"]
    lost = {}
    for metric in ("closed book", "copying"):
        pairs = _pairs(control, metric, "memory heads", "nothing")
        if len(pairs) < 2:
            return Outcome.unmeasured(f"{metric} was not measured")
        lost[metric] = (pairs["nothing"] - pairs["memory heads"]).to_numpy()
    interval = statistics.difference_of_means(lost["closed book"], lost["copying"])
    note = f"closed book loses {lost['closed book'].mean():.3f}, reading {lost['copying'].mean():.3f}"
    return Outcome.of(interval, 0.0, ">", note)


CLAIMS = (
    Claim("C1", "pruning context heads: memory wins more often than before, and than with random other heads pruned",
          SOURCE, memory_wins),
    Claim("C2", "pruning memory heads: the context wins more often than before, and than with random other heads",
          SOURCE, context_wins),
    Claim("C3", "heads found on three relations work on five others, in both formats", SOURCE, transfers),
    Claim("C4a", "pruning beats an instruction in the prompt", SOURCE, beats_prompt, ("full",)),
    Claim("C4b", "pruning is not more than .05 below contrasted decoding", SOURCE, as_good_as_contrast, ("full",)),
    Claim("C5a", "closed-book recall is hardly hurt (at most .10) by pruning context heads", "our addition",
          closed_book_stays),
    Claim("C5b", "pruning memory heads hurts recall more than reading about people never seen", "our addition",
          reading_stays),
)  # fmt: skip
