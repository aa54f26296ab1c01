"""MemoryBank (Zhong, Guo, Gao, Ye, Wang 2023): does forgetting by a curve keep what will be asked for?

The paper shows that companions with this memory recall what they were told; it has no run without forgetting, none
without the memory, and none at equal size. This study supplies them where the truth is known.

- *Life*: facts of unequal, hidden importance, questions about the past, policies of equal size (and rules without a
  size). Also with interests that drift, over sizes, and (``full``) over λ, the increment of a recall and the capacity.
- *Talk*: generated users tell their companion things for ten days; is the right exchange retrieved afterwards, do two
  readers answer better with it, and what is lost when the memory fades? One world is told in the embedded model's
  words, so that it can read it; the other in ours.
- *The authors' users* (``full``): 15 simulated users, 566 exchanges; 35 of the 100 questions name a day, which gives an
  automatic criterion. The paper's human ratings are of other answers by other criteria: compare loosely.
- *Chat* (scale ``chat``, a GPU and a hub model): the authors' hundred questions answered with and without the memory,
  scored by overlap with the day that is named. It has not been recorded.

Answers by the chat models of 2023, their human ratings and the psychological fine-tuning are not reproduced, nor is the
claim that correctness orders by the strength of the language model although retrieval does not.

Margins and settings (λ = 5, capacity 64) are those of a pilot on other seeds; lives and worlds of this study begin at
``first_life`` and ``first_world``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.studies._memorybank_claims import CAPACITY, CLAIMS, OFF, TALK, WORLD
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

COLUMNS = ("experiment", "policy", "capacity", "time_scale", "increment", "metric", "unit", "step", "value")
_QUICK = {
    "lives": 20,
    "first_life": 41_000,
    "drift": 20,
    "capacities": [16, 32, 64, 128, 256],
    "grid": {},
    "worlds": [TALK, WORLD],
    "users": 6,
    "first_world": 41_000,
    "encoder": "default",
    "k": 6,
    "readers": ["embedded model", "extractive rules"],
    "forgetting": [OFF, "hazard", "threshold"],
    "retrievers": [],
}
_FULL = {
    **_QUICK,
    "lives": 200,
    "grid": {
        "time_scales": [1.0, 2.0, 5.0, 10.0, 20.0, float("inf")],
        "increments": [0.0, 0.5, 1.0, 2.0, 5.0],
        "capacities": [16, 32, 64, 128, 256],
    },
    "forgetting": [OFF, "hazard", "threshold", "as published (bug)"],
    "retrievers": [
        ["MiniLM, pieces", "default", "piece"],
        ["MiniLM, sentences", "default", "sentence"],
        ["TF-IDF, pieces", "tfidf", "piece"],
        ["TF-IDF, sentences", "tfidf", "sentence"],
    ],
}
_CHAT = {**_FULL, "retrievers": [], "chat": "hf:Qwen/Qwen2.5-1.5B-Instruct", "chat_budget": 1500, "chat_tokens": 200}


class MemoryBankStudy(Study):
    slug, title = "memorybank", "MemoryBank: long-term memory with forgetting"
    scales = {
        "quick": Scale("quick", _QUICK, seconds=30),
        "full": Scale("full", _FULL, seconds=180, needs=("data:memorybank",)),
        "chat": Scale("chat", _CHAT, seconds=300, needs=("cuda", "hub:Qwen/Qwen2.5-1.5B-Instruct", "data:memorybank")),
    }
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        import pandas as pd

        from workbench.studies._memorybank_talk import talk_rows, user_rows

        settings = dict(scale.settings)
        if "chat" in settings:
            from workbench.studies._memorybank_chat import chat_rows

            return _tidy(pd.DataFrame(list(chat_rows(settings, progress))))
        lives = list(_lives(settings, seed, progress))
        rows = [*talk_rows(settings, seed, progress)]
        if settings["retrievers"]:
            rows += user_rows(settings, progress)
        return pd.concat([*lives, _tidy(pd.DataFrame(rows))], ignore_index=True)

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.memorybank import paper_figure

        return paper_figure(live, reported, recorded)


def _lives(settings: Mapping[str, Any], seed: int, progress: Progress) -> Iterator[pd.DataFrame]:
    """Every policy in both scenarios and at every capacity, and the grid's means."""
    from workbench.tasks.life import Life, at_capacity, grid, policies_at, scores

    first = settings["first_life"] + seed * settings["lives"]
    seeds = range(first, first + settings["lives"])
    others = [size for size in settings["capacities"] if size != CAPACITY]
    for name, life in (("life", Life()), ("life with drift", Life(drift=settings["drift"]))):
        found = scores(life, policies_at(CAPACITY), seeds, progress=partial(progress, label=name))
        sized = [scores(life, at_capacity(size), seeds) for size in others]
        for table in (found, *sized):
            yield from _long(table, name)
    if settings["grid"]:
        made = grid(**settings["grid"])
        table = scores(Life(), made, seeds, progress=partial(progress, label="grid"))
        keys = ["time_scale", "increment", "capacity"]
        means = table.groupby(keys)[["hit_rate", "mean_size"]].mean().reset_index()
        means["time_scale"] = means["time_scale"].replace(float("inf"), 0.0)  # a number in every file format
        yield from _long(means.assign(policy="hazard within a capacity", unit="mean of the lives"), "grid")


def _long(table: pd.DataFrame, experiment: str) -> Iterator[pd.DataFrame]:
    for metric, column in (("hit rate", "hit_rate"), ("mean size", "mean_size")):
        yield _tidy(table.assign(experiment=experiment, metric=metric, value=table[column]))


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    """The study's columns, in order; those that do not apply are empty."""
    import pandas as pd

    made = {name: table[name] if name in table else pd.Series(None, index=table.index) for name in COLUMNS}
    numbers = dict.fromkeys(("capacity", "time_scale", "increment", "value"), float)
    return pd.DataFrame(made).astype({**numbers, "unit": str}).reset_index(drop=True)


STUDIES.register("memorybank")(MemoryBankStudy())
