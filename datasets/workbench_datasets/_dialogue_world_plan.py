"""Who the two speakers know and what there is to tell of everybody, in the order in which it comes up."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from workbench_datasets import _dialogue_world_text as wording
from workbench_datasets._invented import Coiner

CHANGING = 0.4  # chance that a trait that can change does


@dataclass(frozen=True)
class Person:
    """Somebody who is talked about: a speaker (``kin`` and ``alias`` empty) or one of a speaker's circle."""

    name: str
    teller: int
    kin: str = ""
    alias: str = ""
    speaker: bool = False


@dataclass(frozen=True)
class Item:
    """One thing to tell: ``sort`` is trait, tie, event or alias; ``old`` the value that it replaces."""

    person: Person
    sort: str
    relation: str
    value: str
    old: str = ""


@dataclass
class Plan:
    """The people (speakers first), what they tell in order, and towns and firms for small talk."""

    people: list[Person]
    items: list[Item]
    towns: list[str] = field(default_factory=list)
    firms: list[str] = field(default_factory=list)

    @property
    def circle(self) -> list[Person]:
        return [person for person in self.people if not person.speaker]


def plan(rng: random.Random, items: int, per_person: int = 6) -> Plan:
    """``items`` things to tell about two speakers and their circle, about ``per_person`` of each."""
    coiner = Coiner(rng)
    people = _people(rng, coiner, max(3, round(items / per_person)))
    groups = [group for person in people for group in _groups(rng, coiner, person, people)]
    rng.shuffle(groups)
    groups.sort(key=lambda group: group[0].sort != "alias")  # another name is of use only if it is told
    chosen: list[tuple[float, Item]] = []
    for group in groups:
        if len(chosen) + len(group) <= items:
            early = 0.35 if group[0].sort == "alias" else 1.0
            chosen += zip(sorted(rng.uniform(0, early) for _ in group), group)
    told = [item for _, item in sorted(chosen, key=lambda pair: pair[0])]
    return Plan(people, told, _decoys(rng, coiner, told, "town", ("home", "journey")),
                _decoys(rng, coiner, told, "firm", ("job",)))  # fmt: skip


def _people(rng: random.Random, coiner: Coiner, n: int) -> list[Person]:
    names = coiner.coins("first", n + 2)
    kin = [*rng.sample(wording.KIN, len(wording.KIN)), *[""] * n]
    circle = [
        Person(name, index % 2, kin[index], coiner.coin("pet") if index % 3 == 0 else "")
        for index, name in enumerate(names[2:])
    ]
    return [Person(names[0], 0, speaker=True), Person(names[1], 1, speaker=True), *circle]


def _groups(rng: random.Random, coiner: Coiner, person: Person, people: list[Person]) -> list[list[Item]]:
    """What can be told of a person; items of a group follow one another (a trait and its changes)."""
    others = [other.name for other in people if not other.speaker and other != person]
    groups = [_trait(rng, coiner, person, name) for name in wording.TRAITS]
    for name in rng.sample(sorted(wording.TIES), 2):
        groups.append([Item(person, "tie", name, rng.choice(others))])
    for name in rng.sample(sorted(wording.EVENTS), 2):
        groups.append([Item(person, "event", name, _value(rng, coiner, wording.EVENTS[name]))])
    if person.alias:
        groups.append([Item(person, "alias", "alias", person.alias)])
    return groups


def _trait(rng: random.Random, coiner: Coiner, person: Person, name: str) -> list[Item]:
    about = wording.TRAITS[name]
    values = [_value(rng, coiner, about)]
    while about.changed and len(values) < 3 and rng.random() < CHANGING:
        values.append(_value(rng, coiner, about, tuple(values)))
    return [Item(person, "trait", name, value, old) for value, old in zip(values, ["", *values])]


def _value(rng: random.Random, coiner: Coiner, about: wording.Told, taken: tuple[str, ...] = ()) -> str:
    if about.coined:
        return coiner.coin(about.coined)
    return rng.choice([value for value in about.values if value not in taken])


def _decoys(rng: random.Random, coiner: Coiner, items: list[Item], kind: str, relations: tuple[str, ...]) -> list[str]:
    """Names that small talk drops: as many that answer nothing as there are answers, at least three."""
    real = [item.value for item in items if item.relation in relations]
    return rng.sample(real, len(real)) + coiner.coins(kind, max(3, min(len(real), 40)))
