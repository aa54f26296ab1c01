"""Daily summaries, the global summary, daily insights and the portrait: by extraction, or by any chat model.

The paper has ChatGPT write all four. The default here extracts instead [our choice], so that everything runs offline
and gives the same text every time: the most central sentences of a day, and counted facts that the user stated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from workbench.checks import whole

if TYPE_CHECKING:
    from workbench.llm import ChatModel

#: (query, response) of one exchange.
Talk = tuple[str, str]
#: An attribute of the user and its value, as stated.
Fact = tuple[str, str]


@dataclass(frozen=True)
class Insight:
    """What one day told about the user: a text, and the facts found by rules (none when a model wrote the text)."""

    date: str
    text: str
    facts: tuple[Fact, ...] = ()


class Summariser(Protocol):
    """Writes the four texts. ``label`` is shown wherever one of them is; an empty text: nothing to say."""

    label: str

    def day(self, user: str, date: str, talk: Sequence[Talk]) -> str: ...

    def overall(self, user: str, days: Sequence[tuple[str, str]]) -> str: ...

    def insight(self, user: str, date: str, talk: Sequence[Talk]) -> Insight: ...

    def portrait(self, user: str, insights: Sequence[Insight]) -> str: ...


class Extractive:
    """No language model: central sentences (TF-IDF) and stated facts (patterns). ``k`` sentences a summary."""

    label = "rules (no language model)"

    def __init__(self, k: int = 3):
        self.k = whole("k", k, more=" (sentences)")

    def day(self, user: str, date: str, talk: Sequence[Talk]) -> str:
        """The ``k`` most central sentences of what was said that day, in order."""
        return " ".join(_central("\n".join(part for pair in talk for part in pair if part), self.k))

    def overall(self, user: str, days: Sequence[tuple[str, str]]) -> str:
        """The ``k`` most central sentences of all daily summaries, each with its date."""
        dated = [(date, sentence) for date, text in days for sentence in _sentences(text)]
        central = _central("\n".join(sentence for _, sentence in dated), self.k)
        date_of = {sentence: date for date, sentence in reversed(dated)}
        return " ".join(
            f"({date_of[sentence]}) {sentence}" if sentence in date_of else sentence for sentence in central
        )

    def insight(self, user: str, date: str, talk: Sequence[Talk]) -> Insight:
        """The facts that the user stated that day."""
        facts = tuple(dict.fromkeys(fact for query, _ in talk for fact in stated_facts(query, user)))
        return Insight(date, "; ".join(f"{attribute} {value}" for attribute, value in facts), facts)

    def portrait(self, user: str, insights: Sequence[Insight]) -> str:
        """Counts of (attribute, value) over the days, the most frequent first, with the day each was last said."""
        counts: Counter[Fact] = Counter()
        last: dict[Fact, str] = {}
        for insight in insights:
            counts.update(insight.facts)
            last.update(dict.fromkeys(insight.facts, insight.date))
        order = {fact: at for at, fact in enumerate(counts)}
        ranked = sorted(counts, key=lambda fact: (-counts[fact], order[fact]))[:12]
        return "; ".join(f"{a} {v} ({counts[a, v]}x, last {last[a, v]})" for a, v in ranked)


class ByModel:
    """Any chat model writes the texts; where it fails, the rule answers and is counted in ``ledger``.

    The authors' settings: temperature 0.7, at most 400 tokens, and a prompt that does not fit is cut to its last
    1800 - 200 * attempt characters, five times. Their frequency and presence penalties (0.4, 0.2) are not part of the
    chat-model door and are left at the model's own.
    """

    ATTEMPTS = 5

    def __init__(self, llm: ChatModel, *, temperature: float = 0.7, max_tokens: int = 400, seed: int = 0):
        from workbench.llm import Ledger

        self.llm, self.temperature, self.max_tokens, self.seed = llm, temperature, max_tokens, seed
        self.label, self.ledger = llm.label, Ledger()
        self._rule = Extractive()

    def day(self, user: str, date: str, talk: Sequence[Talk]) -> str:
        asked = "Summarise the conversation below: its topics and the key facts about the user, in a few sentences."
        return self._written(f"{asked}\nConversation of {date}:\n{_told(user, talk)}", self._rule.day(user, date, talk))

    def overall(self, user: str, days: Sequence[tuple[str, str]]) -> str:
        asked = "Condense these daily summaries into one short overview of what happened, with dates."
        listed = "\n".join(f"{date}: {text}" for date, text in days)
        return self._written(f"{asked}\n{listed}", self._rule.overall(user, days))

    def insight(self, user: str, date: str, talk: Sequence[Talk]) -> Insight:
        asked = (
            f"From the conversation below, describe {user}'s personality traits and mood that day, and how a companion "
            "should answer, in a few sentences."
        )
        rule = self._rule.insight(user, date, talk)
        return Insight(date, self._written(f"{asked}\nConversation of {date}:\n{_told(user, talk)}", rule.text))

    def portrait(self, user: str, insights: Sequence[Insight]) -> str:
        asked = f"Condense these daily notes into a short portrait of {user} and the best way to talk to them."
        listed = "\n".join(f"{insight.date}: {insight.text}" for insight in insights)
        return self._written(f"{asked}\n{listed}", "; ".join(i.text for i in insights if i.text))

    def _written(self, prompt: str, otherwise: str) -> str:
        from workbench.llm import Message, Reply
        from workbench.llm.base import ContextTooLong, LlmError

        problem, asked = "", prompt
        for attempt in range(self.ATTEMPTS):
            try:
                reply = self.llm.chat([Message("user", asked)], temperature=self.temperature,
                                      max_tokens=self.max_tokens, seed=self.seed)  # fmt: skip
                if reply.text.strip():
                    self.ledger.note(self.llm.name, self.llm.label, reply)
                    return " ".join(reply.text.split())
                problem = "the model wrote nothing"
                break
            except ContextTooLong as error:
                problem, asked = str(error), prompt[-(1800 - 200 * attempt) :]
            except LlmError as error:
                problem = str(error)
                break
        self.ledger.note(self.llm.name, self.llm.label, Reply(attempts=0, fallback=problem))
        return otherwise


def _told(user: str, talk: Sequence[Talk]) -> str:
    return "\n".join(f"{user}: {query}" + (f"\nAI: {response}" if response else "") for query, response in talk)


def _sentences(text: str) -> list[str]:
    from workbench.llm.rules import sentences

    return sentences(text)


def _central(text: str, k: int) -> list[str]:
    from workbench.llm.rules import central_sentences

    return central_sentences(text, k) if text.strip() else []


# -- what a user states about themselves ------------------------------------------------------------------------------

_SOME = r"(?:also |really |still |just |always |often |currently |recently |now )*"
_VALUE = r"(?P<value>[^.,;!?\n]{2,60}?)(?=[.,;!?\n]|$| because | but | when | since | so much\b| very much\b| too\b)"
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), attribute)
    for pattern, attribute in (
        (rf"\bmy (?P<what>(?:favou?rite )?[a-z]+(?: [a-z]+)?) (?:is|are|was)(?: called| named)? {_VALUE}", ""),
        (rf"\bI {_SOME}(?:like|love|enjoy|am fond of|prefer) {_VALUE}", "likes"),
        (rf"\bI {_SOME}(?:dislike|hate|don't like|do not like|can't stand) {_VALUE}", "dislikes"),
        (rf"\bI {_SOME}(?:live|moved) (?:in|to) {_VALUE}", "lives in"),
        (rf"\bI {_SOME}(?:work|worked) as an? {_VALUE}", "works as"),
        (rf"\bI {_SOME}(?:play) (?:the )?{_VALUE}", "plays"),
        (rf"\b(?:I am|I'm|I was|I) {_SOME}(?:reading|read|finished reading) {_VALUE}", "read"),
        (rf"\bI {_SOME}(?:went|travell?ed|am going|was) (?:on a trip )?to {_VALUE}", "went to"),
        (rf"\bI {_SOME}visited {_VALUE}", "went to"),
        (rf"\bI {_SOME}(?:have|own|adopted|got) an? {_VALUE}", "has a"),
    )
)
_LASTING = re.compile(r"(?:lives|works|plays|keeps|owns|belongs)\b")
_EMPTY = re.compile(r"^(?:it|that|this|them|you|so|very|not|a bit|to|for|of|in|with)\b", re.IGNORECASE)


def stated_facts(text: str, user: str) -> list[Fact]:
    """(attribute, value) pairs that ``user`` states, in order: first person by patterns, third person by clause rules.

    Pure form, no understanding: what is said in other words is missed. Questions state nothing.
    """
    from workbench.llm.rules import triples

    facts: list[Fact] = []
    told = [sentence for sentence in _sentences(text) if not sentence.rstrip().endswith("?")]
    for sentence in told:
        for pattern, attribute in _PATTERNS:
            for match in pattern.finditer(sentence):
                value = match["value"].strip().removeprefix("a ").removeprefix("an ").removeprefix("the ")
                if value and not _EMPTY.match(value):
                    facts.append((attribute or f"{match['what'].lower()}:", value))
        clauses = triples(f"{user}: {sentence}")
        facts += [(t.relation, t.object) for t in clauses if t.subject == user and _LASTING.match(t.relation)]
    return list(dict.fromkeys(facts))
