"""What MoM claims and how each claim is tested on the study's frame: part, variant, x, model, unit, metric, value.

Trained models are paired by seed and compared over seeds, or over groups of test sequences (``_trained_seeds``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.statistics import Interval
from workbench.studies import _corpus_lm_claims as language
from workbench.studies import _trained_seeds as trained
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

PAPER = "arXiv 2502.13685"
#: The largest number of pairs in training.
PAIRS = 16
#: A perplexity that is at most a fiftieth higher counts as a tie (nats).
TIE = 0.02


def _wide(frame: pd.DataFrame, part: str, metric: str, x: float | None = None) -> pd.DataFrame:
    rows = frame[(frame["part"] == part) & (frame["metric"] == metric)]
    return trained.wide(rows if x is None else rows[rows["x"] == x])


def _few(several: bool) -> str:
    """What to say where the interval is not over models."""
    return "" if several else f" ({trained.ONE_MODEL})"


def difference(frame: pd.DataFrame, first: str, second: str) -> Outcome:
    """Recall of ``first`` minus ``second`` at the largest number of pairs that was trained."""
    found = trained.paired(_wide(frame, "recall", "recall", PAIRS), first, second)
    if found is None:
        return Outcome.unmeasured(
            f"{first} and {second} were not both measured (no trained models, or a run cut short)"
        )
    note = f"{first} {found.first:.3f}, {second} {found.second:.3f} at {PAIRS} pairs"
    return Outcome.of(found.interval, 0.0, ">", note + _few(found.several))


def better_than_one(frame: pd.DataFrame) -> Outcome:
    return Outcome.weakest([difference(frame, f"{rule} MoM", f"{rule} single") for rule in ("GDN", "GLA")])


def better_than_expanded(frame: pd.DataFrame) -> Outcome:
    """For one rule at least: the stronger of the two, both are told."""
    found = [difference(frame, f"{rule} MoM", f"{rule} expanded") for rule in ("GDN", "GLA")]
    rank = {"holds": 2, "inconclusive": 1, "not reproduced": 0}
    best = max(found, key=lambda one: (one.n > 0, rank[one.verdict], one.effect))
    note = "; ".join(f"{one.note} ({one.verdict})" for one in found)
    return replace(best, note=note)


def shared_helps(frame: pd.DataFrame) -> Outcome:
    return difference(frame, "GDN MoM", "GDN MoM, not shared")


#: N by variant; k is half of it in each.
SIZES = {"GDN MoM, N=2": 2, "GDN MoM": 4, "GDN MoM, N=8": 8}


def more_memories(frame: pd.DataFrame) -> Outcome:
    """Slope of recall over log2 N, k = N/2."""
    import numpy as np
    import pandas as pd

    table = trained.complete(_wide(frame, "recall", "recall", PAIRS), list(SIZES))
    if table is None:
        return Outcome.unmeasured("recall was not measured for N = 2, 4 and 8")
    slopes = np.polyfit(np.log2(list(SIZES.values())), table.to_numpy().T, 1)[0]
    note = "recall " + ", ".join(f"N={SIZES[name]} {table[name].mean():.3f}" for name in SIZES)
    found = trained.over_models(pd.Series(slopes, table.index))
    return Outcome.of(found, 0.0, ">", note + _few(trained.several(table)))


def constant_decoding(frame: pd.DataFrame) -> Outcome:
    """Exponent of the median time of a step in the context; the state must not grow by a byte."""
    rows = frame[frame["part"] == "decoding"]
    if not len(rows):
        return Outcome.unmeasured("decoding was not timed")
    slopes, grown = {}, {}
    for variant, mine in rows.groupby("variant"):
        times = mine[mine["metric"] == "seconds"].groupby("x")["value"].median()
        slopes[variant] = statistics.slope_interval(times.index, times.to_numpy(), log=True)
        held = mine[mine["metric"] == "state bytes"].groupby("x")["value"].mean()
        grown[variant] = held.iloc[-1] / held.iloc[0]
    note = ", ".join(f"{name}: exponent {slopes[name].effect:.3f}, state x {grown[name]:.3g}" for name in slopes)
    timed, bytes_ = Outcome.of(slopes["GDN MoM"], 0.1, "<", note), float(grown["GDN MoM"])
    return Outcome.weakest([timed, Outcome.of(Interval(bytes_, bytes_, bytes_, len(rows)), 1.0, "<=")], note)


def balanced(frame: pd.DataFrame) -> Outcome:
    """Spread of the memories' shares over their mean, without the balance loss minus with it, mean of the layers."""
    rows = frame[(frame["part"] == "routing") & (frame["metric"] == "share")]
    rows = rows.assign(unit=rows["unit"].astype(str).str.split(":").str[0])
    keys = [name for name in ("seed", "model", "unit") if name in rows]
    each = rows.groupby([*keys, "variant", "x"])["value"]
    spread = each.agg(lambda shares: shares.std(ddof=0) / shares.mean()).reset_index()
    without, with_ = "GDN MoM, no balance loss", "GDN MoM"
    pair = trained.complete(trained.wide(spread), (without, with_))
    if pair is None:
        return Outcome.unmeasured("routing was not measured with and without the balance loss")
    note = f"spread / mean of shares: without {pair[without].mean():.3f}, with {pair[with_].mean():.3f}"
    found = trained.over_models(pair[without] - pair[with_], statistics.bootstrap)
    return Outcome.of(found, 0.0, ">", note + _few(trained.several(pair)))


def separation(frame: pd.DataFrame) -> Outcome:
    """Untrained: a linear router by domain against one memory, 16 facts a domain; what else does it is in the note."""
    wide = _wide(frame, "by hand", "recall", 16)
    if len(wide) < 2:
        return Outcome.unmeasured("facts were not written by hand")
    means = wide.mean()
    note = ", ".join(f"{name} {means[name]:.2f}" for name in means.sort_values().index)
    return Outcome.of(statistics.t_interval((wide["domain router"] - wide["single"]).to_numpy()), 0.0, ">", note)


CLAIMS = (
    Claim("C1", "MQAR, 16 pairs: MoM recalls more than one memory of the same rule (gated DeltaNet and GLA)",
          f"{PAPER}, table 2", better_than_one),
    Claim("C2", "more than one memory expanded to the same activated state, for one rule at least",
          f"{PAPER}, table 4", better_than_expanded),
    Claim("C3", "the shared memory helps: with it - without it > 0", f"{PAPER}, table 6", shared_helps),
    Claim("C4", "recall grows with the number of memories N at k = N/2", f"{PAPER}, figure 6", more_memories),
    Claim("C5", "decoding costs the same at every length: exponent of time < .1, state constant",
          f"{PAPER}, section 4", constant_decoding),
    Claim("C6", "the balance loss evens the load: spread of shares without - with > 0",
          f"{PAPER}, figure 5", balanced),
    Claim("C7", "untrained, facts under shared keys: a router by domain > one memory",
          f"{PAPER}, section 1 (interference); set-up of our own", separation),
    Claim("LM", "language models on the embedded corpus: the perplexity of MoM is not above that of one memory",
          f"{PAPER}, figure 4 (a plot)", language.lower_than("GDN MoM", "GDN single", direction=">="),
          (language.SCALE,)),
    Claim("LM-TIE", "nor by more than a fiftieth, which is a tie", "card",
          language.lower_than("GDN MoM", "GDN single", threshold=-TIE), (language.SCALE,)),
    Claim("LM-EXPANDED", "nor is it above that of one memory expanded to the same activated state",
          f"{PAPER}, table 4, which has other tasks", language.lower_than("GDN MoM", "GDN expanded", direction=">="),
          (language.SCALE,)),
    Claim("QA", "language models: MoM answers at least as many questions about strangers as one memory",
          f"{PAPER}, table 2, which has other tasks",
          partial(language.answers_more, better="GDN MoM", worse="GDN single", direction=">="), (language.SCALE,)),
)  # fmt: skip
