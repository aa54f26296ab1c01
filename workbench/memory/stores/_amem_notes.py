"""A-MEM's note, what a chat model fills of it, and the two prompts.

Note (paper, section 3.1): m = {c, t, K, G, X, e, L}: content, time, keywords, tags, context sentence, embedding, links.
Content and time come from the caller; K, G, X from :class:`NoteFields` (prompt P_s1); links and the rewriting of
neighbours from :class:`Evolution`, which asks P_s2 and P_s3 in one call as the published code does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

if TYPE_CHECKING:
    from workbench.llm.base import Message
    from workbench.memory.durable import Item


#: What notes are called in a store.
KIND = "note"


def _words(value: Any) -> Any:
    """Models often write a list as one text with commas; anything else is left for pydantic to judge."""
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Words = Annotated[list[str], BeforeValidator(_words)]


class NoteFields(BaseModel):
    """What a model writes about one new note: K, X and G of the paper."""

    keywords: Words = Field(min_length=1, description="salient concepts, most important first, at least three")
    context: str = Field(min_length=1, description="one sentence: topic, key points, purpose")
    tags: Words = Field(default_factory=list, description="broad categories: domain, format, type; at least three")


class Evolution(BaseModel):
    """What a model decides when a note meets its neighbours.

    ``suggested_connections`` are ids of neighbours; the two ``..._neighborhood`` lists hold one entry a neighbour, in
    the order in which the neighbours were shown.
    """

    should_evolve: bool = False
    actions: Words = Field(default_factory=list, description="any of: strengthen, update_neighbor")
    suggested_connections: list[int] = Field(default_factory=list, description="ids of neighbours to link to")
    tags_to_update: Words = Field(default_factory=list, description="the new note's tags")
    new_context_neighborhood: list[str] = Field(default_factory=list, description="one context a neighbour")
    new_tags_neighborhood: list[Words] = Field(default_factory=list, description="one list of tags a neighbour")


class SearchWords(BaseModel):
    """A question rewritten as search terms."""

    keywords: Words = Field(min_length=1)


@dataclass(frozen=True)
class Note:
    """One note as plain data; ``id`` is None before it is stored. ``time`` is in seconds since 1970 UTC."""

    content: str
    time: float
    keywords: tuple[str, ...] = ()
    context: str = ""
    tags: tuple[str, ...] = ()
    links: tuple[int, ...] = ()
    id: int | None = None
    entities: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, item: Item) -> Note:
        meta = item.meta
        return cls(
            item.text,
            item.time,
            tuple(meta.get("keywords", ())),
            str(meta.get("context", "")),
            tuple(item.tags),
            tuple(item.links),
            item.id,
            tuple(meta.get("entities", ())),
        )

    def index_text(self, what: str = "note") -> str:
        """What is embedded (equation 3): content, keywords, tags and context; or only some of it.

        ``what``: "note" (the paper), "metadata" (context and keywords, as the published code indexes a new note).
        """
        if what == "metadata":
            return _joined(self.context, ", ".join(self.keywords)) or self.content
        return _joined(self.content, ", ".join(self.keywords), ", ".join(self.tags), self.context)

    def prompt_text(self, show: str = "note") -> str:
        """What a reader is shown: "note" (time, content, context, keywords, tags) or "content" (time, content)."""
        head = f"[{day(self.time)}] {self.content}"
        if show == "content":
            return head
        parts = (("context", self.context), ("keywords", ", ".join(self.keywords)), ("tags", ", ".join(self.tags)))
        told = "; ".join(f"{name}: {value}" for name, value in parts if value)
        return f"{head} ({told})" if told else head


def day(seconds: float) -> str:
    """The date of a time, as it stands in prompts."""
    from workbench.memory.durable import when

    return when(seconds).strftime("%Y-%m-%d")


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def distinct(words: Iterable[Any], most: int | None = None) -> tuple[str, ...]:
    """Words without blanks and repeats (whatever their case), in order, at most ``most``."""
    kept: dict[str, str] = {}
    for word in words:
        clean = " ".join(str(word).split())
        if clean:
            kept.setdefault(clean.casefold(), clean)
    return tuple(kept.values())[:most]


# ---------------------------------------------------------------------- prompts (our wording of the card's rules)

_CONSTRUCT = """You file notes. Read the text and describe it for later search.
keywords: the nouns, verbs and concepts that carry it, most important first, three or more; no speaker's name, no time.
context: one sentence saying what it is about, its main points and what it is for.
tags: three or more broad classes (field, form, kind)."""

_EVOLVE = """You look after a collection of notes. A new note has arrived; below it are the stored notes nearest to it.
Decide whether anything should change (should_evolve), and which actions to take:
- strengthen: name the ids of the stored notes that the new one should be linked to (suggested_connections) and give the
  new note's tags (tags_to_update);
- update_neighbor: give every stored note a context and tags in the light of the new one (new_context_neighborhood,
  new_tags_neighborhood): one entry for each, in the order shown; repeat what should stay as it is.
Contents never change."""

_SEARCH = "Turn the question into search terms: its key concepts, most important first."


def construct_messages(content: str, time: float) -> list[Message]:
    """P_s1: content and time go in, keywords, context and tags come out."""
    return _messages(_CONSTRUCT, f"Time: {day(time)}\nText: {content}")


def evolve_messages(note: Note, neighbours: Sequence[Note]) -> list[Message]:
    """P_s2 and P_s3 in one call: the new note and its neighbours with ids."""
    new = f"New note\ncontext: {note.context}\ncontent: {note.content}\nkeywords: {', '.join(note.keywords)}"
    shown = [
        f"id: {old.id}; time: {day(old.time)}; content: {old.content}; context: {old.context}; "
        f"keywords: {', '.join(old.keywords)}; tags: {', '.join(old.tags)}"
        for old in neighbours
    ]
    return _messages(_EVOLVE, "\n".join([new, "", f"Stored notes ({len(shown)})", *shown]))


def search_messages(query: str) -> list[Message]:
    return _messages(_SEARCH, f"Question: {query}")


def _messages(system: str, user: str) -> list[Message]:
    from workbench.llm.base import Message

    return [Message("system", system), Message("user", user)]
