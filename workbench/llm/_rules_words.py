"""Words, sentences and runs of capitalised words: what the rules are built of. Linear in the length of the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple


def listed(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


STOP = listed(
    """a about above after again against ago all almost alone along already also although always am among an and another
    any anybody anyone anything are aren't around as ask asked at away back be became because become been before began
    behind being below best better between beyond both but by came can can't cannot come could couldn't did didn't do
    does doesn't doing don't done down during each either else enough even ever every everybody everyone everything few
    for from further gave get gets getting give given go goes going gone good got great had hadn't has hasn't have
    haven't having he he'd he'll he's hello her here here's hers herself hey hi him himself his how how's however i i'd
    i'll i'm i've if in indeed instead into is isn't it it'd it'll it's its itself just keep kept know knew known last
    later least less let let's like likely little look looking lot made make makes making many may maybe me mean might
    mine more most much must my myself near nearly need never new next no nobody none nor not nothing now of off often
    oh ok okay on once one only onto or other others our ours ourselves out over own per perhaps please pretty put quite
    rather really right said same saw say says see seem seemed seems seen shall she she'd she'll she's should shouldn't
    since so some somebody someone something sometimes soon still such sure take taken tell than thank thanks that
    that's the their theirs them themselves then there there's these they they'd they'll they're they've thing things
    think this those though through thus till to together told too took toward towards tried try trying under until up
    upon us use used using usually very via want wanted was wasn't way we we'd we'll we're we've well went were weren't
    what what's when when's where where's whether which while who who's whom whose why why's will with within without
    won't would wouldn't wow yes yet you you'd you'll you're you've your yours yourself yourselves"""
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
          "december")  # fmt: skip
CALENDAR = frozenset(DAYS) | frozenset(MONTHS) | {month[:3] for month in MONTHS}
TITLES = listed("mr mrs ms dr prof sir st rev hon capt col gen lt sgt mme jr sr")
_NUMBERED = listed("no nr vol pp fig eq ch sec")
_SHORT = listed("vs etc cf ca approx inc ltd co corp dept est al")
_LINKS = listed("of de da di del della van von der den la le du al bin ibn ter y")

# Every alternative starts with a character that nothing else takes, so a match never has to be given back.
_TOKEN = re.compile(r"[^\W_]+(?:(?:['’\-&]|\.(?=\d))[^\W_]+)*+|[.!?…]+|[^\w\s]|_")
_PARAGRAPH = re.compile(r"\n[^\S\n]*+\n")
MAX_NAME = 10
_CLOSERS = "\"'”’)]}»"


class Word(NamedTuple):
    """One word or mark: ``text`` as written, ``low`` in lower case, ``start`` and ``end`` in the text."""

    text: str
    low: str
    start: int
    end: int

    @property
    def is_word(self) -> bool:
        return self.text[0].isalnum()

    @property
    def is_capital(self) -> bool:
        return self.text[0].isupper()


def words(text: str) -> list[Word]:
    """Words (inner apostrophes, hyphens and decimal points kept) and marks, in order."""
    return [
        Word(found[0], found[0].lower().replace("’", "'"), found.start(), found.end())
        for found in _TOKEN.finditer(text)
    ]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of every sentence, without the white space around it.

    A sentence ends at . ! ? or … before white space, not after an initial ("J. Bach") or a usual abbreviation, and
    at every empty line and line break that a list or a dialogue makes.
    """
    spans: list[tuple[int, int]] = []
    begin, found = 0, words(text)
    for at, word in enumerate(found):
        following = found[at + 1] if at + 1 < len(found) else None
        end = _sentence_end(text, found, at)
        if end is None and following is not None and _breaks(text, word.end, following.start):
            end = word.end
        if end is not None and end > begin:
            spans.append((begin, end))
            begin = end
    spans.append((begin, len(text)))
    return [span for span in (_trimmed(text, *span) for span in spans) if span[0] < span[1]]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _breaks(text: str, start: int, end: int) -> bool:
    """Whether the gap holds a line break after which a new line of a list, dialogue or paragraph begins."""
    gap = text[start:end]
    if "\n" not in gap:
        return False
    return bool(_PARAGRAPH.search(gap)) or text[end].isupper() or not text[end].isalnum() or text[end].isdigit()


def _sentence_end(text: str, found: list[Word], at: int) -> int | None:
    word = found[at]
    if word.text[0] not in ".!?…":
        return None
    end = word.end
    while end < len(text) and text[end] in _CLOSERS:
        end += 1
    if end < len(text) and not text[end].isspace():
        return None
    if word.text == "." and at and found[at - 1].end == word.start and _abbreviates(found, at):
        return None
    return end


def _abbreviates(found: list[Word], at: int) -> bool:
    """Whether the point at ``at`` belongs to the word before it: an initial, a title, "e.g.", "no. 5"."""
    before = found[at - 1]
    behind = at + 1
    while behind < len(found) and found[behind].text in _CLOSERS:
        behind += 1
    if behind == len(found):
        return False
    following = found[behind]
    dotted = at > 1 and found[at - 2].text == "." and found[at - 2].end == before.start  # e.g., p.m.
    if len(before.text) == 1 and before.is_capital and before.low != "i":
        return following.is_capital
    if before.low in _NUMBERED:
        return following.text[0].isdigit()
    return before.low in TITLES or ((before.low in _SHORT or dotted) and not following.is_capital)


@dataclass(frozen=True)
class Run:
    """Consecutive capitalised words, at positions ``first`` to ``last`` (inclusive) of a list of words."""

    text: str
    first: int
    last: int
    opens: bool  # stands at the start of a sentence

    @property
    def size(self) -> int:
        return self.last - self.first + 1


def runs(text: str, found: list[Word], starts: frozenset[int]) -> list[Run]:
    """Capitalised runs, joined over "of", "van" and the like; function words and adverbs at a start are no part of it.

    Longer runs than ``MAX_NAME`` words are headings and left out.

    ``starts`` are the character positions at which sentences begin.
    """
    made: list[Run] = []
    at = 0
    while at < len(found):
        word = found[at]  # "On Saturday Ada left": a day begins no name
        if not _names(word) or word.low in DAYS or (_by_grammar(word) and _opens(found, at, starts)):
            at += 1
            continue
        last = at
        while (following := _next_part(text, found, last)) is not None:
            last = following
        if last - at >= MAX_NAME:
            at = last + 1
            continue
        opens = _opens(found, at, starts)
        run = text[found[at].start : found[last].end]
        made.append(Run(" ".join(_without_owner(run).split()), at, last, opens))
        at = last + 1
    return made


def _by_grammar(word: Word) -> bool:
    """Whether a word that opens a sentence is likely capitalised for that alone."""
    return word.low in STOP or (word.low.endswith("ly") and len(word.low) > 4)


def _names(word: Word) -> bool:
    return word.is_capital and word.low not in ("i", "i'm", "i've", "i'd", "i'll", "ok")


def _without_owner(name: str) -> str:
    return name[:-2] if name.endswith(("'s", "’s")) else name


def _opens(found: list[Word], at: int, starts: frozenset[int]) -> bool:
    """Whether only marks (a quote, a dash, a bullet) stand between a sentence's start and this word."""
    while at and not found[at - 1].is_word and found[at].start not in starts and found[at - 1].text in "\"'“‘«([-–—*•_":
        at -= 1
    return found[at].start in starts or (at > 0 and found[at - 1].text in ('"', "“", "«", ":"))


def _next_part(text: str, found: list[Word], last: int) -> int | None:
    """Position of the word that continues a name, or None."""
    if found[last].low.endswith("'s"):
        return None
    at = last + 1
    initial = len(found[last].text) == 1 or found[last].low in TITLES
    if at < len(found) and initial and found[at].text == "." and found[at].start == found[last].end:
        at += 1
    link = at
    while link < len(found) and link < at + 2 and found[link].low in _LINKS and not found[link].is_capital:
        link += 1
    for candidate in (link, at):
        if candidate < len(found) and _names(found[candidate]) and _adjoin(text, found, last, candidate):
            return candidate
    return None


def _adjoin(text: str, found: list[Word], last: int, candidate: int) -> bool:
    """Whether nothing but blanks, links and an initial's point stand between two words."""
    between = text[found[last].end : found[candidate].start]
    return "\n" not in between and len(between) <= 24
