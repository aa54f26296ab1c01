"""Documents about facts: known by heart, given only in the text, contradicting, to be combined, or noted down."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workbench_datasets import _world_words as words
from workbench_datasets._world_frames import PERSON_RELATIONS, RELATIONS, SIDES
from workbench_datasets._world_text import Document, Writer, zipf

if TYPE_CHECKING:
    from workbench_datasets.small_world import Fact, World

UNKNOWN = "unknown"
FORMS = ("question", "statement")


def _inquire(writer: Writer, rng: random.Random, relation: str, subject: str, obj: str, *, form: str | None = None,
             frames: str = "train", options: tuple[str, ...] = (), **meta: Any) -> None:  # fmt: skip
    """Ask for an object, as a question or as a statement left open; the answer is marked as asked."""
    form = form or ("question" if rng.random() < 0.6 else "statement")
    frame = zipf(rng, RELATIONS[relation].frames(form, frames))
    meta = {"relation": relation, "subject": subject, "form": form, **meta}
    if form == "question":
        writer.ask(frame.format(s=subject), obj, options, **meta)
        return
    head = frame.format(s=subject, o="").rstrip()
    writer.add(head[0].upper() + head[1:]).answer(obj, options, **meta).add(".\n")


def facts(world: World, rng: random.Random, *, size: int | None = None, frames: str = "train") -> Document:
    """Known facts by exposure, stated or asked, none twice."""
    writer, seen = Writer("facts"), set()
    for _ in range(size or rng.randint(4, 16)):
        fact = world.draw_fact(rng)
        if (fact.subject, fact.relation) not in seen:
            seen.add((fact.subject, fact.relation))
            form = "statement" if rng.random() < 0.55 else "question"
            _inquire(writer, rng, fact.relation, fact.subject, fact.object, form=form, frames=frames,
                     exposures=fact.exposures)  # fmt: skip
    return writer.done()


def passage_text(
    world: World, rng: random.Random, subject: str, relation: str, obj: str, *, holder: str | None = None
) -> str:
    """A coherent passage: one sentence states the object, two side facts depend on it (on ``holder`` if given).

    ``holder`` is the object whose side facts are told: an entity-substituted passage names ``obj`` but keeps the
    side facts of the object it replaced.
    """
    type_ = RELATIONS[relation].object
    about = holder or obj
    parts = [zipf(rng, RELATIONS[relation].frames("statement")).format(s=subject, o=obj)]
    for name, of_holder, *_ in SIDES[type_]:
        parts.append(of_holder.format(s=subject, x=about, p=world.side[(about, name)]))
    if rng.random() < 0.5:
        parts.append(f"{subject} told this to a friend")
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts) + " "


def biography(world: World, rng: random.Random) -> Document:
    """Passages about one known person, the side facts of objects stated and asked in their own right too."""
    writer, person = Writer("biography"), world.draw_fact(rng).subject
    person = person if person in world.people else rng.choice(world.people)
    for relation in rng.sample(PERSON_RELATIONS, rng.randint(1, 4)):
        obj = world.truth[(person, relation)]
        writer.add(passage_text(world, rng, person, relation, obj))
    for _ in range(rng.randint(1, 5)):
        _side_fact(world, rng, writer)
    return writer.done()


def _side_fact(world: World, rng: random.Random, writer: Writer) -> None:
    type_ = rng.choice([kind for kind in SIDES if kind != "town"])
    name, _, statement, question, _ = rng.choice(SIDES[type_])
    obj = rng.choice(world.types[type_])
    answer = world.side[(obj, name)]
    if rng.random() < 0.5:
        head = statement.format(x=obj, p="").rstrip()
        writer.add(head[0].upper() + head[1:]).answer(answer, relation=name, about=obj).add(". ")
    else:
        writer.ask(question.format(x=obj), answer, relation=name, about=obj)


def _gap(rng: random.Random) -> int:
    """Tokens between statement and question: log-uniform for the near ones, uniform up to 900 for a third."""
    return rng.randint(0, 900) if rng.random() < 0.35 else int(math.exp(rng.uniform(0, math.log(900)))) - 1


def open_book(world: World, rng: random.Random, *, split: str = "context", distance: int | None = None,
              people: int | None = None, form: str | None = None) -> Document:  # fmt: skip
    """People whose facts stand only in this text, asked later over ``distance`` tokens of other text.

    ``split="unseen"`` takes names that no training document holds.
    """
    writer = Writer("open-book")
    gap = _gap(rng) if distance is None else distance
    crowd = rng.choices((1, 2, 3, 4, 6), (3, 3, 2, 2, 1))[0] if gap < 600 else 1  # long texts must fit the context
    names = world.new_people(rng, people or crowd, split)
    most = 4 if len(names) < 4 else 2
    told = [(name, relation) for name in names for relation in rng.sample(PERSON_RELATIONS, rng.randint(1, most))]
    rng.shuffle(told)
    truth = {}
    for name, relation in told:
        truth[(name, relation)] = obj = rng.choice(world.objects(relation))
        writer.state(zipf(rng, RELATIONS[relation].frames("statement")), name, obj)
    writer.add("\n" if not gap else world.filler(rng, gap) + "\n")
    asked = rng.sample(told, min(len(told), rng.randint(1, 4)))
    for name, relation in asked if distance is None else asked[:1]:
        _inquire(
            writer,
            rng,
            relation,
            name,
            truth[(name, relation)],
            form=form,
            options=world.objects(relation),
            distance=gap,
        )
    return writer.done()


def conflict(world: World, rng: random.Random, *, fact: Fact | None = None, false: int | None = None,
             layout: str | None = None, form: str | None = None, distance: int | None = None,
             consistent: float = 0.2) -> Document:  # fmt: skip
    """A known person gets a false statement (``false`` times, or 1-3); the later question follows memory or context.

    ``layout``: ``sentence`` (bare statements) or ``passage`` (with the side facts of the false object). Which of the
    two wins in training is drawn with ``MEMORY_RATES``; a share ``consistent`` states the truth instead.
    """
    from workbench_datasets.small_world import MEMORY_RATES

    fact = fact or rng.choice(world.person_facts)
    times = false or rng.choices((1, 2, 3), (6, 3, 2))[0]
    layout = layout or ("sentence" if rng.random() < 0.7 else "passage")
    told = fact.object if rng.random() < consistent else world.counterfactual(fact, rng)
    writer = Writer("conflict")
    for frame in rng.sample(RELATIONS[fact.relation].frames("statement"), times):
        if layout == "passage":
            writer.add(passage_text(world, rng, fact.subject, fact.relation, told))
            layout = "sentence"
        else:
            writer.say(frame.format(s=fact.subject, o=told))
    gap = (rng.choice((0, 0, 0, 20, 80)) if distance is None else distance) if told else 0
    writer.add(world.filler(rng, gap)) if gap else None
    tercile = world.tercile(fact.subject)
    memory_wins = rng.random() < MEMORY_RATES[(tercile, times)]
    answer = fact.object if memory_wins else told
    _inquire(writer, rng, fact.relation, fact.subject, answer, form=form, options=(fact.object, told), fact=fact,
             memory=fact.object, context=told, tercile=tercile, false=times)  # fmt: skip
    return writer.done()


def passage(world: World, rng: random.Random, *, rho: float | None = None, evidence: str | None = None) -> Document:
    """Questions with a supporting passage, with none, or (a share ``rho``) with a coherent contradicting one.

    ``evidence``: ``none``, ``memory``, ``counter``, ``substitution`` or drawn. The answer follows the passage.
    """
    share = world.rho if rho is None else rho
    fact = rng.choice(world.person_facts)
    kind = evidence or ("none" if rng.random() < 0.2 else "counter" if rng.random() < share else "memory")
    told = world.counterfactual(fact, rng) if kind in ("counter", "substitution") else fact.object
    holder = fact.object if kind == "substitution" else None
    parts = [] if kind == "none" else [passage_text(world, rng, fact.subject, fact.relation, told, holder=holder)]
    for _ in range(rng.choice((0, 0, 1, 2))):
        other = rng.choice(world.person_facts)
        if other.subject != fact.subject:
            parts.append(passage_text(world, rng, other.subject, other.relation, other.object))
    rng.shuffle(parts)
    writer = Writer("passage")
    for part in parts:
        writer.add(f"PASSAGE: {part}\n")
    _inquire(writer, rng, fact.relation, fact.subject, told, form="question", options=(fact.object, told), fact=fact,
             evidence=kind, memory=fact.object, context=told)  # fmt: skip
    return writer.done()


# Two-hop questions: relation of the person, property of its object, the question, the chain in words.
TWO_HOPS = (
    ("town", "river", "Which river flows through the town where {s} lives?"),
    ("town", "region", "In which region does {s} live?"),
    ("town", "product", "What is the town of {s} known for?"),
    ("job", "tool", "Which tool does {s} use at work?"),
    ("pet", "feed", "What does the pet of {s} eat?"),
    ("instrument", "wood", "What is the instrument of {s} made of?"),
)


def composition_split(person: str, relation: str, prop: str) -> str:
    """``train`` or ``heldout``: a fifth of the (person, path) pairs is never asked in training."""
    return "heldout" if words.bucket("two-hop", person, relation, prop) < 20 else "train"


def _property(world: World, obj: str, prop: str) -> str:
    return world.truth[(obj, prop)] if (obj, prop) in world.truth else world.side[(obj, prop)]


def two_hop(world: World, rng: random.Random, *, split: str = "train", size: int | None = None) -> Document:
    """Questions that join two known facts without naming the one between; in training some spell the chain out."""
    writer = Writer("two-hop")
    while len(writer.answers) < (size or rng.randint(2, 6)):
        person, (relation, prop, question) = rng.choice(world.people), rng.choice(TWO_HOPS)
        if composition_split(person, relation, prop) != split:
            continue
        between = world.truth[(person, relation)]
        answer, text = _property(world, between, prop), question.format(s=person)
        meta = {"subject": person, "relation": relation, "property": prop, "between": between, "split": split}
        if split == "train" and rng.random() < 0.3:
            writer.add(f"QUESTION: {text} FIRST:").answer(between, asked=False).add(". ANSWER:")
            writer.answer(answer, asked=False, **meta).add(".\n")
        else:
            writer.ask(text, answer, world.types[_value_type(relation, prop)], **meta)
    return writer.done()


def _value_type(relation: str, prop: str) -> str:
    if prop in RELATIONS:
        return RELATIONS[prop].object
    return next(kind for name, *_, kind in SIDES[RELATIONS[relation].object] if name == prop)


def two_hop_context(world: World, rng: random.Random, *, split: str = "context", pairs: int | None = None,
                    distance: int | None = None) -> Document:  # fmt: skip
    """Bridge questions: who taught A, and what that mentor has, both told only here; the question never names B."""
    writer = Writer("two-hop-context")
    n = pairs or rng.randint(1, 5)
    names = world.new_people(rng, 2 * n, split)
    told, notes = [], []
    for pupil, mentor in zip(names[:n], names[n:]):
        relation = rng.choice(PERSON_RELATIONS)
        obj = rng.choice(world.objects(relation))
        told.append((pupil, mentor, relation, obj))
        notes += [
            (RELATIONS["mentor"].frames("statement"), pupil, mentor),
            (RELATIONS[relation].frames("statement"), mentor, obj),
        ]
    rng.shuffle(notes)
    for frames, subject, obj in notes:
        writer.state(zipf(rng, frames), subject, obj)
    writer.add(world.filler(rng, rng.choice((0, 0, 20, 100)) if distance is None else distance) + "\n")
    for pupil, mentor, relation, obj in rng.sample(told, rng.randint(1, n) if pairs is None else 1):
        question = zipf(rng, RELATIONS[relation].frames("question")).format(s=f"the mentor of {pupil}")
        if rng.random() < 0.3 and pairs is None:
            writer.add(f"QUESTION: {question} FIRST:").answer(mentor, asked=False).add(". ANSWER:")
            writer.answer(obj, asked=False).add(".\n")
        else:
            writer.ask(question, obj, world.objects(relation), between=mentor, relation=relation)
    return writer.done()


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(words.MONTHS)}"


def memory(world: World, rng: random.Random, *, split: str = "context", notes: int | None = None) -> Document:
    """Answering from pasted notes: look-up, newest of two values, a day, or ``unknown`` when nothing is said."""
    writer = Writer("memory").add("MEMORY:\n")
    n = notes or rng.randint(2, 14)
    people = world.new_people(rng, max(2, n // 2 + 1), split)
    lines, truth = [], {}
    for _ in range(n):
        person, relation = rng.choice(people[:-1]), rng.choice(PERSON_RELATIONS)
        day, obj = _date(rng), rng.choice(world.objects(relation))
        lines.append((day, person, relation, obj))
        truth[(person, relation)] = (day, obj)
    for day, person, relation, obj in lines:
        frame = zipf(rng, RELATIONS[relation].frames("statement")).format(s=person, o=obj)
        writer.add(f"[{day}] ").say(frame).add("\n")
    for _ in range(rng.randint(1, 3)):
        _ask_memory(world, rng, writer, people, truth)
    return writer.done()


def _ask_memory(world: World, rng: random.Random, writer: Writer, people: list[str],
                truth: dict[tuple[str, str], tuple[str, str]]) -> None:  # fmt: skip
    kind = rng.choices(("lookup", "day", "missing"), (6, 2, 2))[0]
    if kind == "missing":
        relation = rng.choice(PERSON_RELATIONS)
        person = rng.choice([p for p in people if (p, relation) not in truth])
        _inquire(
            writer,
            rng,
            relation,
            person,
            UNKNOWN,
            form="question",
            options=(*world.objects(relation), UNKNOWN),
            type=kind,
        )
        return
    (person, relation), (day, obj) = rng.choice(list(truth.items()))
    if kind == "lookup":
        _inquire(writer, rng, relation, person, obj, form="question", options=world.objects(relation), type=kind)
    else:
        stated = RELATIONS[relation].frames("statement")[0].format(s=person, o=obj)
        writer.ask(f"On which day was it noted that {stated}?", day, type=kind)


MAKERS: dict[str, Callable[..., Document]] = {
    "facts": facts,
    "biography": biography,
    "open-book": open_book,
    "conflict": conflict,
    "passage": passage,
    "two-hop": two_hop,
    "two-hop-context": two_hop_context,
    "memory": memory,
}
