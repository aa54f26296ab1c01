"""Editing what a model knows: new objects for known facts, paraphrases, and facts that must not change.

An edit gives a fact of the small world that the model answers right another object of the same type. It is asked again
in the words it was taught (Rel), in other words (Gen; "said": as a statement left open), and a fact about a person
nobody edited is asked beside it (Loc: the answer must stay what it was). People are split in two by their rank:
settings of a method are looked for on one part, and reported on the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.parametric._rows import Rows, rows_of
from workbench.models.batches import by_length

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.parametric.base import ParametricMemory
    from workbench.models import LoadedModel
    from workbench_datasets.small_world import Fact, World

RELATIONS = ("town", "job", "instrument", "pet", "colour", "food", "employer", "month")
PARTS = ("test", "tune")
#: Every so many-th person by popularity is one that settings are looked for on.
_TUNE_EVERY = 4
KINDS = ("rel", "gen", "said", "loc")
#: Tokens of a plain text that serves as an unrelated prompt.
_PLAIN = 16


@dataclass(frozen=True)
class Case:
    """One edit: after ``prompt`` shall come ``target`` instead of ``old``; ``paraphrase`` asks the same, ``statement``
    leaves its last word open.

    ``other`` is a prompt about another person whose answer ``known`` must stay; ``same_relation`` says whether it asks
    for the same relation.
    """

    subject: str
    relation: str
    prompt: str
    target: str
    old: str
    paraphrase: str
    statement: str
    other: str
    known: str
    same_relation: bool

    def written(self) -> dict[str, str]:
        """Arguments of a memory's ``write``."""
        return {"prompt": self.prompt, "target": self.target, "subject": self.subject, "paraphrase": self.paraphrase}


@dataclass
class EditSet:
    """Edits in the order they are written; ``prepared`` keeps the passes up to the edited matrix for every layer."""

    cases: list[Case]
    _rows: dict[tuple[str, str], Rows] = field(default_factory=dict, repr=False)

    def asked(self, kind: str) -> tuple[list[str], list[str]]:
        """Prompts and right answers of one of ``KINDS``."""
        if kind == "rel":
            return [case.prompt for case in self.cases], [case.target for case in self.cases]
        if kind in ("gen", "said"):
            prompts = [case.paraphrase if kind == "gen" else case.statement for case in self.cases]
            return prompts, [case.target for case in self.cases]
        return [case.other for case in self.cases], [case.known for case in self.cases]

    def prepared(self, memory: ParametricMemory, kind: str) -> Rows:
        """Rows of one kind of prompt for the memory's matrix, run once a matrix."""
        key = memory.place.path, kind
        if key not in self._rows:
            self._rows[key] = memory.prepare(*self.asked(kind))
        return self._rows[key]

    def part(self, start: int, stop: int) -> EditSet:
        """Edits ``start`` to ``stop`` as a set of their own."""
        return EditSet(self.cases[start:stop])


def ask(relation: str, subject: str, frame: int = 0) -> str:
    """A question of the small world in one of the wordings it was trained on (counted round)."""
    from workbench_datasets.small_world import RELATIONS as ALL

    frames = ALL[relation].frames("question")
    return f"QUESTION: {frames[frame % len(frames)].format(s=subject)} ANSWER:"


def left_open(relation: str, subject: str) -> str:
    """The first statement of a relation without its object."""
    from workbench_datasets.small_world import RELATIONS as ALL

    head = ALL[relation].frames("statement")[0].format(s=subject, o="").rstrip()
    return head[0].upper() + head[1:]


def people_of(world: World, part: str) -> list[str]:
    """The known people of a part, by popularity."""
    if part not in PARTS:
        raise BadInput(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    return [name for i, name in enumerate(world.people) if (i % _TUNE_EVERY == 0) == (part == "tune")]


def edit_set(loaded: LoadedModel, n: int, *, seed: int = 0, part: str = "test") -> EditSet:
    """``n`` edits of facts that the model answers right, in the edit's words, in others, and beside them.

    Half of the part's people are edited, the other half is asked about beside them. The paraphrase is the second
    wording of the same relation; every second prompt beside asks for another relation.

    Raises:
        BadInput: fewer than ``n`` facts can be found, an unknown part.
    """
    from workbench_datasets.small_world import world

    n = whole("n", n, more=" (edits)")
    known, rng = world(), random.Random(f"edits:{part}:{seed}")
    people = people_of(known, part)
    rng.shuffle(people)
    edited, others = people[: len(people) // 2], people[len(people) // 2 :]
    facts = {(fact.subject, fact.relation): fact for fact in known.person_facts}
    pairs = [(person, relation) for person in edited for relation in RELATIONS]
    rng.shuffle(pairs)
    made = [_case(known, facts[pair], facts, others, i, rng) for i, pair in enumerate(pairs)]
    kept = _answered(loaded, made)
    if len(kept) < n:
        raise BadInput(f"{n} edits were asked for and {part} people give {len(kept)} that {loaded.name} knows")
    return EditSet(kept[:n])


def _case(world: World, fact: Fact, facts: dict[Any, Fact], others: Sequence[str], i: int, rng: random.Random) -> Case:
    same = i % 2 == 0
    relation = fact.relation if same else rng.choice([name for name in RELATIONS if name != fact.relation])
    beside = facts[rng.choice(list(others)), relation]
    return Case(
        fact.subject, fact.relation, ask(fact.relation, fact.subject), world.counterfactual(fact, rng), fact.object,
        ask(fact.relation, fact.subject, 1), left_open(fact.relation, fact.subject), ask(relation, beside.subject),
        beside.object, same,
    )  # fmt: skip


def _answered(loaded: LoadedModel, cases: Sequence[Case]) -> list[Case]:
    """The cases whose four prompts the unedited model answers right."""
    asked = [[(c.prompt, c.old), (c.paraphrase, c.old), (c.statement, c.old), (c.other, c.known)] for c in cases]
    right = says(loaded, [pair for four in asked for pair in four])
    return [case for i, case in enumerate(cases) if all(right[4 * i : 4 * i + 4])]


def says(loaded: LoadedModel, pairs: Sequence[tuple[str, str]], *, batch_tokens: int = 4096) -> list[bool]:
    """Whether the model as it is (with its memory) says exactly the answer after each prompt, greedily."""
    import torch

    lengths = [len(loaded.tokenizer(f"{prompt} {answer}")["input_ids"]) for prompt, answer in pairs]
    right = [False] * len(pairs)
    for group in by_length(lengths, batch_tokens):
        rows = rows_of(loaded.tokenizer, [pairs[i][0] for i in group], [pairs[i][1] for i in group], loaded.device)
        with torch.no_grad():
            best = loaded.model(input_ids=rows.ids, use_cache=False).logits[rows.at].argmax(-1).tolist()
        start = 0
        for i, target in zip(group, rows.targets):
            right[i] = best[start : start + len(target)] == target
            start += len(target)
    return right


def negatives(n: int, *, seed: int = 0, kind: str = "text", part: str = "test") -> list[str]:
    """Unrelated prompts: "text", plain sentences, or "question", about people of the other part than ``part``."""
    from workbench_datasets.small_world import world

    n = whole("n", n, more=" (unrelated prompts)")
    if part not in PARTS:
        raise BadInput(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    known, rng = world(), random.Random(f"negatives:{kind}:{part}:{seed}")
    if kind == "text":
        return [known.filler(rng, _PLAIN).strip() for _ in range(n)]
    if kind != "question":
        raise BadInput(f"kind must be 'text' or 'question', got {kind!r}")
    others = people_of(known, "tune" if part == "test" else "test")
    return [ask(rng.choice(RELATIONS), rng.choice(others), rng.randrange(4)) for _ in range(n)]


def write_all(
    memory: ParametricMemory, edits: EditSet, after: Callable[[int], Any] = lambda count: None
) -> ParametricMemory:
    """Write the edits one after the other; ``after`` is called with the number written so far."""
    for count, case in enumerate(edits.cases, start=1):
        memory.write(**case.written())
        after(count)
    return memory


def scores(memory: ParametricMemory, edits: EditSet) -> pd.DataFrame:
    """One row a prompt: edit, kind (of ``KINDS``), right (share of tokens; for loc: unchanged), side, delta."""
    import pandas as pd

    rows = []
    for kind in KINDS:
        found = memory.answers(edits.prepared(memory, kind))
        rows += [
            {"edit": i, "kind": kind, "right": right, "side": side >= 0, "delta": delta}
            for i, (right, side, delta) in enumerate(zip(found.accuracy(), found.side, found.delta))
        ]
    return pd.DataFrame(rows)
