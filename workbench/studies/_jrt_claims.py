"""What Just read twice claims, as inequalities with intervals.

Accuracies of trained models are compared over their training seeds, those of one seed by the binomial error of its
test sequences (``_trained_seeds``). A gap is accuracy with the small set first minus accuracy with the large set
first, averaged over pairs of sizes (a, b), (b, a) whose large set has at least ``LARGE`` elements: the card's pilot
found no gap while both sets are small beside the state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.statistics import Interval
from workbench.studies import _corpus_lm_claims as language
from workbench.studies._trained_seeds import ONE_MODEL, Measured, by_model
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

RECURRENT, PREFIX, EMBEDDED = "Based, ours", "JRT-RNN, ours", "embedded (full attention)"
LINEAR, LINEAR_TWICE, PREFIX_TIME, QUADRATIC = "linear, N", "linear, 2N (JRT-Prompt)", "prefix linear, N", "SDPA, N"
#: Language models on the embedded corpus; ``FILLED``: the prompt is read again where others are padded.
BASED, JRT, FILLED = "Based", "JRT-RNN", "JRT-RNN, prefix filled"

#: The mean gap of the causal model must exceed this (card).
LEAST_GAP = 0.05
#: Elements of a large set.
LARGE = 64
#: Prefix linear attention may take this many times the time of causal linear attention (card).
MOST_SLOWER = 1.5


# ---- by hand ------------------------------------------------------------------------------------------------------


def _by_hand(frame: pd.DataFrame, passes: int, first: int, second: int) -> pd.Series:
    rows = frame[(frame["experiment"] == "by hand") & (frame["item"] == f"{passes} x") & (frame["x"] == 256)]
    rows = rows[(rows["first"] == first) & (rows["second"] == second)]
    return rows.set_index([name for name in ("seed", "unit") if name in rows])["value"]


def second_pass_helps(frame: pd.DataFrame) -> Outcome:
    once, twice = _by_hand(frame, 1, 256, 16), _by_hand(frame, 2, 256, 16)
    if len(twice) < 2:
        return Outcome.unmeasured("the hand-built memory was not asked")
    note = f"sets of 256 and 16, D = 256: once {once.mean():.2f}, twice {twice.mean():.2f}"
    return Outcome.of(statistics.bootstrap((twice - once).to_numpy()), 0.4, ">", note)


def order_is_gone(frame: pd.DataFrame) -> Outcome:
    """|twice with the large set first - once with the small set first|: the interval of the difference, folded."""
    twice, easy = _by_hand(frame, 2, 256, 16), _by_hand(frame, 1, 16, 256)
    if len(twice) < 2:
        return Outcome.unmeasured("the hand-built memory was not asked")
    found = statistics.difference_of_means(twice, easy)
    low = 0.0 if found.low <= 0 <= found.high else min(abs(found.low), abs(found.high))
    folded = Interval(abs(found.effect), low, max(abs(found.low), abs(found.high)), found.n)
    return Outcome.of(folded, 0.05, "<", f"twice, large first {twice.mean():.2f}; once, small first {easy.mean():.2f}")


# ---- trained models -----------------------------------------------------------------------------------------------


def _accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame[(frame["experiment"] == "sets") & (frame["metric"] == "accuracy")].copy()
    rows["small"], rows["large"] = rows[["first", "second"]].min(axis=1), rows[["first", "second"]].max(axis=1)
    rows["order"] = (rows["first"] < rows["second"]).map({True: "small first", False: "large first"})
    rows["variance"] = rows["value"] * (1 - rows["value"]) / rows["n"]
    return rows[rows["large"] >= LARGE]


def _mean(rows: pd.DataFrame) -> Measured:
    return Measured(float(rows["value"].mean()), float(rows["variance"].sum() / len(rows) ** 2), int(rows["n"].sum()))


def _gap(rows: pd.DataFrame) -> Measured:
    small, large = (_mean(rows[rows["order"] == name]) for name in ("small first", "large first"))
    return small.minus(large)


def _of_seeds(frame: pd.DataFrame, measure: Callable[[pd.DataFrame], Measured | None]) -> Interval | None:
    return by_model(_accuracies(frame), measure, model="unit")


def _judged(found: Interval | None, threshold: float, direction: str, note: str) -> Outcome:
    if found is None:
        return Outcome.unmeasured("no trained model was asked for common elements")
    return Outcome.of(found, threshold, direction, note)


def _told(frame: pd.DataFrame, *modes: str) -> str:
    """Mean accuracy of either order for every state size, in bytes."""
    rows = _accuracies(frame)
    table = rows.groupby(["item", "x", "order"])["value"].mean().unstack("order")
    said = []
    for mode in modes:
        if mode in table.index.get_level_values(0):
            lines = zip(table.loc[mode].index, *(table.loc[mode][order] for order in ("small first", "large first")))
            parts = [f"{x / 1e3:.0f} kB {small:.2f}/{large:.2f}" for x, small, large in lines]
            said.append(f"{mode}: {', '.join(parts)}")
    one = "" if rows["unit"].nunique() > 1 else f"{ONE_MODEL}; "
    return f"{one}small/large set first; " + "; ".join(said)


def order_matters(frame: pd.DataFrame) -> Outcome:
    found = _of_seeds(frame, lambda rows: _gap(rows[rows["item"] == "causal"]))
    return _judged(found, LEAST_GAP, ">", _told(frame, "causal"))


def less_with_more_state(frame: pd.DataFrame) -> Outcome:
    """Gap of the smallest state minus gap of the largest."""

    def shrinks(rows: pd.DataFrame) -> Measured | None:
        own = rows[rows["item"] == "causal"]
        if own["x"].nunique() < 2:
            return None
        small, large = _gap(own[own["x"] == own["x"].min()]), _gap(own[own["x"] == own["x"].max()])
        return small.minus(large)

    return _judged(_of_seeds(frame, shrinks), 0.0, ">", _told(frame, "causal"))


def _half_the_gap(mode: str) -> Callable[[pd.DataFrame], Outcome]:
    """Half of the causal gap minus the absolute gap of ``mode``."""

    def measure(rows: pd.DataFrame) -> Measured | None:
        own, causal = (rows[rows["item"] == name] for name in (mode, "causal"))
        if own.empty or causal.empty:
            return None
        ours, theirs = _gap(own), _gap(causal)
        return Measured(theirs.value / 2 - abs(ours.value), theirs.variance / 4 + ours.variance, ours.n + theirs.n)

    return lambda frame: _judged(_of_seeds(frame, measure), 0.0, ">", _told(frame, "causal", mode))


def _better_with_large_first(mode: str) -> Callable[[pd.DataFrame], Outcome]:
    def measure(rows: pd.DataFrame) -> Measured | None:
        rows = rows[rows["order"] == "large first"]
        own, causal = (rows[rows["item"] == name] for name in (mode, "causal"))
        if own.empty or causal.empty:
            return None
        return _mean(own).minus(_mean(causal))

    return lambda frame: _judged(_of_seeds(frame, measure), 0.0, ">", _told(frame, "causal", mode))


def learns_live(frame: pd.DataFrame) -> Outcome:
    rows = frame[frame["experiment"] == "live training"]
    if len(rows) < 20:
        return Outcome.unmeasured("nothing was trained in this run")
    slope = statistics.slope_interval(rows["x"], rows["value"])
    first, last = rows["value"].head(5).mean(), rows["value"].tail(5).mean()
    return Outcome.of(slope, 0.0, "<", f"loss of the first and last 5 steps: {first:.2f}, {last:.2f} nats")


# ---- prompts ------------------------------------------------------------------------------------------------------


def _answers(frame: pd.DataFrame, item: str, repeats: int) -> pd.Series:
    rows = frame[(frame["experiment"] == "prompt") & (frame["metric"] == "correct") & (frame["item"] == item)]
    rows = rows[rows["x"] == repeats]
    return rows.set_index([name for name in ("seed", "unit") if name in rows])["value"]


def _paired(frame: pd.DataFrame, better: tuple[str, int], worse: tuple[str, int]) -> Outcome:
    first, second = _answers(frame, *better), _answers(frame, *worse)
    both = (first - second).dropna()
    if len(both) < 2:
        return Outcome.unmeasured(f"{better[0]} and {worse[0]} were not asked in this run")
    note = f"{worse[0]} x {worse[1]}: {second.mean():.3f}; {better[0]} x {better[1]}: {first.mean():.3f}"
    return Outcome.of(statistics.of_differences(both.to_numpy()), 0.0, ">", note)


def repeating_helps(frame: pd.DataFrame) -> Outcome:
    return _paired(frame, (RECURRENT, 2), (RECURRENT, 1))


def repeating_helps_attention(frame: pd.DataFrame) -> Outcome:
    return _paired(frame, (EMBEDDED, 2), (EMBEDDED, 1))


def prefix_beats_causal(frame: pd.DataFrame) -> Outcome:
    return _paired(frame, (PREFIX, 1), (RECURRENT, 1))


# ---- language models on the embedded corpus -------------------------------------------------------------------------


def again(name: str) -> str:
    """How a model is called where its prompt stands twice."""
    return f"{name}, repeated"


def shared_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the scale ``lm`` with the columns of the shared code: part, variant, x, model, unit, metric, value."""
    return frame.rename(columns={"experiment": "part", "item": "variant"})


def _answers_more(better: str, worse: str) -> Callable[[pd.DataFrame], Outcome]:
    return lambda frame: language.answers_more(shared_names(frame), better, worse, metric="contains")


def behind_the_prefix(frame: pd.DataFrame) -> Outcome:
    """Nats a token of Based minus those of JRT-RNN, on tokens M to N of held-out books."""
    return language.lower(shared_names(frame), JRT, BASED, direction=">=")


# ---- speed and size -----------------------------------------------------------------------------------------------


def _times(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame[frame["experiment"] == "prefill"]
    return rows.pivot_table(index=["item", "x"], columns="metric", values="value")


def _ratio(frame: pd.DataFrame, top: str, bottom: str, note: str) -> tuple[Interval | None, str]:
    """Median time over median time at the longest N that both have, from quartile to quartile."""
    table = _times(frame)
    have = [set(table.loc[item].index) if item in table.index.get_level_values(0) else set() for item in (top, bottom)]
    lengths = sorted(have[0] & have[1])
    if not lengths or "ms" not in table:
        return None, "times were not taken in this run"
    longest = lengths[-1]
    a, b = table.loc[(top, longest)], table.loc[(bottom, longest)]
    ratio = Interval(a["ms"] / b["ms"], a["q25"] / b["q75"], a["q75"] / b["q25"], int(a["launches"]))
    every = [(n, table.loc[(top, n), "ms"] / table.loc[(bottom, n), "ms"]) for n in lengths]
    return ratio, note + ", ".join(f"{n:.0f}: {value:.2f}" for n, value in every)


def twice_is_faster(frame: pd.DataFrame) -> Outcome:
    found, note = _ratio(frame, LINEAR_TWICE, QUADRATIC, "linear 2N over SDPA N, by N: ")
    return Outcome.unmeasured(note) if found is None else Outcome.of(found, 1.0, "<", note)


def prefix_costs_little(frame: pd.DataFrame) -> Outcome:
    found, note = _ratio(frame, PREFIX_TIME, LINEAR, "prefix over causal, by N: ")
    return Outcome.unmeasured(note) if found is None else Outcome.of(found, MOST_SLOWER, "<=", note)


def same_state(frame: pd.DataFrame) -> Outcome:
    """Largest difference in bytes between the states of both layers, over widths and tokens read."""
    rows = frame[frame["experiment"] == "state"]
    if rows.empty:
        return Outcome.unmeasured("states were not measured in this run")
    table = rows.pivot_table(index=["unit", "x"], columns="item", values="value")
    apart = float((table["prefix"] - table["causal"]).abs().max())
    spans = table.groupby("unit").max() - table.groupby("unit").min()
    grown = float(spans.to_numpy().max())
    worst = max(apart, grown)
    note = f"bytes after {', '.join(f'{x:.0f}' for x in sorted(rows['x'].unique()))} tokens: equal, and constant"
    return Outcome.of(Interval(worst, worst, worst, len(table)), 0.0, "<=", note if worst == 0 else "they differ")


CARD, PAPER = "card, reproduction here", "arXiv 2407.05483"
CLAIMS = (
    Claim("E1a", "by hand, D = 256: reading twice gains more than .4 when the large set comes first", CARD,
          second_pass_helps),
    Claim("E1b", "by hand: read twice, the order makes less than .05", CARD, order_is_gone),
    Claim("C1a", "a causal model finds the common element more often when the small set comes first (by > 5 points)",
          f"{PAPER}, Figure 2", order_matters),
    Claim("C1b", "that gap is larger for the smallest state than for the largest", f"{PAPER}, Figure 2",
          less_with_more_state),
    Claim("C2a", "prefix linear attention: the gap is less than half of the causal one", f"{PAPER}, Figure 2",
          _half_the_gap("prefix")),
    Claim("C2b", "prefix linear attention is more accurate than causal when the large set comes first",
          f"{PAPER}, Figure 2", _better_with_large_first("prefix")),
    Claim("C2c", "a non-causal model: the gap is less than half of the causal one", f"{PAPER}, Figure 2",
          _half_the_gap("non-causal")),
    Claim("C2d", "a non-causal model is more accurate than causal when the large set comes first",
          f"{PAPER}, Figure 2", _better_with_large_first("non-causal")),
    Claim("C3a", "JRT-Prompt: a recurrent language model answers more when the prompt is repeated",
          f"{PAPER}, Table 1", repeating_helps),
    Claim("C3b", "JRT-Prompt: so does a model with full attention", f"{PAPER}, Table 1", repeating_helps_attention),
    Claim("C4", "JRT-RNN answers more than Based at equal state, both reading once", f"{PAPER}, Table 2",
          prefix_beats_causal),
    Claim("C5a", "at the longest N, linear attention reads 2N tokens faster than quadratic attention reads N",
          f"{PAPER}, Table 5", twice_is_faster, ("full",)),
    Claim("C5b", "prefix linear attention takes at most 1.5 times the time of causal linear attention", CARD,
          prefix_costs_little, ("full",)),
    Claim("C6", "the decode state of prefix linear attention has the size of the causal one, whatever was read",
          f"{PAPER}, equation 4", same_state),
    Claim("LM-C3", "language models on the embedded corpus: Based answers more when the prompt is repeated",
          f"{PAPER}, Table 1", _answers_more(again(BASED), BASED), (language.SCALE,)),
    Claim("LM-C4", "language models: JRT-RNN answers more than Based at equal state, both reading once",
          f"{PAPER}, Table 2", _answers_more(JRT, BASED), (language.SCALE,)),
    Claim("LM-FILL", "language models: JRT-RNN answers more when a short prompt is read again than when it is padded",
          f"{PAPER}, Table 4", _answers_more(FILLED, JRT), (language.SCALE,)),
    Claim("LM-PPL", "language models: behind the prefix, JRT-RNN's perplexity of held-out books is not above Based's",
          "card, equal steps and windows; the paper trains longer", behind_the_prefix, (language.SCALE,)),
    Claim("S1", "forty live steps of training lower the loss", CARD, learns_live, ("quick",)),
)  # fmt: skip
