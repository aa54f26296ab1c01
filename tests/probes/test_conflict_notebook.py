"""What the notebook of knowledge conflicts says, held to the recorded run and to the model that ships."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from workbench.models import load
from workbench.probes.knowledge_conflict_heads import prune
from workbench.studies import STUDIES
from workbench.tasks.conflicts import conflicts, greedy
from workbench.views.conflicts import gains
from workbench_datasets import recorded

SLUG = "knowledge-conflict-heads"
MODELS = ("embedded", "embedded-relu")


@pytest.fixture(scope="module")
def text() -> str:
    notebook = Path(__file__).parents[2] / "notebooks" / "08-probes" / f"{SLUG}.ipynb"
    texts = ["".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    (said,) = (one for one in texts if "What the recorded run says" in one)
    return said


@pytest.fixture(scope="module")
def run() -> pd.DataFrame:
    return recorded.load(SLUG, "full")


def short(number: float) -> str:
    return f"{number:.2f}".replace("0.", ".", 1).replace("-.00", ".00")


def share(run: pd.DataFrame, model: str, pruned: str, metric: str) -> float:
    rows = run[(run["model"] == model) & (run["pruned"] == pruned) & (run["metric"] == metric)]
    return float(rows.groupby("person")["value"].mean().mean())


def test_the_table_and_its_verdicts_are_those_of_the_record(text, run):
    study = STUDIES.get(SLUG)
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| C"]
    rows = {line[0]: line for line in lines}
    found = study.judge(run, "full")
    alone = {model: study.judge(run[run["model"] == model], "full") for model in MODELS}
    assert set(rows) == {claim.id for claim in study.claims}
    for key, (_, _, *intervals, verdict) in rows.items():
        assert verdict == found[key].verdict, key
        outcomes = [alone[model][key] for model in MODELS]
        assert intervals == [f"{short(o.effect)} [{short(o.low)}, {short(o.high)}]" for o in outcomes], key
        assert found[key].n == (264 if key == "C5b" else 64)


def test_who_was_asked_is_who_was_asked(text, run):
    said = " ".join(text.split())
    assert "each asked 320 prompts about 64 people; the other 32 of the 96 were used to find heads" in said
    for model in MODELS:
        asked = (
            run[(run["model"] == model) & (run["metric"] == "prompts")].groupby("unit")["value"].agg(["size", "sum"])
        )
        assert asked.loc["test"].tolist() == [64, 320]
        assert asked["size"].drop("test").sum() == 32
    draws = run[(run["pruned"] == "random heads") & (run["model"] == "embedded")]
    assert draws["unit"].nunique() == 20


def test_the_numbers_of_the_explanation_are_recorded(text, run):
    said = " ".join(text.split())
    contrast = [share(run, model, "contrasted +1.00", "context") for model in MODELS]
    assert contrast == [1.0, 1.0]
    pruned = [share(run, model, "memory heads", "context") for model in MODELS]
    assert "pruning brings {} and {}".format(*map(short, pruned)) in said
    ahead = [share(run, m, "context heads", "memory") - share(run, m, "contrasted -0.50", "memory") for m in MODELS]
    assert "ahead, by {} and {}.".format(*map(short, ahead)) in said
    lost = {m: {x: 1 - share(run, m, "memory heads", x) for x in ("closed book", "copying")} for m in MODELS}
    assert f"{short(lost['embedded']['closed book'])} of it is gone and no reading" in said
    assert lost["embedded"]["copying"] == 0
    assert max(lost["embedded-relu"].values()) < 0.01
    gained = gains(run)
    gained = gained[gained["panel"].str.startswith("context heads")].set_index("item")["value"]
    assert "With 64 people it is {} and {}, far outside".format(*(short(gained[model]) for model in MODELS)) in said
    assert gained.max() < 0.64
    read = [round(200 * share(run, model, "context heads", "copying")) for model in MODELS]
    assert f"({read[0]} of 200 answers)" in said
    assert f"({read[1]} of 200)" in said
    heads = run[(run["metric"] == "head") & (run["pruned"] == "context heads")].groupby("model")["unit"].size()
    assert heads.tolist() == [2, 2], "both context heads, in either model"


def test_the_early_memory_heads_cost_what_the_text_says(text):
    torch.set_num_threads(1)
    model = load("embedded")
    asked = conflicts(model, 120, seed=7004, corruptions=1)

    def recalled(*pruned: tuple[int, int]) -> int:
        with prune(model, pruned):
            said = greedy(model, [c.plain_ids for c in asked])
        return sum(token == c.memory_id for token, c in zip(said, asked))

    strongest, second, third = (2, 2), (1, 1), (1, 0)
    words = " ".join(text.split())
    assert (
        f"Of 120 questions without any contradiction {recalled(strongest)} are still answered when the strongest"
        in words
    )
    assert recalled(second) == recalled(third) == 120
    assert f"silence all three, and {recalled(strongest, second, third)} are" in words
