"""Claims about the language models of ``_corpus_lm``: perplexity of held-out books, exact answers about strangers.

Perplexities are compared by their logarithms: the effect is the mean surprise of the one minus that of the other, in
nats a token (.01 is a perplexity one hundredth lower).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.studies import _trained_seeds as trained
from workbench.studies.base import Outcome

if TYPE_CHECKING:
    import pandas as pd

#: The scale of a study that trains these models.
SCALE = "lm"
#: Share of exact answers below which neither of two models is said to read; a guess among all answers is right in .05.
SOMETHING = 0.1


def lower(frame: pd.DataFrame, better: str, worse: str, threshold: float = 0.0, direction: str = ">") -> Outcome:
    """Nats a token of ``worse`` minus those of ``better`` on held-out books; what the world's text says is told."""
    found = _compared(frame, "LM books", worse, better)
    if found is None:
        return Outcome.unmeasured(f"no language models with {better} and {worse} were read")
    note = f"perplexity of books: {better} {_ppl(found.second)}, {worse} {_ppl(found.first)}"
    world = _compared(frame, "LM world", worse, better)
    if world is not None:
        note += f"; of the world's text {_ppl(world.second)}, {_ppl(world.first)}"
    return Outcome.of(found.interval, threshold, direction, f"{note}; {found.over}")


def all_lower(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> Outcome:
    """``lower`` of every (better, worse): the weakest."""
    return Outcome.weakest([lower(frame, *pair) for pair in pairs])


def answers_more(
    frame: pd.DataFrame, better: str, worse: str, least_gap: float = 0, direction: str = ">", metric: str = "exact"
) -> Outcome:
    """Share of right answers of ``better`` minus ``worse``, over questions at ``least_gap`` tokens and more."""
    rows = frame[(frame["part"] == "LM recall") & (frame["metric"] == metric) & (frame["x"] >= least_gap)]
    found = trained.paired(trained.wide(rows), better, worse)
    if found is None:
        return Outcome.unmeasured(f"no language models with {better} and {worse} were asked")
    told = f"{better} {found.first:.3f}, {worse} {found.second:.3f}"
    if max(found.first, found.second) < SOMETHING:
        return Outcome.unmeasured(f"neither reads: {told}")
    return Outcome.of(found.interval, 0.0, direction, f"answers ({metric}): {told}; {found.over}")


def lower_than(better: str, worse: str, threshold: float = 0.0, direction: str = ">") -> Callable[..., Outcome]:
    return partial(lower, better=better, worse=worse, threshold=threshold, direction=direction)


def _compared(frame: pd.DataFrame, part: str, first: str, second: str) -> trained.Paired | None:
    """Over whole windows (x = 0), as many tokens in each group."""
    rows = frame[(frame["part"] == part) & (frame["metric"] == "nats") & (frame["x"] == 0)]
    return trained.paired(trained.wide(rows), first, second, alone=statistics.bootstrap)


def _ppl(surprise: float) -> str:
    return f"{math.exp(surprise):.4g}"
