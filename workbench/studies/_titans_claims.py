"""What Titans claims and how each claim is tested on the study's frame (part, variant, x, model, unit, metric, value).

Trained models are compared by the mean of their recall, over trained seeds or over groups of test sequences
(``_trained_seeds``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.studies import _corpus_lm_claims as language
from workbench.studies import _trained_seeds as trained
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

LMM, LINEAR, MAC, MAG, MAL = "LMM", "LMM, linear memory", "MAC", "MAG", "MAL"
NO_MOMENTUM, NO_DECAY = "LMM, no momentum", "LMM, no decay"
DELTA, HEBBIAN, TTT, WINDOW = "DeltaNet", "Hebbian + decay", "TTT, linear", "window attention"
GDN = "gated DeltaNet"
#: Tokens between facts and question beyond what four blocks of a window of 64 pass on (252).
OUT_OF_REACH = 256
SOURCE = "arXiv 2501.00663"
#: Tokens that the models were trained at; from this distance on two layers of attention see nothing of a fact (x is
#: the upper end of a bucket of distances).
TRAINED_AT, FAR = 256, 69
#: Six times the chance of guessing a value: two models that recall less than this say nothing about each other.
SOMETHING = 0.05


# -- the memory alone -------------------------------------------------------------------------------------------------


def _wide(frame: pd.DataFrame, part: str, x: float | None = None) -> pd.DataFrame:
    """Accuracy with a row a stream (and study seed) and a column a variant."""
    rows = frame[(frame.part == part) & (frame.metric == "accuracy")]
    rows = rows if x is None else rows[rows.x == x]
    return rows.pivot_table(index=[key for key in ("seed", "unit") if key in rows], columns="variant",
                            values="value")  # fmt: skip


def above(
    frame: pd.DataFrame, part: str, high: str, low: str, threshold: float = 0.0, direction: str = ">",
    x: float | None = None,
) -> Outcome:  # fmt: skip
    """mean of (high - low) over streams against the threshold, paired."""
    wide = _wide(frame, part, x)
    if not {high, low} <= set(wide) or len(wide[[high, low]].dropna()) < 2:
        return Outcome.unmeasured(f"{part} was not run for {high} and {low}")
    both = wide[[high, low]].dropna()
    note = f"{high} {both[high].mean():.3f}, {low} {both[low].mean():.3f}"
    return Outcome.of(statistics.bootstrap(both[high] - both[low]), threshold, direction, note)


def in_order(frame: pd.DataFrame, part: str, names: Sequence[str], xs: Sequence[float]) -> Outcome:
    """Each variant above the one before it, at each x."""
    steps = [(high, low, x) for low, high in pairwise(names) for x in xs]
    tests = [above(frame, part, high, low, x=x) for high, low, x in steps]
    measured = [test for test in tests if test.n]
    return Outcome.weakest(measured) if measured else tests[0]


def chunk_costs(frame: pd.DataFrame) -> Outcome:
    """Recall of the 2-layer memory with gradients for each token minus gradients for 16 tokens at once."""
    wide = frame[(frame.part == "A4") & (frame.variant == "2 layers, θ .2")]
    wide = wide.pivot_table(index=[k for k in ("seed", "unit") if k in wide], columns="x", values="value")
    if not {1.0, 16.0} <= set(wide) or len(wide) < 2:
        return Outcome.unmeasured("chunk sizes were not compared")
    note = f"b = 1: {wide[1.0].mean():.3f}, b = 16: {wide[16.0].mean():.3f}"
    return Outcome.of(statistics.bootstrap(wide[1.0] - wide[16.0]), 0.0, ">", note)


# -- trained models ---------------------------------------------------------------------------------------------------


def learnt(
    frame: pd.DataFrame, part: str, high: str, low: str, threshold: float, direction: str,
    test: Callable[[pd.Series], pd.Series],
) -> Outcome:  # fmt: skip
    """mean of recall(high) - recall(low) against the threshold."""
    rows = frame[(frame.part == part) & (frame.metric == "recall")]
    found = trained.paired(trained.wide(rows[test(rows.x)]), high, low)
    if found is None:
        return Outcome.unmeasured(f"no trained {high} and {low}")
    if max(found.first, found.second) < SOMETHING:
        return Outcome.unmeasured(f"neither {high} ({found.first:.3f}) nor {low} ({found.second:.3f}) recalls")
    note = f"{high} {found.first:.3f}, {low} {found.second:.3f}, {found.over}"
    return Outcome.of(found.interval, threshold, direction, note)


def _all(part: str, pairs: Sequence[tuple[str, str]], threshold: float, direction: str,
         test: Callable[[pd.Series], pd.Series]) -> Callable[[pd.DataFrame], Outcome]:  # fmt: skip
    def judge(frame: pd.DataFrame) -> Outcome:
        tests = [learnt(frame, part, high, low, threshold, direction, test) for high, low in pairs]
        return Outcome.weakest(tests)

    return judge


def _beyond(x: pd.Series) -> pd.Series:
    return x > TRAINED_AT


def _four_times(x: pd.Series) -> pd.Series:
    return x == 4 * TRAINED_AT


def _far(x: pd.Series) -> pd.Series:
    return x > FAR


def linear_cost(frame: pd.DataFrame) -> Outcome:
    """Time at the longest length over time at a quarter of it, below 5; the state must not have grown at all."""
    rows = frame[(frame.part == "cost") & (frame.variant == LMM)]
    seconds = rows[rows.metric == "seconds"].pivot_table(index="unit", columns="x", values="value")
    if len(seconds) < 2 or seconds.shape[1] < 2:
        return Outcome.unmeasured("the cost was not measured")
    longest = max(float(x) for x in seconds.columns)
    if longest / 4 not in seconds:
        return Outcome.unmeasured(f"no length of {longest / 4:g} to compare {longest:g} with")
    ratio = statistics.bootstrap((seconds[longest] / seconds[longest / 4]).to_numpy())
    held = rows[rows.metric == "state bytes"].value
    if held.nunique() > 1:
        return Outcome("not reproduced", *ratio, "the state grew with the stream", threshold=5.0)
    return Outcome.of(
        ratio, 5.0, "<", f"time at {longest:g} / at {longest / 4:g} tokens; state {held.iloc[0]:,.0f} bytes"
    )


def falls(frame: pd.DataFrame) -> Outcome:
    """Share by which the loss fell: first three steps against the last ten."""
    rows = frame[frame.part == "live training"].sort_values("x")
    if len(rows) < 20:
        return Outcome.unmeasured("nothing was trained")
    first, last = rows.value.head(3).mean(), rows.value.tail(10)
    fall = statistics.bootstrap(1 - last / first)
    return Outcome.of(fall, 0.2, ">", f"loss {first:.2f} to {last.mean():.2f} nats in {len(rows)} steps")


_ORDER = ("Hebbian", "delta", "delta + momentum", "2 layers")
CLAIMS = (
    Claim("C1", "deep > linear memory where no part of the key tells the value (accuracy, difference > .5)",
          f"{SOURCE}, 3.1", partial(above, part="A1", high="2 layers, θ 0.05", low="1 layers, θ 0.1", threshold=0.5)),
    Claim("C1-PAIRS", "pairs held: Hebbian < delta < delta with momentum < deep, at 64 and 128 pairs",
          f"{SOURCE}, 3.1", partial(in_order, part="A2", names=_ORDER, xs=(64, 128))),
    Claim("C1-TRAINED", "trained: LMM > LMM with a linear memory, recall beyond the trained length",
          f"{SOURCE}, Table 5", _all("length", [(LMM, LINEAR)], 0.0, ">", _beyond)),
    Claim("C2-MOMENTUM", "trained: LMM > LMM without momentum, recall beyond the trained length",
          f"{SOURCE}, Table 5", _all("length", [(LMM, NO_MOMENTUM)], 0.0, ">", _beyond)),
    Claim("C2-DECAY", "trained: LMM > LMM without weight decay, recall beyond the trained length",
          f"{SOURCE}, Table 5", _all("length", [(LMM, NO_DECAY)], 0.0, ">", _beyond)),
    Claim("C3", "trained: recall of LMM at 4 times the trained length >= DeltaNet, TTT and Hebbian with decay",
          f"{SOURCE}, Table 2", _all("length", [(LMM, DELTA), (LMM, TTT), (LMM, HEBBIAN)], 0.0, ">=", _four_times)),
    Claim("C4-ORDER", "trained: MAC >= MAG >= MAL on needles outside the window",
          f"{SOURCE}, Table 5", _all("distance", [(MAC, MAG), (MAG, MAL)], 0.0, ">=", _far)),
    Claim("C4-WINDOW", "trained: MAC and MAG > window attention on needles outside the window, by .2 or more",
          f"{SOURCE}, Table 2; threshold of our own",
          _all("distance", [(MAC, WINDOW), (MAG, WINDOW)], 0.2, ">=", _far)),
    Claim("C5", "cost is linear in length: 4 times the tokens take less than 5 times as long, and the state stays",
          f"{SOURCE}, 3.2 and Figure 8", linear_cost),
    Claim("FORGET", "decay towards the initial weights helps a deep memory to recall the newest of 1,056 pairs",
          "our own", partial(above, part="A3", high="2 layers, α .01 to initial", low="2 layers, no decay")),
    Claim("FORGET-ZERO", "decay towards zero, as in the paper, helps a deep memory without an outer loop as well",
          f"{SOURCE}, equation 14",
          partial(above, part="A3", high="2 layers, α .01 to zero", low="2 layers, no decay")),
    Claim("CHUNK", "gradients taken once for 16 tokens cost recall (2 layers, theta = .2)",
          "Di Nepi et al., arXiv 2510.09551", chunk_costs),
    Claim("TRAINS", "60 training steps of a small LMM lower its loss by more than a fifth", "our own", falls,
          ("quick",)),
    Claim("LM-WINDOW", "language models on the embedded corpus: MAG has a lower perplexity than window attention",
          "card; Table 1 has full attention in place of a window: 25.07 against 31.52",
          language.lower_than(MAG, WINDOW), (language.SCALE,)),
    Claim("LM-LMM", "language models: LMM has a lower perplexity than gated DeltaNet",
          f"{SOURCE}, Table 1: 26.18 against 27.01", language.lower_than(LMM, GDN), (language.SCALE,)),
    Claim("LM-HYBRID", "language models: MAG and MAL have a lower perplexity than LMM",
          f"{SOURCE}, Table 1: 25.07 and 24.69 against 26.18",
          partial(language.all_lower, pairs=((MAG, LMM), (MAL, LMM))), (language.SCALE,)),
    Claim("LM-RECALL", "language models: MAG answers more about strangers than window attention, beyond its reach",
          "our own", partial(language.answers_more, better=MAG, worse=WINDOW, least_gap=OUT_OF_REACH),
          (language.SCALE,)),
)  # fmt: skip
