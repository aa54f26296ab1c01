"""What WISE claims and how each claim is tested on the study's frame.

Columns: experiment, method, setting, edits (T), unit (stream.block.edit), kind, after, metric, value. Pairs are the
same edit of the same stream under two methods. Claims are judged at the largest T of the frame.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from workbench import statistics
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

WISE, FTL, EWC, ROME, GRACE = "WISE", "FT-L", "FT-EWC", "ROME", "GRACE"
WIDE = "GRACE, radius searched"
SCORES = ("rel", "gen", "loc")
SOURCE = "arXiv 2405.14768, ZsRE table"


def table(frame: pd.DataFrame, edits: int | None = None, experiment: str = "main") -> pd.DataFrame:
    """One row an edit and method: rel, gen, said, loc and their mean avg (of rel, gen, loc)."""
    rows = frame[(frame.experiment == experiment) & (frame.metric == "right")]
    rows = rows.assign(setting=rows["setting"].fillna("")) if "setting" in rows else rows  # a file has no empty text
    rows = rows[rows.edits == (rows.edits.max() if edits is None else edits)]
    keys = [key for key in ("seed", "unit", "method", "setting") if key in rows]
    wide = rows.pivot_table(index=keys, columns="kind", values="value", aggfunc="mean").reset_index()
    return wide.assign(avg=wide[list(SCORES)].mean(axis=1)) if len(wide) else wide


def _pairs(wide: pd.DataFrame, score: str, first: str, second: str, by: str = "method") -> pd.DataFrame:
    if not len(wide):
        return wide
    keys = [key for key in ("seed", "unit") if key in wide]
    both = wide[wide[by].isin([first, second])].pivot_table(index=keys, columns=by, values=score)
    return both.dropna() if {first, second} <= set(both) else both.iloc[:0]


def more(frame: pd.DataFrame, score: str, second: str, margin: float = 0.0) -> Outcome:
    """score(WISE) - score(second) over the same edits, against ``margin``."""
    pairs = _pairs(table(frame), score, WISE, second)
    if len(pairs) < 2:
        return Outcome.unmeasured(f"no {score} of {WISE} and {second}")
    note = f"{WISE} {pairs[WISE].mean():.3f}, {second} {pairs[second].mean():.3f}"
    return Outcome.of(statistics.of_differences(pairs[WISE] - pairs[second]), margin, ">", note)


def stays(frame: pd.DataFrame, threshold: float = 0.9) -> Outcome:
    """Loc(WISE): share of untouched answers that stay, against ``threshold``."""
    wide = table(frame)
    right = wide[wide.method == WISE]["loc"] if len(wide) else wide
    if len(right) < 2:
        return Outcome.unmeasured("no locality of WISE")
    found = statistics.wilson(int(right.to_numpy(dtype=float).sum()), len(right))
    return Outcome.of(found, threshold, ">=", f"Loc {right.mean():.3f} of {len(right)} prompts")


def separates(frame: pd.DataFrame, against: str = "loc", threshold: float = 0.95) -> Outcome:
    """AUC of Delta: share of (edit or paraphrase, unrelated prompt) pairs of one block in the right order.

    The interval resamples edits.
    """
    rows = frame[(frame.experiment == "main") & (frame.method == WISE) & (frame.metric == "delta")]
    rows = rows[rows.edits == rows.edits.max()]
    shares: list[float] = []
    for _, block in rows.assign(block=rows.unit.str.rsplit(".", n=1).str[0]).groupby([*_seed(rows), "block"]):
        other = block[block.kind == against].value.to_numpy()
        own = block[block.kind.isin(["rel", "gen"])].pivot_table(index="unit", columns="kind", values="value")
        if len(other):
            shares += [float(above(row, other)) for row in own.to_numpy()]
    if len(shares) < 2:
        return Outcome.unmeasured(f"no Delta of edits and {against}")
    return Outcome.of(statistics.bootstrap(np.array(shares)), threshold, ">=", f"AUC {np.mean(shares):.3f}")


def _seed(rows: pd.DataFrame) -> list[str]:
    return ["seed"] if "seed" in rows else []


def above(values: np.ndarray, other: np.ndarray) -> float:
    """Share of pairs in which a value lies above one of the others (a tie counts half)."""
    gaps = np.asarray(values)[:, None] - np.asarray(other)[None]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def collapses(frame: pd.DataFrame) -> Outcome:
    """Half of Rel(ROME) at T = 1 minus Rel(ROME) at the largest T: above 0 when more than half is lost."""
    rows = frame[(frame.experiment == "main") & (frame.method == ROME) & (frame.kind == "rel")]
    rows = rows[rows.metric == "right"]
    one, most = rows[rows.edits == 1].value, rows[rows.edits == rows.edits.max()].value
    if len(one) < 2 or len(most) < 2 or rows.edits.max() == 1:
        return Outcome.unmeasured("ROME was not run at T = 1 and at a larger T")
    interval = statistics.difference_of_means(one / 2, most)
    return Outcome.of(interval, 0.0, ">", f"Rel {one.mean():.3f} at T = 1, {most.mean():.3f} at T = {rows.edits.max()}")


def sweet_spot(frame: pd.DataFrame, middle: str, others: tuple[str, ...]) -> Outcome:
    """Rel at the recommended setting minus Rel at others, the weakest."""
    wide, outcomes = table(frame, experiment="sweep"), []
    for other in others:
        pairs = _pairs(wide, "rel", middle, other, "setting")
        if len(pairs) < 2:
            return Outcome.unmeasured(f"no Rel at {middle} and {other}")
        note = f"Rel {pairs[middle].mean():.3f} at {middle}, {pairs[other].mean():.3f} at {other}"
        outcomes.append(Outcome.of(statistics.of_differences(pairs[middle] - pairs[other]), 0.0, ">", note))
    return Outcome.weakest(outcomes)


_FULL = ("full",)
CLAIMS = (
    Claim("AVG-FTL", "mean of Rel, Gen, Loc: WISE > FT-L", SOURCE, partial(more, score="avg", second=FTL)),
    Claim("AVG-GRACE", "mean of Rel, Gen, Loc: WISE > GRACE", SOURCE, partial(more, score="avg", second=GRACE)),
    Claim("AVG-WIDE", "mean of Rel, Gen, Loc: WISE > GRACE with the radius that does best here", "our addition",
          partial(more, score="avg", second=WIDE)),
    Claim("AVG-EWC", "mean of Rel, Gen, Loc: WISE > FT-EWC", SOURCE, partial(more, score="avg", second=EWC), _FULL),
    Claim("AVG-ROME", "mean of Rel, Gen, Loc: WISE > ROME", SOURCE, partial(more, score="avg", second=ROME), _FULL),
    Claim("LOC", "Loc(WISE) >= .9", "card; the paper: >= .95", stays),
    Claim("LOC-FTL", "Loc(WISE) > Loc(FT-L)", SOURCE, partial(more, score="loc", second=FTL)),
    Claim("GEN", "Gen(WISE) > Gen(GRACE)", SOURCE, partial(more, score="gen", second=GRACE)),
    Claim("GEN-.2", "Gen(WISE) > Gen(GRACE) + .2", SOURCE, partial(more, score="gen", second=GRACE, margin=0.2)),
    Claim("SAID", "asked as a statement left open: WISE > GRACE", "our addition",
          partial(more, score="said", second=GRACE)),
    Claim("AUC", "Delta of edits and paraphrases against untouched facts: AUC >= .95", "card", separates),
    Claim("AUC-TEXT", "Delta of edits and paraphrases against plain text: AUC >= .95", "our addition",
          partial(separates, against="text")),
    Claim("ROME", "ROME loses more than half of its Rel from T = 1 to the largest T", SOURCE, collapses, _FULL),
    Claim("RHO", "Rel falls away from rho = .2, to .05 and to 1", f"{SOURCE}; ablation of rho and k",
          partial(sweet_spot, middle="rho=0.2", others=("rho=0.05", "rho=1")), _FULL),
    Claim("K", "Rel falls away from k = 2, to 1 and to 4", f"{SOURCE}; ablation of rho and k",
          partial(sweet_spot, middle="k=2", others=("k=1", "k=4")), _FULL),
)  # fmt: skip
