"""Knowledge conflicts: prompts that contradict what a model knows, corrupted twins of equal length, and who wins.

A conflict states something false about a known subject and asks for it: "X lives in Fuby. X is at home in". The memory
answer is what the model says without the statement, the context answer what the statement says. Only subjects that the
model answers right without context are used, and only answers whose first tokens differ: the first token decides.

What a person's popularity decides (whether the model believes the text) is alike in all prompts about that person:
prompts are spread evenly over people, none is asked the same in the same form twice, and ``divided`` gives sets of
people that share nobody.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.models.batches import by_length, padded

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models import LoadedModel
    from workbench_datasets.small_world import Fact, World

RELATIONS = ("town", "job", "instrument", "pet", "colour", "food", "employer", "month")
FORMS = ("statement", "question")
#: What is asked: a fact, as a statement left open or as a question.
Cell = tuple["Fact", str]
#: How often a fact that could not be asked about is tried again, in other words, while prompts are missing.
ATTEMPTS = 4


@dataclass(frozen=True)
class Conflict:
    """One prompt. Ids are token lists; ``corrupted`` have the prompt's length; ``context_at`` is where a_c stands.

    ``person`` is the subject's place among the people of the world (0: the most popular).
    """

    subject: str
    relation: str
    form: str
    memory: str
    context: str
    prompt: str
    ids: tuple[int, ...]
    plain_ids: tuple[int, ...]
    corrupted: tuple[tuple[int, ...], ...]
    memory_id: int
    context_id: int
    context_at: int
    person: int

    @property
    def answers(self) -> tuple[int, int]:
        return self.memory_id, self.context_id


def divided(shares: Sequence[int], *, seed: int = 0) -> list[list[str]]:
    """The people of the small world in ``len(shares)`` sets without anyone in common, as large as ``shares`` say.

    ``shares`` (1, 1, 4): of every six neighbours in popularity one, one and four, drawn with ``seed``, so that each
    set has popular and rare people alike. Raises BadInput for shares that are not whole numbers of at least 1.
    """
    from workbench_datasets.small_world import world

    if not len(shares):
        raise BadInput("shares must be one or more whole numbers, got none")
    for share in shares:
        whole("every share", share)
    people, rng, every = world().people, random.Random(f"people:{seed}"), sum(shares)
    places = [place for place, share in enumerate(shares) for _ in range(share)]
    sets: list[list[str]] = [[] for _ in shares]
    for start in range(0, len(people), every):
        for person, place in zip(people[start : start + every], rng.sample(places, every)):
            sets[place].append(person)
    return sets


def conflicts(
    loaded: LoadedModel,
    n: int,
    *,
    seed: int = 0,
    relations: Sequence[str] = RELATIONS,
    form: str | None = None,
    corruptions: int = 3,
    people: Collection[str] | None = None,
    without: frozenset[str] = frozenset(),
) -> list[Conflict]:
    """``n`` conflicts of the small world whose subjects the model knows, spread evenly over people.

    Everybody is asked once before anybody is asked again, and nobody the same relation in the same form twice.
    ``form``: "statement" or "question" frames (None: both). ``people``: whom to ask about (None: everybody), and
    ``without``: who of them must not be used. ``corruptions``: twins of each prompt with another of these people and
    another stated object, of the same number of tokens. Raises BadInput for an unknown relation or person and when too
    few prompts can be made.
    """
    from workbench_datasets.small_world import world

    small, rng = world(), random.Random(f"conflicts:{seed}")
    _check_asked(small, relations, form, people or ())
    whole("n", n)
    whole("corruptions", corruptions)
    allowed = [p for p in small.people if (people is None or p in people) and p not in without]
    waiting = _cells(small, rng, allowed, relations, FORMS if form is None else (form,))
    made: list[Conflict] = []
    for _ in range(ATTEMPTS):
        missed: list[Cell] = []
        for cell, conflict in _known(loaded, small, rng, waiting, allowed, corruptions, batch=max(n // 2, 8)):
            made += [conflict] if conflict else []
            missed += [] if conflict else [cell]
            if len(made) == n:
                return made
        waiting = missed
    raise BadInput(
        f"only {len(made)} of {n} conflicts could be made for {', '.join(relations)} of {len(allowed)} people; "
        "ask for fewer"
    )


def _check_asked(small: World, relations: Sequence[str], form: str | None, people: Collection[str]) -> None:
    unknown = sorted(set(relations) - set(RELATIONS))
    if unknown or not relations:
        raise BadInput(f"relations must be among {', '.join(RELATIONS)}, got {unknown or 'none'}")
    if form not in (None, *FORMS):
        raise BadInput(f"form must be one of {', '.join(FORMS)} (or None for both), got {form!r}")
    strangers = sorted(set(people) - set(small.people))
    if strangers:
        raise BadInput(f"people must be known people of the small world, got {', '.join(strangers[:3])}")


def _cells(
    small: World, rng: random.Random, people: Collection[str], relations: Sequence[str], forms: Sequence[str]
) -> list[Cell]:
    """Facts and forms in random order, everybody's first before anybody's second."""
    known = [fact for fact in small.person_facts if fact.relation in relations]
    cells = [(fact, form) for fact in known if fact.subject in people for form in forms]
    rng.shuffle(cells)
    asked: Counter[str] = Counter()
    rounds = []
    for fact, _ in cells:
        rounds.append(asked[fact.subject])
        asked[fact.subject] += 1
    return [cells[i] for i in sorted(range(len(cells)), key=rounds.__getitem__)]


def _known(
    loaded: LoadedModel, small: World, rng: random.Random, cells: Sequence[Cell], people: Sequence[str],
    corruptions: int, *, batch: int,
) -> Iterator[tuple[Cell, Conflict | None]]:  # fmt: skip
    """Each cell with its conflict, or None where no prompt could be built or the model does not know the answer."""
    for start in range(0, len(cells), batch):
        part = cells[start : start + batch]
        built = [_conflict(loaded, small, _question(small, rng, cell), rng, corruptions, people) for cell in part]
        usable = [conflict for conflict in built if conflict is not None]
        knows = iter(knows_closed_book(loaded, usable))
        for cell, conflict in zip(part, built):
            yield cell, conflict if conflict is not None and next(knows) else None


def _question(small: World, rng: random.Random, cell: Cell) -> Any:
    fact, form = cell
    settings: dict[str, Any] = {"false": 1, "consistent": 0.0, "layout": "sentence", "distance": 0}
    return small.questions("conflict", 1, seed=rng.randrange(2**32), fact=fact, form=form, **settings)[0]


def knows_closed_book(loaded: LoadedModel, made: Sequence[Conflict]) -> list[bool]:
    """Whether the model's first token without the statement is the memory answer's."""
    if not made:
        return []
    first = greedy(loaded, [conflict.plain_ids for conflict in made])
    return [token == conflict.memory_id for token, conflict in zip(first, made)]


def _conflict(
    loaded: LoadedModel, small: World, question: Any, rng: random.Random, count: int, people: Sequence[str]
) -> Conflict | None:
    meta, prompt = question.meta, question.prompt
    subject, context = meta["subject"], meta["context"]
    plain = _asked_part(prompt, meta["form"], subject)
    first = {name: _ids(loaded, f" {meta[name]}", start=False)[0] for name in ("memory", "context")}
    ids = _ids(loaded, prompt)
    if plain is None or first["memory"] == first["context"] or first["context"] not in ids:
        return None
    twins = _twins(loaded, small, question, len(ids), rng, count, people)
    if len(twins) < count:
        return None
    return Conflict(
        subject, meta["relation"], meta["form"], meta["memory"], context, prompt, tuple(ids),
        tuple(_ids(loaded, plain)), tuple(twins), first["memory"], first["context"], ids.index(first["context"]),
        small.people.index(subject),
    )  # fmt: skip


def _asked_part(prompt: str, form: str, subject: str) -> str | None:
    """The prompt without the false statement: from the last sentence on."""
    if form == "question":
        at = prompt.find("QUESTION:")
        return prompt[at:] if at > 0 else None
    at = prompt.find(". ")
    rest = prompt[at + 2 :] if at > 0 else ""
    return rest if subject in rest else None


def _twins(
    loaded: LoadedModel, small: World, question: Any, length: int, rng: random.Random, count: int, people: Sequence[str]
) -> list[tuple[int, ...]]:
    subject, context, memory = (question.meta[name] for name in ("subject", "context", "memory"))
    objects = [o for o in small.objects(question.meta["relation"]) if o not in (context, memory)]
    found: dict[tuple[int, ...], None] = {}
    for _ in range(30 * count):
        text = question.prompt.replace(subject, rng.choice(people)).replace(f" {context}", f" {rng.choice(objects)}")
        ids = tuple(_ids(loaded, text))
        if len(ids) == length and subject not in text:
            found[ids] = None
        if len(found) == count:
            break
    return list(found)


def _ids(loaded: LoadedModel, text: str, *, start: bool = True) -> list[int]:
    return loaded.tokenizer(text, add_special_tokens=start)["input_ids"]


# ---- asking ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def first_logits(loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, batch_tokens: int = 2048) -> torch.Tensor:
    """Logits (n, V) of the token that follows each prompt; raises BadInput for no prompt or an empty one."""
    if not len(prompts) or not all(len(prompt) for prompt in prompts):
        raise BadInput(f"prompts must be one or more lists of at least one token, got {len(prompts)}")
    out: list[torch.Tensor | None] = [None] * len(prompts)
    for rows in by_length([len(p) for p in prompts], batch_tokens):
        ids, ends = padded([prompts[i] for i in rows], loaded.device)
        logits = loaded.model(input_ids=ids, use_cache=False).logits[torch.arange(len(rows)), ends].float().cpu()
        for row, values in zip(rows, logits):
            out[row] = values
    return torch.stack([values for values in out if values is not None])


def greedy(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> list[int]:
    """The most probable first token after each prompt."""
    return first_logits(loaded, prompts).argmax(-1).tolist()


def winners(tokens: Sequence[int], asked: Sequence[Conflict]) -> list[str]:
    """Per prompt who won with its first token: "memory", "context" or "other"."""
    names = {True: "memory", False: "context"}
    return [
        names[token == c.memory_id] if token in (c.memory_id, c.context_id) else "other"
        for token, c in zip(tokens, asked)
    ]


def rates(loaded: LoadedModel, asked: Sequence[Conflict]) -> pd.DataFrame:
    """One row a prompt: subject, relation, form, winner, and the probabilities of both answers."""
    import pandas as pd

    logits = first_logits(loaded, [conflict.ids for conflict in asked])
    p = logits.softmax(-1)
    rows = np.arange(len(asked))
    return pd.DataFrame(
        {
            "subject": [c.subject for c in asked],
            "relation": [c.relation for c in asked],
            "form": [c.form for c in asked],
            "memory": [c.memory for c in asked],
            "context": [c.context for c in asked],
            "winner": winners(logits.argmax(-1).tolist(), asked),
            "p_memory": p[rows, [c.memory_id for c in asked]].numpy(),
            "p_context": p[rows, [c.context_id for c in asked]].numpy(),
        }
    )


def contrasted(loaded: LoadedModel, asked: Sequence[Conflict], alpha: float) -> list[str]:
    """Who wins under context-aware decoding: (1 + alpha) logits with the statement - alpha logits without it.

    alpha = 0 is plain decoding, -1 closed book; between them it leans to memory, above 0 to the context.
    """
    if not np.isfinite(alpha):
        raise BadInput(f"alpha must be a finite number, got {alpha}")
    with_context = first_logits(loaded, [c.ids for c in asked])
    without = first_logits(loaded, [c.plain_ids for c in asked])
    tokens = ((1 + alpha) * with_context - alpha * without).argmax(-1).tolist()
    return winners(tokens, asked)


def copying(loaded: LoadedModel, n: int, *, seed: int = 0) -> tuple[list[list[int]], list[int]]:
    """Prompts about ``n`` people the model has never seen, and the first token of the answer that the text states."""
    from workbench_datasets.small_world import world

    whole("n", n)
    small = world()
    asked: dict[str, Any] = {}
    for attempt in range(ATTEMPTS):
        for question in small.questions("open-book", n, seed=seed + attempt * 2**32, split="unseen", distance=0):
            asked.setdefault(question.meta["subject"], question)
        if len(asked) >= n:
            break
    else:
        raise BadInput(f"only {len(asked)} of {n} strangers could be asked about; ask for fewer")
    questions = list(asked.values())[:n]
    prompts = [_ids(loaded, q.prompt) for q in questions]
    return prompts, [_ids(loaded, q.answer, start=False)[0] for q in questions]


def spans(loaded: LoadedModel, conflict: Conflict) -> dict[str, list[int]]:
    """Token positions of the stated answer's first token, and of the subject where it is stated and where it is asked.

    Raises BadInput when the subject's tokens do not stand in the prompt as they are spelt alone.
    """
    ids, places = list(conflict.ids), []
    for spelling in (f" {conflict.subject}", conflict.subject):
        part = _ids(loaded, spelling, start=False)
        starts = [i for i in range(len(ids) - len(part) + 1) if ids[i : i + len(part)] == part]
        places += [list(range(start, start + len(part))) for start in starts]
    places.sort()
    if not places:
        raise BadInput(f"the subject {conflict.subject!r} was not found in {conflict.prompt!r}")
    return {"stated answer": [conflict.context_at], "stated subject": places[0], "asked subject": places[-1]}
