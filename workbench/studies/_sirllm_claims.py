"""What SirLLM claims and how each claim is tested; see the study for when the margins were chosen.

Every test reads the study's tidy frame: experiment, policy, budget, unit (a dialogue, or a player), step, distance,
metric, value, item_surprise (and the runner's seed). Pairs are the same unit of the same seed under two policies.
Caches of several sizes read the same dialogues, so they are no further observations: each size is judged by itself,
and the weakest decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.statistics import HOLDS, INCONCLUSIVE, Interval
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

SIRLLM, STREAMING, RANDOM, RELEASED = "SirLLM", "StreamingLLM", "random", "SirLLM, released score"
RPS_SIRLLM, CHAT_SIRLLM = "SirLLM, decay .9", "SirLLM, decay .7"
SOURCE = "arXiv 2405.12528"
#: Margins that the quick scale can see: 40 groups at exactly chance (.25) have a Wilson interval up to .40, and 40
#: pairs without any difference still allow one of .09.
ALPHA, NOT_WORSE, NEAR_CHANCE = 0.05, -0.10, 0.20


def _pairs(frame: pd.DataFrame, experiment: str, metric: str, first: str, second: str) -> pd.DataFrame:
    """Columns ``first`` and ``second`` of one metric, one line a pair; empty when either policy did not run."""
    rows = frame[(frame.experiment == experiment) & (frame.metric == metric) & frame.policy.isin([first, second])]
    keys = [key for key in ("seed", "budget", "unit", "step") if key in rows]
    rows = rows.fillna({"step": -1, "budget": -1})
    wide = rows.pivot_table(index=keys, columns="policy", values="value", aggfunc="mean")
    return wide.dropna() if {first, second} <= set(wide) else wide.iloc[:0]


def _each_cache(judge: Callable[[pd.DataFrame], Outcome]) -> Callable[[pd.DataFrame], Outcome]:
    """``judge`` on the grocery rows of every cache size by itself; sizes that it cannot judge are left out."""

    @wraps(judge)
    def judged(frame: pd.DataFrame) -> Outcome:
        rows = frame[frame.experiment == "grocery"]
        sizes = sorted(rows.budget.dropna().unique())
        each = {f"cache of {size:.0f}": judge(rows[rows.budget == size]) for size in sizes}
        found = {name: one for name, one in each.items() if one.n}
        return Outcome.weakest_of(found) if found else judge(rows)

    return judged


def _difference(
    frame: pd.DataFrame, experiment: str, metric: str, first: str, second: str, threshold: float = 0.0
) -> Outcome:
    pairs = _pairs(frame, experiment, metric, first, second)
    if len(pairs) < 2:
        return Outcome.unmeasured(f"no {metric} of {first} and {second}")
    note = f"{first} {pairs[first].mean():.3f}, {second} {pairs[second].mean():.3f}"
    interval = statistics.of_differences(pairs[first] - pairs[second])
    return Outcome.of(interval, threshold, ">" if threshold == 0 else ">=", note)


def _with_mcnemar(frame: pd.DataFrame, outcome: Outcome, first: str, second: str) -> Outcome:
    """The paired interval must exclude zero *and* McNemar's exact test on the same groups must reject equality."""
    pairs = _pairs(frame, "grocery", "recall", first, second)
    if not len(pairs):
        return outcome
    test = statistics.mcnemar(pairs[first], pairs[second])
    note = f"{outcome.note}; McNemar p = {test.p:.2g} ({test.only_a} against {test.only_b})"
    verdict = INCONCLUSIVE if outcome.verdict == HOLDS and test.p >= ALPHA else outcome.verdict
    return replace(outcome, verdict=verdict, note=note)


@_each_cache
def recall_beats_streaming(frame: pd.DataFrame) -> Outcome:
    outcome = _difference(frame, "grocery", "recall", SIRLLM, STREAMING)
    return _with_mcnemar(frame, outcome, SIRLLM, STREAMING)


@_each_cache
def distractors_not_worse(frame: pd.DataFrame) -> Outcome:
    return _difference(frame, "grocery", "distractors", SIRLLM, STREAMING, NOT_WORSE)


@_each_cache
def streaming_near_chance(frame: pd.DataFrame) -> Outcome:
    """Recall minus chance, where no token of the order was left in the window."""
    rows = frame[(frame.experiment == "grocery") & (frame.policy == STREAMING)]
    keys = ["seed", "budget", "unit"] if "seed" in rows else ["budget", "unit"]
    both = rows[rows.metric.isin(["recall", "survival"])].pivot_table(index=keys, columns="metric", values="value")
    lost = both[both.survival == 0] if "survival" in both else both
    if not len(lost):
        return Outcome.unmeasured("the order never left the window")
    chance = float(rows[rows.metric == "chance"].value.iloc[0])
    found = statistics.wilson(int(lost.recall.sum()), len(lost))
    shifted = Interval(found.effect - chance, found.low - chance, found.high - chance, found.n)
    return Outcome.of(shifted, NEAR_CHANCE, "<", f"recall {found.effect:.3f}, chance {chance:.2f}")


@_each_cache
def survival_order(frame: pd.DataFrame) -> Outcome:
    return Outcome.weakest([
        _difference(frame, "grocery", "survival", SIRLLM, RANDOM),
        _difference(frame, "grocery", "survival", RANDOM, STREAMING),
    ])  # fmt: skip


@_each_cache
def random_between(frame: pd.DataFrame) -> Outcome:
    return Outcome.weakest([
        _difference(frame, "grocery", "recall", SIRLLM, RANDOM),
        _difference(frame, "grocery", "recall", RANDOM, STREAMING),
    ])  # fmt: skip


@_each_cache
def paper_beats_released(frame: pd.DataFrame) -> Outcome:
    outcome = _difference(frame, "grocery", "recall", SIRLLM, RELEASED)
    return _with_mcnemar(frame, outcome, SIRLLM, RELEASED)


@_each_cache
def released_score_too(frame: pd.DataFrame) -> Outcome:
    outcome = _difference(frame, "grocery", "recall", RELEASED, STREAMING)
    return _with_mcnemar(frame, outcome, RELEASED, STREAMING)


def predictable_items_are_lost(frame: pd.DataFrame) -> Outcome:
    """Rank correlation of the item's survival with the surprise it was read with, in the smallest cache that ran."""
    rows = frame[(frame.experiment == "grocery") & (frame.policy == SIRLLM) & (frame.metric == "survival")]
    rows = rows[rows.budget == rows.budget.min()]
    if len(rows) < 4 or rows.value.nunique() < 2:
        share = f"{rows.value.mean():.2f} of the items survived" if len(rows) else "no survival was measured"
        return Outcome.unmeasured(f"{share}: nothing to correlate")
    note = f"cache of {int(rows.budget.iloc[0])}: {rows.value.mean():.2f} of the items survived"
    return Outcome.of(statistics.spearman_interval(rows.item_surprise, rows.value), 0.0, ">", note)


@_each_cache
def content_words_stay(frame: pd.DataFrame) -> Outcome:
    """Share of frame tokens (USER, ASSISTANT, colon, line break) in the stream minus their share among those kept."""
    rows = frame[(frame.experiment == "grocery") & (frame.policy == SIRLLM)]
    keys = ["seed", "budget", "unit"] if "seed" in rows else ["budget", "unit"]
    names = ["frame share of stream", "frame share of kept"]
    wide = rows[rows.metric.isin(names)].pivot_table(index=keys, columns="metric", values="value").dropna()
    if len(wide) < 2:
        return Outcome.unmeasured("no tokens were kept for their score")
    note = f"{wide[names[0]].mean():.2f} of the stream, {wide[names[1]].mean():.2f} of the kept tokens"
    return Outcome.of(statistics.paired_bootstrap(wide[names[0]], wide[names[1]]), 0.0, ">", note)


def rps_wins_more(frame: pd.DataFrame) -> Outcome:
    players = sorted(frame[frame.experiment == "rps"].unit.unique())
    if not players:
        return Outcome.unmeasured("rock-paper-scissors was not played")
    return Outcome.weakest_of(
        {name: _difference(frame[frame.unit == name], "rps", "win", RPS_SIRLLM, STREAMING) for name in players}
    )


def rps_holds_more_moves(frame: pd.DataFrame) -> Outcome:
    return _difference(frame, "rps", "share of moves", RPS_SIRLLM, STREAMING)


def rps_decay_helps(frame: pd.DataFrame) -> Outcome:
    return _difference(frame, "rps", "win", RPS_SIRLLM, SIRLLM)


def chat_not_worse(frame: pd.DataFrame) -> Outcome:
    return _difference(frame, "chat", "accuracy", CHAT_SIRLLM, STREAMING, NOT_WORSE)


def chat_decay_helps(frame: pd.DataFrame) -> Outcome:
    return _difference(frame, "chat", "accuracy", CHAT_SIRLLM, SIRLLM)


_TESTED = (
    ("G1", "Grocery recall: SirLLM > StreamingLLM with equal caches (and McNemar p < .05)",
     "headline 1", recall_beats_streaming),
    ("G2", "Accuracy on the questions between: SirLLM not worse than StreamingLLM (margin .10)",
     "headline 1", distractors_not_worse),
    ("G3", "Once the order left the window, StreamingLLM recalls near chance (less than .20 above)",
     "mechanism", streaming_near_chance),
    ("G4", "The item survives in the cache: SirLLM > random > StreamingLLM",
     "mechanism", survival_order),
    ("G5", "Grocery recall: SirLLM > random > StreamingLLM (what the score is worth)",
     "ours", random_between),
    ("G6", "Grocery recall: the paper's score > the score that the released code computes",
     "ours, on the released code", paper_beats_released),
    ("G7", "The headline holds with the released code's score too: it > StreamingLLM",
     "ours, on the released code", released_score_too),
    ("G8", "SirLLM loses predictable items: survival rises with the item's surprise (tight cache)",
     "ours, failure mode", predictable_items_are_lost),
    ("G9", "High-entropy tokens are content words: fewer frame tokens kept than read",
     "headline 4", content_words_stay),
    ("R1", "Rock-paper-scissors: SirLLM (decay .9) wins more than StreamingLLM, each of three players",
     "headline 2", rps_wins_more),
    ("R2", "The user's moves fill a larger share of SirLLM's cache than of StreamingLLM's",
     "mechanism", rps_holds_more_moves),
    ("R3", "Rock-paper-scissors: decay .9 wins more than no decay",
     "headline 4", rps_decay_helps),
    ("D1", "Reply choice: SirLLM (decay .7) not worse than StreamingLLM (margin .10)",
     "headline 3", chat_not_worse),
    ("D2", "Reply choice: decay .7 is more accurate than no decay",
     "headline 4", chat_decay_helps),
)  # fmt: skip
#: Differences of a few per cent, or a correlation: forty dialogues cannot tell, so only the full scale judges them.
NEEDS_FULL = ("G7", "G8", "R1", "R3", "D2")
CLAIMS = tuple(
    Claim(key, says, f"{SOURCE}, {source}", test, ("full",) if key in NEEDS_FULL else ("quick", "full"))
    for key, says, source, test in _TESTED
)
