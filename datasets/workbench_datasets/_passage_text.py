"""Our own wording of the passage world, and the extractor that reads its sentences back as triples."""

from __future__ import annotations

import re
from dataclasses import dataclass

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class Relation:
    """A relation: its label in triples, and the sentences that state it of a subject (s) and an object (o).

    ``entity``: the object is a named thing with a passage of its own (else a word or a number).
    """

    label: str
    sentences: tuple[str, ...]
    entity: bool = True


RELATIONS = {
    "born": Relation("was born in", ("{s} was born in {o}.", "{s} came into the world in {o}.",
                                     "The birthplace of {s} is {o}.")),
    "employer": Relation("works for", ("{s} is employed by {o}.", "{s} has worked for {o} for years.",
                                       "{o} counts {s} among its staff.")),
    "plays": Relation("plays", ("{s} plays the {o} in the evenings.", "A talent of {s} is the {o}."), entity=False),
    "owns": Relation("owns", ("{s} owns the {o} and is fond of it.", "At home {s} keeps the {o}.")),
    "taught": Relation("was taught by", ("{s} was a pupil of {o}.", "As a child {s} had lessons from {o}.")),
    "studies": Relation("studies", ("{s} does research on {o}.", "{s} has published widely about {o}.",
                                    "The subject of many talks by {s} is {o}."), entity=False),
    "prize": Relation("received", ("{s} was awarded the {o}.", "A jury gave {s} the {o}."), entity=False),
    "coauthor": Relation("wrote with", ("{s} wrote an essay together with {o}.",
                                        "A book by {s} was edited by {o}.")),
    "region": Relation("lies in", ("{s} lies in {o}.", "{s} belongs to {o}.", "On the map {s} is found in {o}.")),
    "river": Relation("stands on", ("{s} stands on the river {o}.", "The river {o} flows through {s}."),
                      entity=False),
    "ware": Relation("trades in", ("{s} lives by trading {o}.", "Merchants come to {s} for its {o}."), entity=False),
    "twin": Relation("is twinned with", ("{s} is twinned with {o}.", "{s} and {o} are partner towns.")),
    "charter": Relation("got its charter in", ("{s} received its charter in {o}.",), entity=False),
    "mineral": Relation("is rich in", ("{s} is rich in {o}.", "Mines in {s} yield {o}."), entity=False),
    "feast": Relation("celebrates", ("{s} celebrates the {o} every year.",), entity=False),
    "animal": Relation("shows on its flag", ("{s} shows a {o} on its flag.",), entity=False),
    "border": Relation("borders on", ("{s} borders on {o}.", "A long frontier divides {s} from {o}.")),
    "seat": Relation("has its seat in", ("{s} has its seat in {o}.", "The head office of {s} is in {o}.",
                                         "{s} is run from {o}.")),
    "founded": Relation("was founded in", ("{s} was founded in the year {o}.", "{s} opened its doors in the year {o}."),
                        entity=False),
    "founder": Relation("was started by", ("{s} was started by {o}.", "It was {o} who set up {s}.")),
    "colour": Relation("has the colour", ("{s} paints its buildings {o}.",), entity=False),
    "maker": Relation("is made by", ("{s} is made by {o}.", "{s} comes from the workshops of {o}.",
                                     "{o} builds and sells {s}.")),
    "inventor": Relation("was invented by", ("{s} was invented by {o}.", "{s} goes back to a sketch by {o}.")),
    "material": Relation("consists of", ("{s} consists mostly of {o}.", "For {s} only {o} is used."), entity=False),
    "price": Relation("costs", ("{s} costs {o} crowns.",), entity=False),
}  # fmt: skip

TOPICS = (
    "glacier movement", "moth migration", "bell casting", "tidal currents", "medieval bridges", "orchid diseases",
    "sleep rhythms", "volcanic dust", "silk dyeing", "beaver dams", "church acoustics", "desert wells",
    "honey chemistry", "lighthouse optics", "mountain dialects", "seaweed farming", "steam turbines", "wolf packs",
)  # fmt: skip
PRIZES = ("Silver Compass", "Harbour Medal", "Lantern Prize", "Golden Quill", "Ivory Ruler", "Copper Owl")
GADGETS = ("Lamp", "Kettle", "Clock", "Loom", "Pump", "Camera", "Stove", "Plough", "Radio", "Saddle")

PEOPLE_ALIASES = ("Dr {0} {1}", "{0} J {1}")
ALIASES = {
    "town": ("Old {0}", "{0} Town"),
    "region": ("Greater {0}", "{0} Region"),
    "firm": ("{0} Works", "{0} Company"),
    "institute": ("Institute of {0}", "{0} Research Institute"),
    "product": ("Original {0} {1}", "{0} Model {1}"),
}


def _pattern(sentence: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[so]\})", sentence)
    body = "".join(f"(?P<{part[1]}>.+?)" if part in ("{s}", "{o}") else re.escape(part) for part in parts)
    return re.compile(f"^{body}$")


_PATTERNS = [(_pattern(sentence), name) for name, relation in RELATIONS.items() for sentence in relation.sentences]


def extract(text: str) -> list[Triple]:
    """Triples (subject, relation, object) that the sentences of a passage state, in order.

    Works by the generator's own sentence patterns: exact on generated passages, empty on any other text.
    """
    found: list[Triple] = []
    for sentence in re.findall(r"[^.]+\.", text):
        for pattern, name in _PATTERNS:
            match = pattern.match(sentence.strip())
            if match:
                found.append((match["s"], RELATIONS[name].label, match["o"]))
                break
    return found
