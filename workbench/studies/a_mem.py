"""A-MEM (Xu et al. 2025): does organising notes at write time find evidence that plain retrieval misses?

Retrieval first: whether the notes that answer a question come back is measured without any reader. ``quick``: ten
bridge worlds, where the second piece of evidence shares no name with the question, every method within the same number
of notes (10 and 20; links take their places from direct hits). TF-IDF beside averaged word vectors encodes the notes
there, because a sentence encoder would need minutes; ``full`` repeats two worlds with MiniLM and adds LoCoMo's ten
real dialogues in both accountings: equal hits, where linked notes come on top as in the paper, and equal notes. It ends
with answers in the dialogue world, by a reader without a language model.

No language model writes the notes: rules do, labelled so. On LoCoMo changed notes are re-embedded a hundred at a time,
as in the published code. The encoder and the order of linked notes in the bridge world ("novel") were chosen on worlds
1001 to 1005, after a first choice (TF-IDF alone) had failed on worlds 20,000 to 20,009 that are not used any more: a
memory that sees names only cannot keep one-hop questions within ten notes. The plain order ("sum") is measured beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.studies import _amem_measure as measure
from workbench.studies._amem_claims import BUDGETS, CLAIMS, KS
from workbench.studies._amem_measure import EVOLVE, FLAT, FULL, LINKS, SUM
from workbench.studies._fan_out import fan_out
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

FIRST_WORLD = 30_000
_QUICK: dict[str, Any] = {
    "worlds": 10,
    "one_hop": 40,
    "budgets": list(BUDGETS),
    "methods": [FLAT, LINKS, EVOLVE, FULL, SUM],
    "link_order": "novel",
    "minilm_worlds": 0,
    "dialogues": 0,
    "answer_worlds": 0,
    "processes": 2,
}
_FULL = {
    **_QUICK,
    "one_hop": 160,
    "minilm_worlds": 2,
    "dialogues": 10,
    "ks": list(KS),
    "reembed_every": 100,
    "answer_worlds": 3,
}


class AMemStudy(Study):
    slug, title = "a-mem", "A-MEM: Agentic Memory for LLM Agents"
    scales = {
        "quick": Scale("quick", _QUICK, seconds=28),
        "full": Scale("full", _FULL, seconds=600, needs=("data:locomo",)),
    }
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        import pandas as pd

        settings = dict(scale.settings)
        work = partial(_measure, settings)
        found = fan_out(work, _plan(settings, seed), settings["processes"], progress, "worlds and dialogues")
        return pd.concat(list(found), ignore_index=True)

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.a_mem import paper_figure

        return paper_figure(live, reported, recorded)


Cell = tuple[str, int]  # what is measured, and in which world or dialogue


def _plan(settings: Mapping[str, Any], seed: int) -> list[Cell]:
    """The longest cells first, so that processes end together."""
    first = FIRST_WORLD + 100 * seed
    cells = [("locomo", place) for place in range(settings["dialogues"])]
    cells += [("minilm", first + world) for world in range(settings["minilm_worlds"])]
    cells += [("answers", first + world) for world in range(settings["answer_worlds"])]
    return cells + [("words", first + world) for world in range(settings["worlds"])]


def _measure(settings: Mapping[str, Any], cell: Cell) -> pd.DataFrame:
    what, number = cell
    if what == "locomo":
        return measure.locomo(settings, number)
    if what == "answers":
        from workbench.studies._amem_answers import answers

        return answers(number)
    return measure.bridge({**settings, "encoder": what}, number)


STUDIES.register("a-mem")(AMemStudy())
