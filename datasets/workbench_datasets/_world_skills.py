"""Documents that train and test one skill each: episodes, passkeys, lists, repeated names, classification."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from workbench_datasets import _world_words as words
from workbench_datasets._world_frames import RELATIONS
from workbench_datasets._world_text import Document, Writer

if TYPE_CHECKING:
    from workbench_datasets.small_world import World

EPISODE_LINES = (
    "{p} walked through the {a} and looked for the {i}",
    "in the {a} the {i} was easy to see",
    "{p} carried the {i} around the {a}",
    "the {a} was full of people, but {p} stayed alone",
    "{p} cleaned the {i} with care",
    "nobody in the {a} asked {p} about the {i}",
    "the {i} of {p} was worth a lot",
    "for an hour {p} sat in the {a}",
)


def _episode(world: World, rng: random.Random, writer: Writer, person: str, place: str) -> dict[str, str]:
    item, colour = rng.choice(words.ITEMS), rng.choice(words.COLOURS)
    number = "".join(rng.choice("0123456789") for _ in range(3))
    lines = [line.format(p=person, a=place, i=item) for line in rng.sample(EPISODE_LINES, rng.randint(0, 4))]
    lines.insert(rng.randint(0, len(lines)), "number")
    if rng.random() < 0.5:
        lines.insert(rng.randint(0, len(lines)), "colour")
    writer.say(f"in the {place} {person} found the {item}")
    for line in lines:
        if line == "number":
            writer.state("the key of {s} has the number", person, number)
        elif line == "colour":
            writer.state("the door of {s} is painted", person, colour)
        else:
            writer.say(line)
    told = {"person": person, "place": place, "item": item, "number": number}
    return {**told, "colour": colour} if "colour" in lines else told


def _ask_episode(rng: random.Random, writer: Writer, told: list[dict[str, str]], which: str | None) -> None:
    index = rng.randrange(len(told))
    episode = told[index]
    kinds = ["number", "place", "item"] + (["colour"] if "colour" in episode else [])
    if index + 1 < len(told):
        kinds.append("next")
    kind = which if which in kinds else rng.choice(kinds)
    person, distance = episode["person"], len(told) - 1 - index
    meta: dict[str, Any] = {"type": kind, "episode": index, "episodes_since": distance}
    if kind == "number":
        writer.ask(f"What is the number of the key of {person}?", episode["number"], **meta)
    elif kind == "place":
        writer.ask(f"Where was {person}?", f"the {episode['place']}", **meta)
    elif kind == "item":
        writer.ask(f"What did {person} find?", f"the {episode['item']}", **meta)
    elif kind == "colour":
        writer.ask(f"What colour is the door of {person}?", episode["colour"], words.COLOURS, **meta)
    else:
        writer.ask(f"Who came after {person}?", told[index + 1]["person"], **meta)


def episodes(world: World, rng: random.Random, *, split: str = "context", size: int | None = None,
             tokens: int | None = None, ask: str | None = None, questions: int | None = None) -> Document:  # fmt: skip
    """A stream of episodes (one person, place and thing each, 16-96 tokens) and questions on any of them at the end.

    ``meta["boundaries"]`` are the character offsets at which episodes begin, ``meta["facts"]`` what each told.
    ``tokens`` (about) or ``n`` fix the length; ``ask`` one of number, place, item, colour, next.
    """
    from workbench_datasets._world_text import length_of

    writer = Writer("episodes")
    told: list[dict[str, str]] = []
    boundaries: list[int] = []
    goal, used = size or (10**6 if tokens else rng.choices((1, 2, 4, 8, 14), (1, 2, 3, 3, 2))[0]), 0
    people = iter(
        world.new_people(rng, min(goal, (tokens or 0) // 16 + goal if goal < 10**6 else (tokens or 0) // 16), split)
    )
    while len(told) < goal and (tokens is None or used < tokens):
        boundaries.append(writer.length)
        at = len(writer.parts)
        place = rng.choice([p for p in words.EPISODE_PLACES if not told or p != told[-1]["place"]])
        told.append(_episode(world, rng, writer, next(people), place))
        used += length_of("".join(writer.parts[at:]))
    writer.add("\n")
    for _ in range(questions or rng.randint(1, 4)):
        _ask_episode(rng, writer, told, ask)
    writer.meta = {"boundaries": boundaries, "facts": told}
    return writer.done()


def passkey(world: World, rng: random.Random, *, digits: int = 5, distance: int | None = None) -> Document:
    """Filler, one line with a number, more filler, and the question for the number."""
    writer, key = Writer("passkey"), "".join(rng.choice("0123456789") for _ in range(digits))
    total = rng.choice((0, 40, 150, 400, 850)) if distance is None else distance
    before = rng.randint(0, total) if distance is None else 0
    writer.add(world.filler(rng, before)).add(f"The pass key is {key}. Remember it: {key} is the pass key. ")
    writer.add(world.filler(rng, total - before)).add("\n")
    writer.ask("What is the pass key?", key, distance=total - before)
    return writer.done()


def list_recall(world: World, rng: random.Random, *, size: int | None = None) -> Document:
    """A list of things, then the same list again, or the thing after a named one."""
    writer = Writer("list-recall")
    things = rng.sample(words.ITEMS, size or rng.randint(2, 20))
    writer.add("LIST " + ", ".join(things) + ".\n")
    writer.add("RECALL")
    for index, thing in enumerate(things):
        writer.answer(thing, asked=index == len(things) - 1 or index % 3 == 1, index=index, n=len(things))
        writer.add("," if index < len(things) - 1 else ".\n")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(things) - 1)
        writer.add(f"AFTER {things[at]} ->").answer(things[at + 1], words.ITEMS, type="after", n=len(things)).add(".\n")
    return writer.done()


def remaining(world: World, rng: random.Random, *, size: int | None = None, ask: str | None = None) -> Document:
    """Things with colours; all but one are taken, each named with its colour; which is left (or which colour)?

    ``ask``: ``colour`` (the attribute of the remaining item), ``item``, ``both`` (item, then its colour). Naming the
    colour of every taken thing gives a signal for the look-up at each of them, not only at the last word.
    """
    writer = Writer("remaining")
    n = size or rng.choices((2, 3, 4, 5, 6, 7, 8, 10), (6, 6, 5, 4, 4, 2, 2, 1))[0]
    things = rng.sample(words.ITEMS, n)
    colour = {thing: rng.choice(words.COLOURS) for thing in things}
    left = rng.choice(things)
    taken = [thing for thing in rng.sample(things, n) if thing != left]
    kind = ask or rng.choices(("colour", "item", "both"), (5, 2, 2))[0]
    writer.add("LIST" + "".join(f" ({thing} {colour[thing]})" for thing in things) + " TOOK")
    for thing in taken:
        writer.add(f" ({thing}").answer(colour[thing], words.COLOURS, asked=False).add(")")
    seen = tuple(dict.fromkeys(colour[thing] for thing in things))
    writer.add(" LEFT ->" if kind == "colour" else " LEFT THING ->")
    if kind != "colour":
        writer.answer(left, tuple(things), asked=kind == "item", type="item", n=n).add(" ->" if kind == "both" else "")
    if kind != "item":
        writer.answer(colour[left], seen, asked=kind == "colour", type="colour", n=n, left=left)
    return writer.add("\n").done()


IOI_FRAMES = (
    "When {a} and {b} went to the {p}, {c} gave the {i} to",
    "After {a} and {b} had met at the {p}, {c} handed the {i} to",
    "Then {a} and {b} sat in the {p}, and {c} passed the {i} to",
    "While {a} and {b} were waiting near the {p}, {c} offered the {i} to",
)
SINGLE_FRAMES = (
    "When {a} came alone to the {p}, the {i} was given to",
    "After {a} had walked to the {p}, somebody handed the {i} to",
)


def ioi(world: World, rng: random.Random, *, order: str | None = None, size: int | None = None) -> Document:
    """Sentences with a repeated name (the other one is the answer) and with a single name.

    ``order``: ``ABB``, ``BAB`` (which of the two first-named people acts) or ``single``.
    """
    writer = Writer("ioi")
    for _ in range(size or rng.randint(1, 4)):
        kind = order or rng.choices(("ABB", "BAB", "single"), (2, 2, 1))[0]
        a, b = rng.sample(words.FIRST_NAMES, 2)
        fill = {"a": a, "b": b, "p": rng.choice(words.EPISODE_PLACES), "i": rng.choice(words.ITEMS)}
        if kind == "single":
            writer.add(rng.choice(SINGLE_FRAMES).format(**fill))
            answer = a
        else:
            subject, answer = (b, a) if kind == "ABB" else (a, b)
            writer.add(rng.choice(IOI_FRAMES).format(**fill, c=subject))
        writer.answer(answer, (a, b), type=kind).add(".\n")
    return writer.done()


def classification(world: World, rng: random.Random, *, classes: int = 4, shots: int | None = None,
                   by: str | None = None, split: str = "context") -> Document:  # fmt: skip
    """Input-label pairs under a label mapping drawn for this document alone.

    ``by``: ``word`` (the class is a word of the description) or ``region`` (the description names a town; the class
    is the region in which the world knows it to lie).
    """
    writer, by = Writer("classification"), by or rng.choice(("word", "region"))
    labels = rng.sample(words.LABELS, classes)
    relation = "town" if by == "region" else rng.choice(("pet", "job", "food"))
    groups = _classes(world, rng, by, relation, classes)
    shown = [rng.randrange(classes) for _ in range(shots or rng.randint(8, 24))]
    for index, group in enumerate(shown):
        text = RELATIONS[relation].statements[0].format(s=world.new_person(rng, split), o=rng.choice(groups[group]))
        known = group in shown[:index]
        writer.add(f"Input: {text}. Type:").answer(labels[group], tuple(labels), asked=known, shots=index, by=by).add(
            ".\n"
        )
    return writer.done()


def _classes(world: World, rng: random.Random, by: str, relation: str, n: int) -> list[list[str]]:
    if by == "word":
        return [[obj] for obj in rng.sample(world.objects(relation), n)]
    towns: dict[str, list[str]] = {}
    for town in words.TOWNS:
        towns.setdefault(world.truth[(town, "region")], []).append(town)
    return rng.sample(list(towns.values()), n)


MAKERS: dict[str, Callable[..., Document]] = {
    "episodes": episodes,
    "passkey": passkey,
    "list-recall": list_recall,
    "remaining": remaining,
    "ioi": ioi,
    "classification": classification,
}
