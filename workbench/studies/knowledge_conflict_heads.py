"""Knowledge-conflict heads (Jin et al. 2024): do a few heads decide between memory and context?

Conflicts of the small world on the embedded model: heads are scored by path patching on three relations, their number
is chosen on validation conflicts of the same relations, and everything is tested on subjects and relations that neither
has seen. Of the 96 people 16 are for the scores, 16 for the choice and 64 for the test, popular and rare ones in each:
whether the model believes the text depends on whom it is about, so that every interval is over people. (An earlier run
drew its sets from everybody, and seven people were left for 300 test prompts.) The control draws random heads of the
same layers among those that path patching does not name. (A first run drew from all heads: one of twenty draws
contained a context head and did what context heads do. The prompts were changed together with the draw.) Only layers
from the lowest third up are candidates (the study's choice, made before any run: early heads feed everything after
them); the full scale shows all layers as well.

The embedded models are the ones that ship; the paper's eight large ones cannot be reproduced here. ``full`` repeats the
experiment on the ReLU sibling (GPT-NeoX blocks), adds baselines, the transfer matrix, attention knockout and the sum of
single effects against the joint one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from workbench.studies._conflict_claims import CLAIMS, NAMES
from workbench.studies._fan_out import fan_out
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from workbench.models import LoadedModel
    from workbench.tasks.conflicts import Conflict

FOUND_ON = ("town", "job", "pet")
TESTED_ON = ("instrument", "colour", "food", "employer", "month")
#: Conflicts of study seed 0; exploration used other seeds, all below 10,000.
FIRST_SEED = 42_000
_QUICK: dict[str, Any] = {
    "models": ["embedded"],
    # Of every six people: one to find heads with, one to choose their number with, four to test on.
    "people": [1, 1, 4],
    "scored": 48,
    "validation": 32,
    "test": 64,
    "copying": 60,
    "draws": 20,
    "parts": ["control"],
    "processes": 1,
}
_FULL: dict[str, Any] = {
    **_QUICK,
    "models": ["embedded", "embedded-relu"],
    "scored": 64,
    "validation": 64,
    "test": 320,
    "copying": 200,
    "parts": ["control", "baselines", "transfer", "knockout", "joint"],
    "transfer_scored": 24,
    "transfer_prompts": 64,
    "knockout_prompts": 64,
    "joint_prompts": 64,
    "processes": 16,
}
ALPHAS = (-1.0, -0.5, -0.25, 0.0, 0.5, 1.0)
#: Instructions as far as a model that was never taught to follow any can take one.
INSTRUCTIONS = {"prompt: memory": "What is known counts, not what is said here. ",
                "prompt: context": "What is said here counts, not what is known. "}  # fmt: skip
GROUPS = ("stated answer", "stated subject", "asked subject")
#: Known people are numbered by popularity from 0; strangers from a multiple of this.
STRANGERS = 1_000

Row = dict[str, Any]


class KnowledgeConflictHeadsStudy(Study):
    slug, title = "knowledge-conflict-heads", "Cutting off the head ends the conflict"
    scales = {"quick": Scale("quick", _QUICK, seconds=18), "full": Scale("full", _FULL, seconds=600)}
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        import pandas as pd

        settings = scale.settings
        cells = [(model, part) for part in settings["parts"] for model in settings["models"]]
        rows = fan_out(partial(_part, settings, seed), cells, settings["processes"], progress, "parts")
        frame = pd.DataFrame([row for found in rows for row in found])
        columns = [
            "model",
            "experiment",
            "pruned",
            "k",
            "unit",
            "person",
            "relation",
            "form",
            "step",
            "metric",
            "value",
        ]
        return frame.reindex(columns=columns)

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.conflicts import paper_figure

        return paper_figure(live, reported, recorded)


def _part(settings: Mapping[str, Any], seed: int, cell: tuple[str, str]) -> list[Row]:
    name, part = cell
    run: Callable[..., Iterable[Row]] = {
        "control": _control, "baselines": _baselines, "transfer": _transfer, "knockout": _knockout, "joint": _joint,
    }[part]  # fmt: skip
    loaded = _model(name, settings["device"])
    return [{"model": name, "experiment": part, **row} for row in run(loaded, settings, seed)]


@lru_cache(maxsize=2)
def _model(name: str, device: str) -> LoadedModel:
    from workbench.models import load

    return load(name, device=device)


class _Material:
    """Conflicts for scoring, choosing and testing: nobody is in two of them."""

    def __init__(self, loaded: LoadedModel, settings: Mapping[str, Any], seed: int):
        from workbench.tasks.conflicts import conflicts, copying

        first, (found_with, chosen_with, tested_with) = FIRST_SEED + 10 * seed, _people(settings, seed)
        asked = partial(conflicts, loaded)
        self.scored = asked(settings["scored"], seed=first, relations=FOUND_ON, people=found_with)
        self.validation = asked(settings["validation"], seed=first + 1, relations=FOUND_ON, people=chosen_with)
        self.test = asked(settings["test"], seed=first + 2, relations=TESTED_ON, people=tested_with)
        self.copying = copying(loaded, settings["copying"], seed=first + 3)
        #: Numbers of the strangers of ``copying``, apart from the known people and from those of other seeds.
        self.strangers = [STRANGERS * (seed + 1) + i for i in range(settings["copying"])]


def _people(settings: Mapping[str, Any], seed: int) -> list[list[str]]:
    """Who is for the scores, for the choice and for the test."""
    from workbench.tasks.conflicts import divided

    return divided(settings["people"], seed=FIRST_SEED + seed)


def _won(loaded: LoadedModel, asked: Sequence[Conflict], heads: Sequence[Any]) -> list[str]:
    """Who wins each prompt with these heads pruned."""
    from workbench.probes.knowledge_conflict_heads import prune
    from workbench.tasks.conflicts import greedy, winners

    with prune(loaded, heads):
        return winners(greedy(loaded, [c.ids for c in asked]), asked)


def _rate(loaded: LoadedModel, asked: Sequence[Conflict], wanted: str, heads: Sequence[Any]) -> float:
    return _won(loaded, asked, heads).count(wanted) / len(asked)


def _chosen(loaded: LoadedModel, material: _Material, *, upper: bool = True) -> tuple[Any, dict[str, list[Any]]]:
    """Scores of all heads, and the heads to prune by kind; their number maximises the other side's rate."""
    from workbench.probes.knowledge_conflict_heads import choose_size, find_heads

    heads = find_heads(loaded, material.scored)
    chosen = {}
    for kind, other in (("context", "memory"), ("memory", "context")):
        k = choose_size(kind, heads, partial(_rate, loaded, material.validation, other), upper=upper)
        chosen[kind] = heads.ranked(kind, k, upper=upper)
    return heads, chosen


# ---- parts ----------------------------------------------------------------------------------------------------------


def _control(loaded: LoadedModel, settings: Mapping[str, Any], seed: int) -> Iterable[Row]:
    """Rates with nothing, memory heads, context heads and random heads pruned; closed book and copying beside them."""
    from workbench.probes.knowledge_conflict_heads import prune, random_heads

    material = _Material(loaded, settings, seed)
    heads, chosen = _chosen(loaded, material)
    yield from _asked_rows(material)
    yield from _score_rows(heads)
    cases: dict[str, list[Any]] = {"nothing": [], "context heads": chosen["context"], "memory heads": chosen["memory"]}
    for label, pruned in cases.items():
        with _held(prune, loaded, pruned):
            yield from _rate_rows(loaded, material.test, label, len(pruned))
            yield from _side_rows(loaded, material, label, len(pruned))
        yield from ({"pruned": label, "k": len(pruned), "metric": "head", "unit": f"{layer}.{head}", "value": 1.0}
                    for layer, head in pruned)  # fmt: skip
    named = [*heads.named(), *chosen["context"], *chosen["memory"]]
    for k in sorted({len(pruned) for pruned in chosen.values()}):
        for draw, pruned in enumerate(random_heads(loaded, k, settings["draws"], seed=seed, without=named)):
            yield from _drawn_rows(_won(loaded, material.test, pruned), material.test, k, draw)


def _asked_rows(material: _Material) -> Iterable[Row]:
    """How many prompts of each person are in which set."""
    sets = {"scored": material.scored, "validation": material.validation, "test": material.test}
    for name, asked in sets.items():
        for person, prompts in sorted(Counter(c.person for c in asked).items()):
            yield {"pruned": "nothing", "k": 0, "unit": name, "person": person, "metric": "prompts", "value": prompts}


def _drawn_rows(won: Sequence[str], asked: Sequence[Conflict], k: int, draw: int) -> Iterable[Row]:
    """Each person's rates with one draw of random heads pruned."""
    import numpy as np

    from workbench.statistics import group_means

    people = [c.person for c in asked]
    for metric in ("memory", "context"):
        rates = group_means([name == metric for name in won], people)
        for person, rate in zip(np.unique(people), rates):
            where = {"pruned": "random heads", "k": k, "unit": str(draw), "person": person}
            yield {**where, "metric": f"{metric} rate", "value": rate}


def _held(prune: Callable[..., Any], loaded: LoadedModel, heads: Sequence[Any]) -> AbstractContextManager[Any]:
    return prune(loaded, heads) if heads else nullcontext()


def _score_rows(heads: Any) -> Iterable[Row]:
    for row in heads.frame().itertuples(index=False):
        where = {"pruned": "nothing", "k": 0, "unit": f"{row.layer}.{row.head}", "step": row.layer}
        yield {**where, "metric": "s_memory", "value": row.s_memory}
        yield {**where, "metric": "s_context", "value": row.s_context}


def _rate_rows(loaded: LoadedModel, asked: Sequence[Conflict], label: str, k: int) -> Iterable[Row]:
    from workbench.tasks.conflicts import rates

    yield from _named_rows(rates(loaded, asked)["winner"].to_list(), asked, label, k)


def _side_rows(loaded: LoadedModel, material: _Material, label: str, k: int) -> Iterable[Row]:
    from workbench.tasks.conflicts import greedy

    test, (prompts, answers) = material.test, material.copying
    closed = zip(greedy(loaded, [c.plain_ids for c in test]), [c.memory_id for c in test], [c.person for c in test])
    copied = zip(greedy(loaded, prompts), answers, material.strangers)
    for metric, asked in (("closed book", closed), ("copying", copied)):
        for i, (said, right, person) in enumerate(asked):
            where = {"pruned": label, "k": k, "unit": str(i), "person": person}
            yield {**where, "metric": metric, "value": float(said == right)}


def _baselines(loaded: LoadedModel, settings: Mapping[str, Any], seed: int) -> Iterable[Row]:
    """Other ways to the same end, on the same test prompts: decoding, instructions, other rankings of heads."""
    from dataclasses import replace

    from workbench.probes.knowledge_conflict_heads import prune
    from workbench.tasks.conflicts import contrasted

    material = _Material(loaded, settings, seed)
    heads, chosen = _chosen(loaded, material)
    for alpha in ALPHAS:
        yield from _named_rows(contrasted(loaded, material.test, alpha), material.test, f"contrasted {alpha:+.2f}", 0)
    for label, text in INSTRUCTIONS.items():
        said = [replace(c, ids=tuple(_with_instruction(loaded, text, c.prompt))) for c in material.test]
        yield from _rate_rows(loaded, said, label, 0)
    for ranking, order in _other_rankings(loaded, material, heads).items():
        for kind, pruned in chosen.items():
            top = order[kind][: len(pruned)]
            with prune(loaded, top):
                yield from _rate_rows(loaded, material.test, f"{ranking}: {kind} heads", len(top))


def _with_instruction(loaded: LoadedModel, text: str, prompt: str) -> list[int]:
    return loaded.tokenizer(text + prompt)["input_ids"]


def _named_rows(won: Sequence[str], asked: Sequence[Conflict], label: str, k: int) -> Iterable[Row]:
    for i, (name, conflict) in enumerate(zip(won, asked)):
        where = {"pruned": label, "k": k, **_prompt(i, conflict), "form": conflict.form}
        for metric in NAMES:
            yield {**where, "metric": metric, "value": float(name == metric)}


def _prompt(i: int, conflict: Conflict) -> Row:
    return {"unit": str(i), "person": conflict.person, "relation": conflict.relation}


def _other_rankings(loaded: LoadedModel, material: _Material, heads: Any) -> dict[str, dict[str, list[Any]]]:
    """Heads by gate gradients and by what they add to the logits, and by path patching with other choices."""
    from dataclasses import replace

    import numpy as np

    from workbench.probes.attribution import gate_gradients, logit_attribution

    prompts, answers = [list(c.ids) for c in material.scored], [c.answers for c in material.scored]
    memory, context = (
        logit_attribution(loaded, prompts, [a[i] for a in answers]).mean((2, 3)).cpu().numpy() for i in (0, 1)
    )
    found = {"gradient": gate_gradients(loaded, prompts, answers), "attribution": memory - context}

    def order(scores: Any, kind: str) -> list[Any]:
        sign = 1.0 if kind == "memory" else -1.0
        flat = np.argsort(-sign * scores, axis=None)
        return [(int(a), int(b)) for a, b in zip(*np.unravel_index(flat, scores.shape)) if a >= scores.shape[0] // 3]

    rankings = {name: {kind: order(scores, kind) for kind in ("memory", "context")} for name, scores in found.items()}
    for label, other, upper in (
        ("all layers", heads, False),
        ("relative probability", replace(heads, effect="prob_rel"), True),
    ):
        rankings[label] = {kind: other.ranked(kind, upper=upper) for kind in ("memory", "context")}
    return rankings


def _transfer(loaded: LoadedModel, settings: Mapping[str, Any], seed: int) -> Iterable[Row]:
    """Two heads of each kind found on one relation, tried on every other (and on itself) with other people."""
    from workbench.probes.knowledge_conflict_heads import find_heads
    from workbench.tasks.conflicts import conflicts

    first, (found_with, _, tested_with) = FIRST_SEED + 5_000 + 10 * seed, _people(settings, seed)
    relations, asked = (*FOUND_ON, *TESTED_ON), partial(conflicts, loaded)
    tests = {
        relation: asked(settings["transfer_prompts"], seed=first + 1, relations=[relation], people=tested_with)
        for relation in relations
    }
    for source in relations:
        heads = find_heads(
            loaded, asked(settings["transfer_scored"], seed=first, relations=[source], people=found_with)
        )
        for test in tests.values():
            for kind, other in (("context", "memory"), ("memory", "context")):
                won = _won(loaded, test, heads.ranked(kind, 2))
                where = {"pruned": f"{kind} heads", "k": 2, "form": source, "metric": f"{other} rate"}
                for i, conflict in enumerate(test):
                    yield {**where, **_prompt(i, conflict), "value": float(won[i] == other)}


def _knockout(loaded: LoadedModel, settings: Mapping[str, Any], seed: int) -> Iterable[Row]:
    """Probability of both answers when the last position cannot see a group of tokens in one layer and the next."""
    import torch

    from workbench.probes.knockout import knockout
    from workbench.tasks.conflicts import conflicts, spans

    n, first, tested_with = settings["knockout_prompts"], FIRST_SEED + 9_000 + seed, _people(settings, seed)[-1]
    for i, conflict in enumerate(conflicts(loaded, n, seed=first, relations=TESTED_ON, people=tested_with)):
        ids = torch.tensor([conflict.ids], device=loaded.device)
        groups = spans(loaded, conflict)
        for group in GROUPS:
            for layer in range(-1, loaded.n_layers - 1):
                layers = [] if layer < 0 else [layer, layer + 1]
                block = (
                    knockout(loaded, layers, [[len(conflict.ids) - 1]], [groups[group]]) if layers else nullcontext()
                )
                with torch.no_grad(), block:
                    p = loaded.model(ids, use_cache=False).logits[0, -1].float().softmax(-1)
                where = {"pruned": group, **_prompt(i, conflict), "step": layer}
                yield {**where, "metric": "p_memory", "value": float(p[conflict.memory_id])}
                yield {**where, "metric": "p_context", "value": float(p[conflict.context_id])}


def _joint(loaded: LoadedModel, settings: Mapping[str, Any], seed: int) -> Iterable[Row]:
    """Change of l(a_m) - l(a_c) when the top k heads are pruned together, and the sum of pruning them one by one."""
    import numpy as np

    from workbench.probes.knowledge_conflict_heads import SIZES, prune
    from workbench.tasks.conflicts import first_logits

    material = _Material(loaded, settings, seed)
    heads, _ = _chosen(loaded, material)
    asked = material.test[: settings["joint_prompts"]]

    def balance(pruned: Sequence[Any]) -> np.ndarray:
        with _held(prune, loaded, pruned):
            logits = first_logits(loaded, [c.ids for c in asked])
        return np.asarray([float(row[c.memory_id] - row[c.context_id]) for row, c in zip(logits, asked)])

    plain = balance([])
    for kind in ("context", "memory"):
        ranked = heads.ranked(kind)
        single = [balance([head]) - plain for head in ranked[: max(SIZES)]]
        for k in (size for size in SIZES if size <= len(ranked)):
            found = {"together": balance(ranked[:k]) - plain, "sum of single": np.sum(single[:k], axis=0)}
            for metric, changes in found.items():
                where = {"pruned": f"{kind} heads", "k": k, "metric": metric}
                yield from ({**where, **_prompt(i, c), "value": changes[i]} for i, c in enumerate(asked))


STUDIES.register("knowledge-conflict-heads")(KnowledgeConflictHeadsStudy())
