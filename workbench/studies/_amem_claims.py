"""What A-MEM claims, as inequalities, and how each is tested; see the study for when settings were chosen.

Every test reads the study's tidy frame: experiment, encoder, method, accounting, budget, unit (a world or a dialogue),
kind, question, metric, value, n. Bridge worlds are paired question by question; LoCoMo dialogue by dialogue, because
the questions about one dialogue share its notes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.statistics import HOLDS, INCONCLUSIVE, NOT_REPRODUCED, Interval
from workbench.studies._amem_measure import FLAT, FULL, HISTORY, HITS, LINKS, NOTES
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "arXiv 2502.12110"
#: The margins were written down before anything was run.
PAYS, NOT_WORSE, TOKEN_SHARE = 0.15, -0.05, 1 / 6
BUDGETS = (10, 20)
KS = (10, 20, 30, 40, 50)


def _pairs(frame: pd.DataFrame, metric: str, first: str, second: str, **where: object) -> pd.DataFrame:
    """Columns ``first`` and ``second``, one line a pair (same seed, unit, kind and question)."""
    rows = frame[(frame["metric"] == metric) & frame["method"].isin([first, second])]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    keys = [key for key in ("seed", "unit", "kind", "question") if key in rows]
    rows = rows.assign(question=rows["question"].fillna(-1), kind=rows["kind"].fillna(""))
    wide = rows.pivot_table(index=keys, columns="method", values="value", aggfunc="mean")
    return wide.dropna() if {first, second} <= set(wide) else wide.iloc[:0]


def _dialogues(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows on LoCoMo, each dialogue once: they are the same ten dialogues for every seed of the study."""
    rows = frame[frame["experiment"] == "locomo"]
    return rows.drop_duplicates(["method", "accounting", "budget", "unit", "kind", "metric"])


def _difference(pairs: pd.DataFrame, first: str, second: str, threshold: float, direction: str, told: str) -> Outcome:
    if len(pairs) < 2:
        return Outcome.unmeasured(f"{told}: {first} and {second} were not both measured")
    note = f"{told}: {first} {pairs[first].mean():.3f}, {second} {pairs[second].mean():.3f}"
    return Outcome.of(_interval(pairs[first] - pairs[second]), threshold, direction, note)


def _interval(differences: pd.Series) -> Interval:
    """Bootstrap interval of the mean; where all pairs agree, as wide as others may be rare (Wilson of 0 in n)."""
    if differences.nunique() > 1:
        return statistics.bootstrap(differences.to_numpy())
    same, unseen = float(differences.iloc[0]), statistics.wilson(0, len(differences)).high
    return Interval(same, same - unseen, same + unseen, len(differences))


def _worst(outcomes: list[Outcome]) -> Outcome:
    """The weakest link: not reproduced before inconclusive before holds, then the smaller effect."""
    rank = {NOT_REPRODUCED: 0, INCONCLUSIVE: 1, HOLDS: 2}
    worst = min(outcomes, key=lambda outcome: (rank[outcome.verdict], outcome.effect))
    told = "; ".join(outcome.note for outcome in outcomes)
    return replace(worst, note=told)


def _bridge(
    frame: pd.DataFrame, kind: str, first: str, second: str, threshold: float, direction: str, encoder: str = "words"
) -> Outcome:
    """Both budgets; the weaker one counts."""
    found = []
    for budget in BUDGETS:
        where = {"experiment": "bridge", "kind": kind, "budget": budget, "encoder": encoder}
        pairs = _pairs(frame, "all evidence", first, second, **where)
        found.append(_difference(pairs, first, second, threshold, direction, f"{budget} notes"))
    return _worst(found)


def links_pay(frame: pd.DataFrame) -> Outcome:
    return _bridge(frame, "2-hop", LINKS, FLAT, PAYS, ">")


def links_pay_minilm(frame: pd.DataFrame) -> Outcome:
    return _bridge(frame, "2-hop", LINKS, FLAT, 0.0, ">", "minilm")


def evolution_does_not_hurt(frame: pd.DataFrame) -> Outcome:
    return _bridge(frame, "2-hop", FULL, LINKS, 0.0, ">=")


def evolution_does_not_hurt_minilm(frame: pd.DataFrame) -> Outcome:
    return _bridge(frame, "2-hop", FULL, LINKS, 0.0, ">=", "minilm")


def one_hop_is_kept(frame: pd.DataFrame) -> Outcome:
    return _bridge(frame, "1-hop", FULL, FLAT, NOT_WORSE, ">=")


def one_hop_is_kept_minilm(frame: pd.DataFrame) -> Outcome:
    return _bridge(frame, "1-hop", FULL, FLAT, NOT_WORSE, ">=", "minilm")


def few_tokens(frame: pd.DataFrame) -> Outcome:
    """FULL's tokens (10 hits and up to 10 linked notes) as a share of those of the whole history."""
    rows = _dialogues(frame)
    rows = rows[rows["metric"] == "tokens"]
    full = rows[(rows["method"] == FULL) & (rows["accounting"] == HITS) & (rows["budget"] == 10)]
    history = rows[rows["method"] == HISTORY]
    both = full.set_index("unit")["value"] / history.set_index("unit")["value"]
    both = both.dropna()
    if len(both) < 2:
        return Outcome.unmeasured("no tokens of FULL and of the whole history were measured")
    tokens = f"{full['value'].mean():,.0f} of {history['value'].mean():,.0f} tokens"
    return Outcome.of(
        _interval(both), TOKEN_SHARE, "<", f"{tokens}: share {both.mean():.3f}, at most {TOKEN_SHARE:.3f}"
    )


def score_flattens(frame: pd.DataFrame) -> Outcome:
    """Recall gained from k = 10 to 20 minus that gained from 40 to 50 (FULL, all questions of a dialogue)."""
    rows = _dialogues(frame)
    rows = rows[(rows["metric"] == "recall") & (rows["method"] == FULL) & (rows["accounting"] == HITS)]
    rows = rows.dropna(subset=["value"])
    rows = rows.assign(sum=rows["value"] * rows["n"]).groupby(["unit", "budget"])[["sum", "n"]].sum()
    wide = (rows["sum"] / rows["n"]).unstack("budget")
    if len(wide) < 2 or not set(KS) <= set(wide):
        return Outcome.unmeasured("recall over k was not measured")
    curve = ", ".join(f"{k}: {wide[k].mean():.3f}" for k in KS)
    early, late = wide[20] - wide[10], wide[50] - wide[40]
    rises = Outcome.of(_interval(early), 0.0, ">", f"recall at k = {curve}")
    return _worst(
        [rises, Outcome.of(_interval(early - late), 0.0, ">", f"{early.mean():.3f} early, {late.mean():.3f} late")]
    )


def notes_cluster(frame: pd.DataFrame) -> Outcome:
    """Silhouette of LoCoMo's sessions after evolution minus before."""
    rows = _dialogues(frame)
    rows = rows[rows["metric"] == "silhouette"]
    wide = rows.pivot_table(index="unit", columns="kind", values="value")
    if len(wide) < 2 or not {"before", "after"} <= set(wide):
        return Outcome.unmeasured("no silhouette was measured")
    told = f"{wide['before'].mean():.4f} before, {wide['after'].mean():.4f} after"
    return Outcome.of(_interval(wide["after"] - wide["before"]), 0.0, ">", told)


def _locomo(frame: pd.DataFrame, first: str, second: str, accounting: str) -> Outcome:
    frame, found = _dialogues(frame), []
    for budget in BUDGETS:
        where = {"kind": "multi-hop", "accounting": accounting, "budget": budget}
        told = f"{accounting}, {budget}"
        found.append(_difference(_pairs(frame, "recall", first, second, **where), first, second, 0.0, ">", told))
    return _worst(found)


def locomo_equal_hits(frame: pd.DataFrame) -> Outcome:
    return _locomo(frame, FULL, FLAT, HITS)


def locomo_equal_notes(frame: pd.DataFrame) -> Outcome:
    return _locomo(frame, FULL, FLAT, NOTES)


def dialogue_evidence(frame: pd.DataFrame) -> Outcome:
    where = {"experiment": "dialogue", "kind": "two-hop", "accounting": HITS}
    pairs = _pairs(frame, "all evidence", FULL, FLAT, **where)
    return _difference(pairs, FULL, FLAT, 0.0, ">", "two-hop, ten hits")


def answers_improve(frame: pd.DataFrame) -> Outcome:
    pairs = _pairs(frame, "set F1", FULL, FLAT, experiment="dialogue", accounting=HITS)
    return _difference(pairs, FULL, FLAT, 0.0, ">", "set-F1, ten hits")


ALL = ("quick", "full")
CLAIMS = tuple(
    Claim(key, says, f"{SOURCE}, {source}", test, scales)
    for key, says, source, test, scales in (
        ("C1a", "Two-hop questions, equal notes: LINKS-ONLY finds all evidence more often than FLAT, by more than .15",
         "Table 3 (claim C1), on the bridge world", links_pay, ALL),
        ("C1b", "Two-hop questions, equal notes: FULL >= LINKS-ONLY",
         "Table 3 (claim C1), on the bridge world", evolution_does_not_hurt, ALL),
        ("C1c", "One-hop questions, equal notes: FULL >= FLAT - .05",
         "ours: what links must not cost", one_hop_is_kept, ALL),
        ("C1d", "The same as C1a with MiniLM: LINKS-ONLY > FLAT",
         "Table 3 (claim C1), on the bridge world", links_pay_minilm, ("full",)),
        ("C1e", "The same as C1b with MiniLM: FULL >= LINKS-ONLY",
         "Table 3 (claim C1), on the bridge world", evolution_does_not_hurt_minilm, ("full",)),
        ("C1f", "The same as C1c with MiniLM: FULL >= FLAT - .05",
         "ours: what links must not cost", one_hop_is_kept_minilm, ("full",)),
        ("C2", "FULL needs less than a sixth of the tokens of the whole history (LoCoMo)",
         "Table 1", few_tokens, ("full",)),
        ("C3", "Evidence recall rises with k and flattens by k = 50 (LoCoMo)",
         "Figure 3", score_flattens, ("full",)),
        ("C4", "Embeddings cluster more tightly after evolution (mean silhouette)",
         "Figure 4, which has no statistic", notes_cluster, ("full",)),
        ("L1", "LoCoMo multi-hop, equal hits (linked notes on top, as in the paper): FULL > FLAT",
         "Table 3, as evidence recall", locomo_equal_hits, ("full",)),
        ("L2", "LoCoMo multi-hop, equal notes: FULL > FLAT",
         "Table 3, as evidence recall", locomo_equal_notes, ("full",)),
        ("A1", "Dialogue world, two-hop, ten hits: FULL finds all evidence more often than FLAT",
         "Table 3, on the dialogue world", dialogue_evidence, ("full",)),
        ("A2", "Dialogue world, all questions, ten hits: set-F1 of an extractive reader's answers, FULL > FLAT",
         "Table 3, on the dialogue world", answers_improve, ("full",)),
    )
)  # fmt: skip
