"""What HippoRAG asks a language model for: named entities and triples of a passage, entities of a question.

Without a model, rules answer, and every answer of a rule is counted and labelled. The prompts are ours; what they ask
for is the paper's (appendix I): entities first, then triples that hold at least one of them, pronouns resolved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, Field

from workbench.errors import BadInput
from workbench.llm import NO_MODEL, ChatModel, Ledger, Message, ask, rules
from workbench.memory.stores._hipporag_text import Triple, clean_triples, normalise

GIVEN = "given with the passage"

_SHOWN_PASSAGE = (
    "Mirel Harbour\nMirel Harbour is a port on the Sele, founded in 1811 by Tomas Brandt. It hosts the Lantern Fair, "
    "and its mayor is Ina Kolb, a former pilot."
)
_SHOWN_ENTITIES = ["Mirel Harbour", "Sele", "1811", "Tomas Brandt", "Lantern Fair", "Ina Kolb"]
_SHOWN_TRIPLES = [
    ["Mirel Harbour", "is a port on", "Sele"], ["Mirel Harbour", "founded in", "1811"],
    ["Mirel Harbour", "founded by", "Tomas Brandt"], ["Mirel Harbour", "hosts", "Lantern Fair"],
    ["Ina Kolb", "is mayor of", "Mirel Harbour"], ["Ina Kolb", "was", "pilot"],
]  # fmt: skip
_NER = "List the named entities of the passage: people, places, organisations, works, events, dates and numbers."
_OPENIE = (
    "Write down what the passage says as triples of subject, relation and object. Every triple holds at least one of "
    "the named entities that are listed, two where possible. Put names in the place of pronouns."
)
_QUERY_NER = "List the named entities that are needed to answer the question, as they are written in it."


class NamedEntities(BaseModel):
    """Answer of the two entity prompts."""

    named_entities: list[str] = Field(default_factory=list)


class Triples(BaseModel):
    """Answer of the triple prompt; tuples of another length than three are dropped later, and counted."""

    triples: list[list[str]] = Field(default_factory=list)


@dataclass(frozen=True)
class Extraction:
    """What one passage says: entities as written, normalised triples, how many tuples were malformed, and by whom."""

    entities: tuple[str, ...]
    triples: tuple[Triple, ...]
    malformed: int
    by: str

    def meta(self) -> dict[str, Any]:
        """JSON for an item's meta."""
        triples = [list(triple) for triple in self.triples]
        return {"entities": list(self.entities), "triples": triples, "malformed": self.malformed, "openie": self.by}


class OpenIE:
    """Entities and triples by ``llm`` (temperature 0), by rules where there is none or where it fails.

    ``given`` maps a passage to ``{"entities": [...], "triples": [[s, r, o], ...]}``: extractions that were published,
    used unchanged. ``ledger`` counts every question that a language model was asked, or would have been.
    """

    def __init__(
        self,
        llm: ChatModel | None = None,
        given: Mapping[str, Mapping[str, Any]] | None = None,
        ledger: Ledger | None = None,
    ):
        self.llm, self.given = llm, given
        self.ledger = ledger if ledger is not None else Ledger()

    @property
    def label(self) -> str:
        return GIVEN if self.given is not None else self.llm.label if self.llm is not None else NO_MODEL

    def passage(self, text: str, accents: str = "fold") -> Extraction:
        """Entities, then triples conditioned on them. Raises BadInput for a passage that ``given`` lacks."""
        if self.given is not None:
            if text not in self.given:
                head = text[:60].replace("\n", " / ")
                raise BadInput(f"no triples are given for the passage {head!r}...; add them, or let rules or a model")
            return from_meta(self.given[text], accents)
        entities, _ = self._entities(_messages(_NER, text, {"named_entities": _SHOWN_ENTITIES}), text)
        listed = f"{text}\n\nNamed entities: {', '.join(entities)}"
        shown = f"{_SHOWN_PASSAGE}\n\nNamed entities: {', '.join(_SHOWN_ENTITIES)}"
        messages = _messages(_OPENIE, listed, {"triples": _SHOWN_TRIPLES}, shown)
        by_rule = partial(_rule_triples, text, entities)
        reply = ask(self.llm, messages, Triples, fallback=by_rule, ledger=self.ledger, max_tokens=1_024)
        assert isinstance(reply.parsed, Triples)
        triples, malformed = clean_triples(reply.parsed.triples, accents)
        by = self.label if reply.fallback is None or self.llm is None else f"rules, because: {reply.fallback}"
        return Extraction(entities, triples, malformed, by)

    def question(self, text: str, gazetteer: Gazetteer) -> tuple[tuple[str, ...], str]:
        """Entities of a question and who found them; by rule: names the index knows, then capitalised names."""
        messages = _messages(_QUERY_NER, text, {"named_entities": ["Ina Kolb"]}, "Which port does Ina Kolb govern?")
        return self._entities(messages, text, gazetteer)

    def _entities(
        self, messages: list[Message], text: str, gazetteer: Gazetteer | None = None
    ) -> tuple[tuple[str, ...], str]:
        def by_rule() -> NamedEntities:
            found = gazetteer.find(text) if gazetteer is not None else rules.names(text)
            return NamedEntities(named_entities=found)

        reply = ask(self.llm, messages, NamedEntities, fallback=by_rule, ledger=self.ledger)
        assert isinstance(reply.parsed, NamedEntities)
        found = dict.fromkeys(name.strip() for name in reply.parsed.named_entities if name.strip())
        by = NO_MODEL if reply.fallback is not None or self.llm is None else self.llm.label
        return tuple(found), by


def as_openie(given: Any) -> OpenIE:
    if isinstance(given, OpenIE):
        return given
    if isinstance(given, Mapping):
        return OpenIE(given=given)
    if given is None or isinstance(given, ChatModel):
        return OpenIE(given)
    raise BadInput(f"openie must be None, a chat model, a mapping of passages or an OpenIE, got {type(given).__name__}")


def check_passage(text: Any, meta: Any) -> None:
    """Raise BadInput unless ``text`` says something and ``meta`` is a mapping."""
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"a passage must be text that says something, got {text!r}")
    if not isinstance(meta, Mapping):
        raise BadInput(f"the meta of a passage must be a mapping of names to values, got {type(meta).__name__}")


def check_entities(entities: Any) -> None:
    """Raise BadInput unless ``entities`` are names in a list (one text would be taken letter by letter)."""
    if not isinstance(entities, list | tuple) or not all(isinstance(entity, str) for entity in entities):
        raise BadInput(f"entities must be a list of names as text, got {entities!r:.60}")


def from_meta(meta: Mapping[str, Any], accents: str = "fold") -> Extraction:
    """An extraction that came with the passage: lists under "entities" (optional) and "triples".

    Malformed triples are dropped and counted. Raises BadInput when either is no list.
    """
    for name in ("entities", "triples"):
        if not isinstance(meta.get(name, []), list | tuple):
            raise BadInput(f"meta[{name!r}] must be a list, got {type(meta[name]).__name__}")
    triples, malformed = clean_triples(meta.get("triples", []), accents)
    entities = meta.get("entities") or dict.fromkeys(end for t in triples for end in (t.subject, t.object))
    before = meta.get("malformed", 0)
    malformed += before if isinstance(before, int) else 0
    return Extraction(tuple(map(str, entities)), triples, malformed, str(meta.get("openie", GIVEN)))


class Gazetteer:
    """The names that the passages hold, to be found in a question: longest match first, none overlapping.

    A single word counts when the question writes it with a capital or a digit; if that leaves nothing, any word that
    is a name in the index counts. Capitalised names that the index does not know are found by rule and added.
    """

    #: Words of the longest name that is looked for.
    LONGEST = 10

    def __init__(self, names: Iterable[str] = ()):
        self._count: dict[str, int] = {}
        self.add(names)

    def add(self, names: Iterable[str]) -> None:
        for name in {_key(name) for name in names} - {""}:
            self._count[name] = self._count.get(name, 0) + 1

    def remove(self, names: Iterable[str]) -> None:
        for name in {_key(name) for name in names} & set(self._count):
            self._count[name] -= 1
            if not self._count[name]:
                del self._count[name]

    def __len__(self) -> int:
        return len(self._count)

    def find(self, question: str) -> list[str]:
        """The names in ``question``, in order, as they are written there (white space and possessive 's apart)."""
        words = question.split()
        found = self._known(words, strict=True)
        spans = list(found)
        for name in rules.names(question):
            if not any(_key(name) in _key(held) or _key(held) in _key(name) for held in spans):
                found.append(name)
        return found or self._known(words, strict=False)

    def _known(self, words: Sequence[str], strict: bool) -> list[str]:
        found, at = [], 0
        while at < len(words):
            end = next((end for end in range(min(len(words), at + self.LONGEST), at, -1)
                        if self._is_name(words[at:end], strict)), None)  # fmt: skip
            if end is not None:
                found.append(_bare(" ".join(words[at:end])))
            at = end if end is not None else at + 1
        return found

    def _is_name(self, words: Sequence[str], strict: bool) -> bool:
        text = _bare(" ".join(words))
        key = _key(text)
        if key not in self._count or len(key) < 3 or not rules.content_words(key):
            return False
        return len(words) > 1 or not strict or any(c.isupper() or c.isdigit() for c in text)


def _bare(text: str) -> str:
    stripped = text.strip(".,;:!?()[]\"'“”‘’")
    return stripped[:-2] if stripped.endswith(("'s", "’s")) else stripped


def _key(name: str) -> str:
    return " ".join(normalise(name).split())


def _rule_triples(text: str, entities: Sequence[str]) -> Triples:
    """What the patterns find; a name that they leave out is joined to what the passage is about (ours).

    The prompt asks a language model for triples that hold all the entities; rules see few of them in long sentences.
    A passage is about its title (a first line of at most twelve words), else about the first name in it.
    """
    found = [list(triple) for triple in rules.triples(text)]
    head, _, rest = text.partition("\n")
    topic = head.strip() if rest and len(head.split()) <= 12 else next(iter(entities), "")
    said = {_key(end) for triple in found for end in (triple[0], triple[2])} | {_key(topic)}
    found += [[topic, "mentions", name] for name in entities if topic and _key(name) not in said]
    return Triples(triples=found)


def _messages(task: str, text: str, shown: dict[str, Any], shown_text: str = _SHOWN_PASSAGE) -> list[Message]:
    import json

    example = json.dumps(shown, ensure_ascii=False)
    return [Message("system", task), Message("user", shown_text), Message("assistant", example), Message("user", text)]
