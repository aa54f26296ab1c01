"""Passage world: short encyclopaedia passages whose facts must be combined, with exact triples and gold passages.

Made for graph-indexed retrieval (HippoRAG, 2405.14831): a town's region stands only in the town's passage and a
person's birthplace only in the person's, so a question about the region of birth needs two passages that share nothing
but the town's name; and that name is often another form of it (an alias), which only synonymy bridges.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from workbench_datasets import _world_words as words
from workbench_datasets._checks import whole
from workbench_datasets._invented import Coiner
from workbench_datasets._passage_text import (
    ALIASES,
    GADGETS,
    PEOPLE_ALIASES,
    PRIZES,
    RELATIONS,
    TOPICS,
    Triple,
    extract,
)

__all__ = ["KINDS", "Passage", "PassageQuestion", "PassageWorld", "extract", "passage_world"]

KINDS = ("two-hop", "path-finding", "one-hop")
ALIAS_SHARE = 0.3  # of all mentions inside sentences; titles and questions use the full name
INSTITUTES, SUBJECTS, SINGLES = 5, 10, 5  # employers of scholars, topics, topics that one scholar of an employer shares
LEAST, MOST = 120, 1_200


@dataclass(frozen=True)
class Passage:
    """A passage with exactly what it states. ``entities``: names as they are written in it; ``kind``: person,
    research, town, region, institute, firm or product; ``about``: the full name of what it is about."""

    id: int
    title: str
    text: str
    triples: tuple[Triple, ...]
    entities: tuple[str, ...]
    kind: str
    about: str

    @property
    def passage(self) -> str:
        """Title, line break, text: what retrievers index."""
        return f"{self.title}\n{self.text}"


@dataclass(frozen=True)
class PassageQuestion:
    """A question. ``evidence``: ids of all passages needed; ``entities``: the names in the question; ``answers``: the
    answer in all forms that count; ``family``: what is asked, e.g. "region of birth"."""

    text: str
    answer: str
    answers: tuple[str, ...]
    evidence: tuple[int, ...]
    kind: str
    family: str
    entities: tuple[str, ...]

    @property
    def hops(self) -> int:
        return len(self.evidence)


@dataclass(frozen=True)
class PassageWorld:
    """Passages in random order (``passages[i].id == i``), questions, and the full name behind every form of it."""

    seed: int
    passages: list[Passage]
    questions: list[PassageQuestion]
    canonical: dict[str, str]


def passage_world(
    seed: int,
    passages: int = 300,
    aliases: bool = True,
    *,
    two_hop: int = 50,
    path_finding: int = 25,
    one_hop: int = 25,
) -> PassageWorld:
    """The passage world of a seed.

    A third of the passages are scholars' lives and as many their research (a path through a person can only be found
    when no single passage names both ends, as in the case study of the paper); the rest are towns, regions,
    institutes, firms and products. Every passage states three to five facts.

    Args:
        seed: which world; equal arguments give equal worlds.
        passages: how many, from 120 to 1,200.
        aliases: write about 30 % of the mentions in another form of the name; False writes full names everywhere.
        two_hop: questions that follow a path ("In which region was X born?"), six families in turn.
        path_finding: questions with two ends ("Which employee of A studies B?": one of A's many employees is one of
            B's many students); at most 25.
        one_hop: controls that one passage answers.

    Raises ``ValueError`` for numbers outside these ranges.
    """
    passages = whole("passages", passages, LEAST, MOST)
    path_finding = whole("path_finding", path_finding, 0, INSTITUTES * SINGLES)
    two_hop, one_hop = whole("two_hop", two_hop, 0, passages // 3), whole("one_hop", one_hop, 0, passages // 3)
    return _Maker(random.Random(f"passage:{seed}"), passages, aliases).world(seed, two_hop, path_finding, one_hop)


class _Maker:
    """Draws things and facts, writes passages, then asks."""

    def __init__(self, rng: random.Random, passages: int, aliases: bool):
        self.rng, self.share = rng, ALIAS_SHARE if aliases else 0.0
        self.forms: dict[str, tuple[str, ...]] = {}  # full name -> other forms
        self.facts: dict[str, dict[str, list[str]]] = {}  # full name -> relation -> objects
        self._things(passages)
        for name in [*self.people, *self.towns, *self.regions, *self.institutes, *self.firms, *self.products]:
            self.facts[name] = {}
        self._employ()
        self._describe()

    # -- the things ------------------------------------------------------------------------------------------------

    def _things(self, passages: int) -> None:
        coiner = Coiner(self.rng)
        people = INSTITUTES * (passages // (3 * INSTITUTES))
        rest = passages - 2 * people - INSTITUTES
        regions, firms = max(4, rest // 12), rest // 5
        towns = rest // 3
        self.people = [self._named(name.split(), "{0} {1}", PEOPLE_ALIASES) for name in coiner.people(people)]
        self.towns = [self._named([word], "{0}", ALIASES["town"]) for word in coiner.coins("town", towns)]
        self.regions = [self._named([word], "{0}", ALIASES["region"]) for word in coiner.coins("region", regions)]
        houses = coiner.coins("firm", INSTITUTES + firms)
        self.institutes = [self._named([w], "{0} Institute", ALIASES["institute"]) for w in houses[:INSTITUTES]]
        self.firms = [self._named([word], "{0}", ALIASES["firm"]) for word in houses[INSTITUTES:]]
        gadgets = [[word, self.rng.choice(GADGETS)] for word in coiner.coins("thing", rest - towns - regions - firms)]
        self.products = [self._named(gadget, "{0} {1}", ALIASES["product"]) for gadget in gadgets]
        self.rivers = coiner.coins("river", max(6, towns // 3))

    def _named(self, parts: list[str], full: str, forms: tuple[str, ...]) -> str:
        name = full.format(*parts)
        self.forms[name] = tuple(form.format(*parts) for form in forms)
        return name

    def _employ(self) -> None:
        """Every institute has equally many scholars; five of its topics have one student there, the others several.

        A scholar has two topics. Over all institutes a topic is a single one two or three times, so that topics have
        about as many students as institutes have employees.
        """
        subjects = self.rng.sample(TOPICS, SUBJECTS)
        staff = len(self.people) // INSTITUTES
        self.singles: list[tuple[str, str]] = []
        for index, institute in enumerate(self.institutes):
            turned = subjects[2 * index :] + subjects[: 2 * index]
            single, common = turned[:SINGLES], turned[SINGLES:]
            slots = single + [common[i % len(common)] for i in range(2 * staff - SINGLES)]
            members = self.people[index * staff : (index + 1) * staff]
            for person, pair in zip(members, self._pairs(slots)):
                self.facts[person] = {"employer": [institute], "studies": list(pair)}
            self.singles += [(institute, topic) for topic in single]

    def _pairs(self, slots: list[str]) -> list[tuple[str, str]]:
        """The slots in random pairs of two different topics each: shuffled, then equal pairs swap with others."""
        self.rng.shuffle(slots)
        first, second = slots[::2], slots[1::2]
        while equal := [i for i, (a, b) in enumerate(zip(first, second)) if a == b]:
            for i in equal:
                j = self.rng.randrange(len(second))
                if first[i] != second[j] and first[j] != second[i]:
                    second[i], second[j] = second[j], second[i]
        return list(zip(first, second))

    def _describe(self) -> None:
        """The remaining facts: what every thing of a kind has, and one to three that only some have."""
        one, rng = self.rng.choice, self.rng
        for name in self.people:
            self.facts[name]["born"] = [one(self.towns)]
            others = [other for other in self.people if other != name]
            self._some(name, {"plays": [*words.INSTRUMENTS], "owns": self.products, "taught": others}, 1, 3)
            self._some(name, {"prize": [*PRIZES], "coauthor": others}, 1, 2)
        for name in self.towns:
            self.facts[name] |= {"region": [one(self.regions)], "river": [one(self.rivers)]}
            others = [other for other in self.towns if other != name]
            self._some(name, {"ware": [*words.PRODUCTS], "twin": others, "charter": _years(rng)}, 1, 3)
        for name in self.regions:
            self.facts[name] |= {"mineral": [one(words.MINERALS)], "feast": [one(words.FEASTS)]}
            others = [other for other in self.regions if other != name]
            self._some(name, {"animal": [*words.PETS], "border": others}, 1, 2)
        for name in self.institutes:
            self.facts[name] = {"seat": [one(self.towns)], "founded": _years(rng), "colour": [one(words.COLOURS)]}
        for name in self.firms:
            self.facts[name] |= {"seat": [one(self.towns)], "founded": _years(rng)}
            self._some(name, {"founder": self.people, "ware": [*words.PRODUCTS], "colour": [*words.COLOURS]}, 1, 3)
        for name in self.products:
            self.facts[name] |= {"maker": [one(self.firms)], "inventor": [one(self.people)]}
            self._some(name, {"material": [*words.WOODS], "price": _years(rng)}, 1, 2)

    def _some(self, name: str, choices: dict[str, list[str]], least: int, most: int) -> None:
        for relation in self.rng.sample(sorted(choices), self.rng.randint(least, most)):
            self.facts[name][relation] = [self.rng.choice(choices[relation])]

    # -- the passages ----------------------------------------------------------------------------------------------

    def world(self, seed: int, two_hop: int, path_finding: int, one_hop: int) -> PassageWorld:
        drafts: list[tuple[str, str, str, tuple[str, ...]]] = [("person", name, name, _LIFE) for name in self.people]
        drafts += [("research", f"Research of {name}", name, _RESEARCH) for name in self.people]
        for kind in ("town", "region", "institute", "firm", "product"):
            drafts += [(kind, name, name, ()) for name in getattr(self, f"{kind}s")]
        self.rng.shuffle(drafts)
        passages = [self._passage(index, *draft) for index, draft in enumerate(drafts)]
        self.place = {(kind, name): index for index, (kind, _, name, _) in enumerate(drafts)}
        questions = self._two_hop(two_hop) + self._path_finding(path_finding) + self._one_hop(one_hop)
        canonical = {form: name for name, forms in self.forms.items() for form in (name, *forms)}
        return PassageWorld(seed, passages, questions, canonical)

    def _passage(self, index: int, kind: str, title: str, name: str, only: tuple[str, ...]) -> Passage:
        known = self.facts[name]
        stated = [(relation, obj) for relation in (only or known) for obj in known.get(relation, ())]
        self.rng.shuffle(stated)
        sentences, triples = [], []
        entities: dict[str, None] = {}
        for relation, obj in stated:
            subject, other = self._form(name), self._form(obj)
            sentences.append(self.rng.choice(RELATIONS[relation].sentences).format(s=subject, o=other))
            triples.append((subject, RELATIONS[relation].label, other))
            entities |= {subject: None, other: None} if RELATIONS[relation].entity else {subject: None}
        return Passage(index, title, " ".join(sentences), tuple(triples), tuple(entities), kind, name)

    def _form(self, name: str) -> str:
        """The name, or with chance ``ALIAS_SHARE`` another form of it, where it has one."""
        forms = self.forms.get(name)
        return self.rng.choice(forms) if forms and self.rng.random() < self.share else name

    # -- the questions ---------------------------------------------------------------------------------------------

    def _fact(self, name: str, relation: str) -> str:
        return self.facts[name][relation][0]

    def _ask(self, text: str, answer: str, kind: str, family: str, evidence: list[tuple[str, str]], *names: str
             ) -> PassageQuestion:  # fmt: skip
        places = tuple(self.place[one] for one in evidence)
        return PassageQuestion(text, answer, (answer, *self.forms.get(answer, ())), places, kind, family, names)

    def _two_hop(self, n: int) -> list[PassageQuestion]:
        families: list[tuple[list[str], Callable[[str], PassageQuestion]]] = [
            (self.people, self._birth_region), (self.products, self._maker_seat), (self.people, self._birth_river),
            (self.products, self._inventor_town), (self.firms, self._seat_region),
            (self.products, self._inventor_employer),
        ]  # fmt: skip
        return self._in_turn(n, families)

    def _in_turn(
        self, n: int, families: list[tuple[list[str], Callable[[str], PassageQuestion]]]
    ) -> list[PassageQuestion]:
        """``n`` questions, the families in turn, each about another subject as long as there is one."""
        pools = [self.rng.sample(pool, len(pool)) for pool, _ in families]
        used: Counter[int] = Counter()
        asked = []
        for turn in range(n):
            which = turn % len(families)
            asked.append(families[which][1](pools[which][used[which] % len(pools[which])]))
            used[which] += 1
        return asked

    def _birth_region(self, person: str) -> PassageQuestion:
        town = self._fact(person, "born")
        return self._ask(f"In which region was {person} born?", self._fact(town, "region"), "two-hop",
                         "region of birth", [("person", person), ("town", town)], person)  # fmt: skip

    def _birth_river(self, person: str) -> PassageQuestion:
        town = self._fact(person, "born")
        return self._ask(f"Which river flows through the town where {person} was born?", self._fact(town, "river"),
                         "two-hop", "river of birthplace", [("person", person), ("town", town)], person)  # fmt: skip

    def _maker_seat(self, product: str) -> PassageQuestion:
        firm = self._fact(product, "maker")
        return self._ask(f"In which town is the head office of the company that makes the {product}?",
                         self._fact(firm, "seat"), "two-hop", "seat of maker",
                         [("product", product), ("firm", firm)], product)  # fmt: skip

    def _inventor_town(self, product: str) -> PassageQuestion:
        person = self._fact(product, "inventor")
        return self._ask(f"Where was the inventor of the {product} born?", self._fact(person, "born"), "two-hop",
                         "birthplace of inventor", [("product", product), ("person", person)], product)  # fmt: skip

    def _inventor_employer(self, product: str) -> PassageQuestion:
        person = self._fact(product, "inventor")
        return self._ask(f"Which institute employs the inventor of the {product}?", self._fact(person, "employer"),
                         "two-hop", "employer of inventor", [("product", product), ("person", person)],
                         product)  # fmt: skip

    def _seat_region(self, firm: str) -> PassageQuestion:
        town = self._fact(firm, "seat")
        return self._ask(f"In which region does {firm} have its head office?", self._fact(town, "region"), "two-hop",
                         "region of seat", [("firm", firm), ("town", town)], firm)  # fmt: skip

    def _path_finding(self, n: int) -> list[PassageQuestion]:
        asked = []
        for institute, topic in self.rng.sample(self.singles, n):
            person = next(
                name
                for name in self.people
                if self._fact(name, "employer") == institute and topic in self.facts[name]["studies"]
            )
            evidence = [("person", person), ("research", person)]
            text = f"Which employee of the {institute} does research on {topic}?"
            asked.append(self._ask(text, person, "path-finding", "employee and topic", evidence, institute, topic))
        return asked

    def _one_hop(self, n: int) -> list[PassageQuestion]:
        def single(kind: str, relation: str, text: str) -> Callable[[str], PassageQuestion]:
            return lambda name: self._ask(
                text.format(name), self._fact(name, relation), "one-hop", relation, [(kind, name)], name
            )

        return self._in_turn(n, [
            (self.people, single("person", "born", "In which town was {} born?")),
            (self.products, single("product", "maker", "Which company makes the {}?")),
            (self.towns, single("town", "region", "In which region is {}?")),
            (self.firms, single("firm", "founded", "In which year was {} founded?")),
            (self.people, single("person", "employer", "Which institute does {} work for?")),
            (self.towns, single("town", "river", "On which river does {} stand?")),
        ])  # fmt: skip


_LIFE = ("born", "employer", "plays", "owns", "taught")
_RESEARCH = ("studies", "prize", "coauthor")


def _years(rng: random.Random) -> list[str]:
    return [str(rng.randint(1210, 1989))]
