"""What HippoRAG claims and how each claim is tested; thresholds are those that were written down before any run.

Every test reads the study's tidy frame: part ("world", "world, full names", "musique", "university"), corpus,
question, kind, method, damping, tau, metric, value (and the runner's seed). Pairs are the same question of the same
corpus under two methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.statistics import HOLDS, INCONCLUSIVE, NOT_REPRODUCED
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "arXiv 2405.14831"
FULL, BM25, DENSE = "HippoRAG", "BM25", "dense"
NODES, NEIGHBOURS = "query nodes only", "query nodes and neighbours"
NO_SPECIFICITY, NO_SYNONYMY, RULES = "no node specificity", "no synonymy edges", "OpenIE by rules"
ENSEMBLE, TWO = "HippoRAG, ensemble", "HippoRAG 2"
IRCOT = {BM25: "IRCoT + BM25", DENSE: "IRCoT + dense", FULL: "IRCoT + HippoRAG"}
FLAT, ABLATIONS = (BM25, DENSE), (NODES, NEIGHBOURS, NO_SPECIFICITY, NO_SYNONYMY, RULES)
WORLD, PLAIN, MUSIQUE = "world", "world, full names", "musique"
#: How much more all-recall at 5 is expected: two-hop questions of the world, questions of MuSiQue.
MARGIN = {WORLD: 0.20, MUSIQUE: 0.10}
#: Two methods are alike when the interval of their difference lies within this on both sides.
ALIKE = 0.05
MULTI_HOP = {WORLD: ("two-hop",), PLAIN: ("two-hop",), MUSIQUE: ("2-hop", "3-hop", "4-hop")}
_KEYS = ["part", "corpus", "question", "kind"]


def main_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows at the paper's damping and threshold, each question once (MuSiQue is the same for every seed)."""
    rows = frame[(frame["damping"] == 0.5) & (frame["tau"] == 0.8)]
    return rows.drop_duplicates([*_KEYS, "method", "metric"])


def wide(frame: pd.DataFrame, part: str, metric: str, kinds: Sequence[str] = ()) -> pd.DataFrame:
    """One line a question, one column a method."""
    rows = main_rows(frame)
    rows = rows[(rows["part"] == part) & (rows["metric"] == metric)]
    if kinds:
        rows = rows[rows["kind"].isin(kinds)]
    return rows.pivot_table(index=_KEYS, columns="method", values="value", aggfunc="mean")


def best_flat(table: pd.DataFrame) -> str | None:
    """The flat retriever with the larger mean."""
    present = [name for name in FLAT if name in table]
    return _best(table, present) if present else None


def _best(table: pd.DataFrame, methods: Sequence[str]) -> str:
    means = table[list(methods)].mean().tolist()
    return methods[means.index(max(means))]


def _pair(table: pd.DataFrame, first: str, second: str | None) -> pd.DataFrame:
    return table[[first, second]].dropna() if second and {first, second} <= set(table) else table.iloc[:0]


def _difference(
    table: pd.DataFrame, first: str, second: str | None, threshold: float = 0.0, direction: str = ">"
) -> Outcome:
    pairs = _pair(table, first, second)
    if len(pairs) < 2:
        return Outcome.unmeasured(f"no questions under both {first} and {second or 'a flat retriever'}")
    note = f"{first} {pairs[first].mean():.3f}, {second} {pairs[second].mean():.3f}"
    return Outcome.of(statistics.of_differences(pairs[first] - pairs[second]), threshold, direction, note)


def finds_all(frame: pd.DataFrame, part: str, rival: str | None = None) -> Outcome:
    """All-recall at 5 above ``rival``'s (the best flat retriever's): by the margin, with an interval above zero."""
    table = wide(frame, part, "AR@5", MULTI_HOP[part])
    found = _difference(table, FULL, rival or best_flat(table))
    if not found.n:
        return found
    if found.verdict == HOLDS and found.effect < MARGIN[part]:
        verdict = NOT_REPRODUCED if found.high < MARGIN[part] else INCONCLUSIVE
        return replace(found, verdict=verdict, note=f"{found.note}; margin {MARGIN[part]}", threshold=MARGIN[part])
    return found


def gap_widens(frame: pd.DataFrame, part: str) -> Outcome:
    """(AR@5 gap) - (R@5 gap) over the same flat retriever."""
    every = [wide(frame, part, metric, MULTI_HOP[part]) for metric in ("AR@5", "R@5")]
    flat = best_flat(every[0])
    pairs = [_pair(table, FULL, flat) for table in every]
    if flat is None or len(pairs[0]) < 2 or len(pairs[1]) != len(pairs[0]):
        return Outcome.unmeasured(f"no questions under both {FULL} and a flat retriever")
    gaps = [table[FULL] - table[flat] for table in pairs]
    note = f"AR@5 gap {gaps[0].mean():.3f}, R@5 gap {gaps[1].mean():.3f} over {flat}"
    return Outcome.of(statistics.of_differences(gaps[0] - gaps[1]), 0.0, ">", note)


def walk_helps(frame: pd.DataFrame, part: str) -> Outcome:
    table = wide(frame, part, "R@5", MULTI_HOP[part])
    return Outcome.weakest([_difference(table, FULL, NODES), _difference(table, FULL, NEIGHBOURS)])


def part_helps(frame: pd.DataFrame, part: str, without: str) -> Outcome:
    """R@5 of all questions of ``part`` falls without one part of the method."""
    return _difference(wide(frame, part, "R@5"), FULL, without)


def no_effect(frame: pd.DataFrame) -> Outcome:
    """With full names everywhere, synonymy edges change R@5 by less than the margin, either way."""
    found = _difference(wide(frame, PLAIN, "R@5"), FULL, NO_SYNONYMY)
    if not found.n:
        return found
    inside, outside = abs(found.low) < ALIKE and abs(found.high) < ALIKE, found.low > ALIKE or found.high < -ALIKE
    verdict = HOLDS if inside else NOT_REPRODUCED if outside else INCONCLUSIVE
    return replace(found, verdict=verdict)


def one_step_suffices(frame: pd.DataFrame, part: str) -> Outcome:
    """R@5 of one step against IRCoT over the better flat retriever, and the thoughts that IRCoT asked for."""
    table = wide(frame, part, "R@5", MULTI_HOP[part])
    present = [name for name in (IRCOT[BM25], IRCOT[DENSE]) if name in table]
    if not present:
        return Outcome.unmeasured("iterative retrieval did not run")
    rival = _best(table, present)
    found = _difference(table, FULL, rival, 0.0, ">=")
    calls = wide(frame, part, "calls", MULTI_HOP[part]).mean()
    note = f"{found.note}; model calls a question {calls.get(FULL, 0):.1f} against {calls.get(rival, 0):.1f}"
    return replace(found, note=note)


def no_gain_in_one_hop(frame: pd.DataFrame) -> Outcome:
    table = wide(frame, WORLD, "R@5", ("one-hop",))
    return _difference(table, FULL, best_flat(table), ALIKE, "<")


def no_loss_in_one_hop(frame: pd.DataFrame) -> Outcome:
    table = wide(frame, WORLD, "R@5", ("one-hop",))
    return _difference(table, FULL, best_flat(table), -ALIKE, ">")


_Test = Callable[["pd.DataFrame"], Outcome]
_BOTH = ("quick", "full")


def _claims() -> tuple[Claim, ...]:
    tested: list[tuple[str, str, _Test, tuple[str, ...]]] = []
    names = {WORLD: ("world", "generated two-hop questions"), MUSIQUE: ("musique", "MuSiQue sample")}
    for part, (short, where) in names.items():
        more = f"by at least {MARGIN[part]:.2f}"
        tested += [
            (f"C1-{short}", f"{where}: AR@5 of HippoRAG > of the best flat retriever, {more}",
             partial(finds_all, part=part), _BOTH),
            (f"C1-gap-{short}", f"{where}: the gap in AR@5 is larger than the gap in R@5",
             partial(gap_widens, part=part), _BOTH),
            (f"C2-{short}", f"{where}: R@5 of the walk > query nodes only, and > query nodes and neighbours",
             partial(walk_helps, part=part), _BOTH),
            (f"C3-synonymy-{short}", f"{short}, all questions: R@5 falls without synonymy edges",
             partial(part_helps, part=part, without=NO_SYNONYMY), _BOTH),
            (f"C3-specificity-{short}", f"{short}, all questions: R@5 falls without node specificity",
             partial(part_helps, part=part, without=NO_SPECIFICITY), _BOTH),
            (f"C4-{short}", f"{where}: R@5 of one step >= of iterative retrieval (IRCoT, thoughts by rule)",
             partial(one_step_suffices, part=part), ("full",)),
        ]  # fmt: skip
    tested += [
        ("C1-musique-bm25", f"MuSiQue sample: AR@5 of HippoRAG > of BM25, by at least {MARGIN[MUSIQUE]:.2f}",
         partial(finds_all, part=MUSIQUE, rival=BM25), _BOTH),
        ("C3-control", "With full names everywhere, synonymy edges change R@5 by less than .05", no_effect, _BOTH),
        ("C5-gain", "One-hop questions: HippoRAG gains less than .05 R@5 over the best flat retriever",
         no_gain_in_one_hop, _BOTH),
        ("C5-loss", "One-hop questions: HippoRAG loses less than .05 R@5 against the best flat retriever",
         no_loss_in_one_hop, _BOTH),
    ]  # fmt: skip
    order = sorted(tested, key=lambda one: one[0])
    return tuple(Claim(key, says, SOURCE, test, scales) for key, says, test, scales in order)


CLAIMS = _claims()
