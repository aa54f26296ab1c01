"""Triples (subject, relation, object) by patterns of simple English clauses.

A clause is a subject (a name, a pronoun that stands for the last one, "NAME's mentor", "the mentor of NAME"), a verb
and what follows it, cut at prepositions: "Ada works as a baker in Leeds" gives (Ada, works as, baker) and (Ada, works
in, Leeds). No grammar is parsed: passive agents, questions, negations and long sentences are skipped, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from workbench.errors import BadInput
from workbench.llm._rules_words import CALENDAR, Run, listed, runs, sentence_spans, words

MAX_WORDS = 60  # longer sentences are no simple clauses
MAX_OBJECT = 8

_BE = listed("is are was were be been being am 's 're 'm")
_AUX = _BE | listed("has have had will would can could may might must shall should did does do")
_PREPOSITIONS = listed(
    """in at on of to for from with by as near under over into through about since until during after before between
    against towards toward across among inside outside beside behind along around within onto via like"""
)
_ARTICLES = listed("the a an his her their its my our your this that these those some")
_ADVERBS = listed(
    "mostly mainly only also now still often never always once then just really currently usually recently first"
)
_ENDS = listed("and but or because while when where which that if although though so who whose whom than whether")
_PARTICLES = listed("place part care up down out off away back")
_TO_DO = listed(
    "likes like liked loves love loved wants want wanted hopes needs tries began started learned used plans"
)
_SAME = listed("he she they it")
_OWN = listed("his her their its")
_NEGATIONS = listed("not no never nobody nothing none isn't wasn't aren't weren't doesn't don't didn't")
_VERBS = _AUX | listed(
    """lies stands flows takes took lives lived works worked runs ran holds held makes made gives gave plays played
    belongs belonged comes came owns owned keeps kept sells sold serves served begins began ends ended"""
)


class Triple(NamedTuple):
    """One statement; ``relation`` in lower case, names as written."""

    subject: str
    relation: str
    object: str


def triples(text: str) -> list[Triple]:
    """Statements of simple clauses, in order, each once.

    ``"Ada Brook is the mentor of Ben Marsh. She lives in Leeds."`` gives (Ada Brook, mentor of, Ben Marsh) and
    (Ada Brook, lives in, Leeds). In a dialogue line ``"Ada: I live in Leeds"`` the speaker is "I".

    Raises:
        BadInput: something else than text.
    """
    if not isinstance(text, str):
        raise BadInput(f"the rules read text, got {type(text).__name__}")
    found: dict[Triple, None] = {}
    last = speaker = ""
    before = 0
    for start, end in sentence_spans(text):
        speaker = "" if "\n" in text[before:start] else speaker
        sentence = _Sentence(text[start:end], last, speaker)
        found.update(dict.fromkeys(sentence.triples()))
        last, speaker, before = sentence.subject or last, sentence.speaker, end
    return list(found)


@dataclass
class _Subject:
    name: str
    relation: str  # "mentor" in "Ada's mentor is ..."; empty for a plain subject
    after: int  # position of the first word behind it


class _Sentence:
    """One sentence: its words, the names in it, the subject that pronouns stand for and the speaker that is "I"."""

    def __init__(self, text: str, subject: str, speaker: str):
        self.text, self.subject, self.speaker = text, subject, speaker
        self.words = words(text)
        found = runs(text, self.words, frozenset({0}))
        self.run_at: dict[int, Run] = {run.first: run for run in found}
        self.run_to: dict[int, Run] = {run.last: run for run in found}

    def triples(self) -> Iterator[Triple]:
        if len(self.words) > MAX_WORDS or self.text.endswith("?"):
            return
        at = self._lead(self._speaker())
        while at < len(self.words):
            subject = self._subject(at)
            if subject is None:
                at = self._skip(at)
                continue
            self.subject = subject.name
            at = subject.after
            while at < len(self.words):
                made, at = self._clause(subject, at)
                yield from made
                if not self._continues(at):
                    break
                subject, at = _Subject(subject.name, "", at + 1), at + 1

    def _speaker(self) -> int:
        """Position behind "Ada:" at the start of a dialogue line, whose speaker is "I"."""
        run = self.run_at.get(0)
        if run is None or self._low(run.last + 1) != ":":
            return 0
        self.speaker = self.subject = run.text
        return run.last + 2

    def _lead(self, at: int) -> int:
        """Position behind "After four interviews": of the first name that no preposition or article governs."""
        if self._low(at) not in _PREPOSITIONS:
            return at
        for first, run in self.run_at.items():
            free = self._low(first - 1) not in _PREPOSITIONS | _ARTICLES if first > at else False
            if free and self._low(run.last + 1) not in _PREPOSITIONS and self._low(first - 1) not in _ENDS:
                return first
        return at

    def _low(self, at: int) -> str:
        return self.words[at].low if at < len(self.words) else ""

    def _skip(self, at: int) -> int:
        """Position of the next clause: behind the next mark or conjunction."""
        while at < len(self.words) and self.words[at].is_word and self._low(at) not in _ENDS:
            at += 1
        return at + 1

    # -- subjects -----------------------------------------------------------------------------------------------------

    def _subject(self, at: int) -> _Subject | None:
        low = self._low(at)
        if low in _SAME and self.subject:
            return _Subject(self.subject, "", at + 1)
        if low == "i" and self.speaker:
            return _Subject(self.speaker, "", at + 1)
        if low == "who":
            before = self.run_to.get(at - 2 if self._low(at - 1) == "," else at - 1)
            return _Subject(before.text, "", at + 1) if before else None
        owner = self.subject if low in _OWN else self.speaker if low == "my" else ""
        if owner:
            return self._owned(owner, at + 1)
        if low in ("the", "a", "an"):
            return self._described(at)
        run = self.run_at.get(at)
        if run is None or run.text.lower() in CALENDAR:
            return None
        if self._low(run.last).endswith("'s"):
            return self._owned(run.text, run.last + 1)
        return _Subject(run.text, "", run.last + 1)

    def _owned(self, owner: str, at: int) -> _Subject | None:
        """ "Ada's oldest friend is ...": up to three small words before a form of "be" or another verb."""
        for after in range(at + 1, min(at + 4, len(self.words))):
            if self._low(after) in _BE:
                return _Subject(owner, " ".join(w.low for w in self.words[at:after]), after)
        return None

    def _described(self, at: int) -> _Subject | None:
        """ "The mentor of Ada is ..." and "the old mill stands ..."."""
        run = self.run_at.get(at + 1)
        if run is not None:  # "the Amber Fair", "the Thames"
            return _Subject(run.text, "", run.last + 1)
        for after in range(at + 2, min(at + 6, len(self.words))):
            low = self._low(after)
            run = self.run_at.get(after + 1)
            if low == "of" and run is not None and self._low(run.last + 1) in _BE:
                return _Subject(run.text, " ".join(w.low for w in self.words[at + 1 : after]), run.last + 1)
            if low in _VERBS:
                named = self.run_to.get(after - 1)  # "the river Ouse flows"
                said = named.text if named else " ".join(w.text for w in self.words[at + 1 : after])
                return _Subject(said, "", after)
            if not self.words[after].is_word or low in _PREPOSITIONS or low in _ENDS:
                return None
        return None

    def _continues(self, at: int) -> bool:
        """Whether "and works ..." or "but lives ..." goes on with the same subject."""
        if self._low(at) not in ("and", "but") or at + 1 >= len(self.words):
            return False
        low = self._low(at + 1)
        return at + 1 not in self.run_at and low not in _SAME | _OWN | _ARTICLES | _PREPOSITIONS | {"i", "my"}

    # -- what is said about them --------------------------------------------------------------------------------------

    def _clause(self, subject: _Subject, at: int) -> tuple[list[Triple], int]:
        """The triples of one clause whose verb stands at ``at``, and the position behind the clause."""
        if self._low(at) == "," and self._low(at + 1) in ("who", "the", "a", "an"):
            return self._aside(subject, at + 1)
        if self._low(at) == "who":
            at += 1
        end = self._clause_end(at)
        body = range(at, end)
        if len(body) < 2 or any(self._low(i) in _NEGATIONS for i in body):
            return [], end
        if subject.relation:
            lead = f" {self._low(at + 1)}" if self._low(at + 1) in _PREPOSITIONS else ""
            thing = self._thing(at + 1 + bool(lead), end)
            return ([Triple(subject.name, subject.relation + lead, thing)] if thing else []), end
        verb, at = self._verb(at, end)
        return (self._said(subject.name, verb, at, end) if verb else []), end

    def _aside(self, subject: _Subject, at: int) -> tuple[list[Triple], int]:
        """ ", the mentor of Ben," and ", who plays the flute,": said about the subject, then the sentence goes on."""
        end = self._clause_end(at + 1)
        if self._low(at) == "who":
            verb, first = self._verb(at + 1, end)
            made = self._said(subject.name, verb, first, end) if verb else []
        else:
            made = self._said(subject.name, "is", at, end)
        if self._low(end) != ",":
            return made, end
        rest, end = self._clause(_Subject(subject.name, "", end + 1), end + 1)
        return made + rest, end

    def _clause_end(self, at: int) -> int:
        while at < len(self.words):
            if at in self.run_at:  # a name may hold what would end a clause
                at = self.run_at[at].last + 1
                continue
            if self._low(at) in _ENDS or (not self.words[at].is_word and self.words[at].text not in "'’\"“”"):
                return at
            at += 1
        return at

    def _verb(self, at: int, end: int) -> tuple[str, int]:
        """The verb's words and the position behind them; "" where none can be told."""
        verb: list[str] = []
        while at < end and (self._low(at) in _AUX or self._low(at) in _ADVERBS or self._low(at).endswith("ly")):
            if self._low(at) in _AUX:
                verb.append(self._low(at))
            at += 1
        low, following = self._low(at), self._low(at + 1)
        plain = at < end and at not in self.run_at and self.words[at].is_word
        if plain and low not in _ARTICLES and low not in _PREPOSITIONS:
            passive = (following in _PREPOSITIONS and following != "of") or (
                low.endswith(("ed", "en")) and at + 1 < end
            )
            full = not verb or verb[-1] not in _BE or passive
            if full:
                verb.append(low)
                at += 1
                if following in _PARTICLES and self._low(at + 1) in _PREPOSITIONS:  # "takes place in"
                    verb.append(following)
                    at += 1
                elif low in _TO_DO and following == "to" and at + 2 < end:  # "likes to eat"
                    verb += ["to", self._low(at + 1)]
                    at += 2
        return " ".join(verb), at

    def _said(self, name: str, verb: str, at: int, end: int) -> list[Triple]:
        """(name, verb, what follows it) and (name, verb + preposition, what follows that)."""
        made: list[Triple] = []
        cuts = [i for i in range(at, end) if self._low(i) in _PREPOSITIONS and not self._inside_name(i)]
        first = self._thing(at, cuts[0] if cuts else end)
        copula = verb.split()[-1] in _BE
        if first and not (copula and cuts and self._low(cuts[0]) == "of"):
            made.append(Triple(name, verb, first))
        for cut, stop in zip(cuts, [*cuts[1:], end]):
            thing = self._thing(cut + 1, stop)
            if not thing or (self._low(cut) == "of" and not (cut == cuts[0] and copula == bool(first))):
                continue  # "of" belongs to the noun before it, but for "is the mentor of" and "consists of"
            lead = first.lower() if copula and first else verb
            made.append(Triple(name, f"{lead} {self._low(cut)}", thing))
        return made

    def _inside_name(self, at: int) -> bool:
        return any(run.first < at <= run.last for run in self.run_at.values())

    def _thing(self, start: int, end: int) -> str:
        """A name or a few words without articles; "" where there is nothing or too much."""
        while start < end and (self._low(start) in _ARTICLES or self._low(start) in _ADVERBS):
            start += 1
        while end > start and not self.words[end - 1].is_word:
            end -= 1
        if not 0 < end - start <= MAX_OBJECT:
            return ""
        run = self.run_to.get(end - 1)
        if run is not None and start <= run.first <= start + 1:  # a name, or "the company Korex"
            return run.text
        first, last = self.words[start], self.words[end - 1]
        return " ".join(self.text[first.start : last.end].split())
