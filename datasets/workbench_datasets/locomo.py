"""LoCoMo-10: ten long dialogues of two people over many sessions, with questions and the turns that answer them.

Maharana et al. 2024 (Snap Research), CC BY-NC 4.0: used where it lies, never shipped. The file is not clean: some
evidence entries hold several ids or none, and adversarial questions carry the *trap* instead of an answer. Both are
kept visible here (``Locomo.evidence_report``, ``LocomoQuestion.trap``) instead of being smoothed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench_datasets import registry
from workbench_datasets._json_files import read_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CATEGORIES", "EvidenceNote", "Locomo", "LocomoDialogue", "LocomoQuestion", "LocomoTurn", "load"]

#: The file's numbers and what they mean.
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
NEVER_SAID = "not mentioned"
_ID = re.compile(r"D:?\s*(\d+)\s*:\s*(\d+)")


@dataclass(frozen=True)
class LocomoTurn:
    """One turn. ``key`` is its id in the dialogue ("D2:8": session 2, turn 8), ``time`` that of its session in seconds
    since 1970 (the file has no zone; UTC is taken), ``caption`` what an attached photo shows."""

    key: str
    session: int
    time: float
    speaker: str
    text: str
    caption: str | None = None

    @property
    def line(self) -> str:
        """Speaker, text and, where there is one, the photo's caption: what a memory of text can keep of the turn."""
        photo = f" [shows a photo: {self.caption}]" if self.caption else ""
        return f"{self.speaker}: {self.text}{photo}"


@dataclass(frozen=True)
class LocomoQuestion:
    """One question. ``answer`` is "not mentioned" for adversarial ones; ``trap`` is the answer they lure into.

    ``evidence`` holds turn ids that exist, each once, in the file's order; it is empty for a few questions.
    """

    dialogue: str
    text: str
    answer: str
    evidence: tuple[str, ...]
    category: int
    trap: str | None = None

    @property
    def kind(self) -> str:
        return CATEGORIES[self.category]


@dataclass(frozen=True)
class EvidenceNote:
    """An evidence entry that was not one plain existing id: what was read from it and what was dropped."""

    dialogue: str
    question: str
    entry: str
    read: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class LocomoDialogue:
    """One dialogue: two speakers, its turns in order and its questions."""

    name: str
    speakers: tuple[str, str]
    turns: tuple[LocomoTurn, ...]
    questions: tuple[LocomoQuestion, ...]

    @property
    def sessions(self) -> int:
        return len({turn.session for turn in self.turns})

    @property
    def words(self) -> int:
        return sum(len(turn.text.split()) for turn in self.turns)


@dataclass(frozen=True)
class Locomo:
    """All dialogues; iterating gives them one by one. ``odd_evidence`` lists every entry that needed a reading."""

    dialogues: tuple[LocomoDialogue, ...]
    odd_evidence: tuple[EvidenceNote, ...]

    def __iter__(self) -> Iterator[LocomoDialogue]:
        return iter(self.dialogues)

    def __len__(self) -> int:
        return len(self.dialogues)

    @property
    def questions(self) -> list[LocomoQuestion]:
        return [question for dialogue in self.dialogues for question in dialogue.questions]

    def counts(self) -> pd.DataFrame:
        """One row a dialogue: sessions, turns, words, questions, and one column a category."""
        import pandas as pd

        rows = [
            {"dialogue": d.name, "sessions": d.sessions, "turns": len(d.turns), "words": d.words,
             "questions": len(d.questions),
             **{name: sum(q.category == number for q in d.questions) for number, name in CATEGORIES.items()}}
            for d in self.dialogues
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def evidence_report(self) -> pd.DataFrame:
        """Every evidence entry that was not one existing id: dialogue, question, entry, read, dropped."""
        import pandas as pd

        columns = ["dialogue", "question", "entry", "read", "dropped"]
        return pd.DataFrame([[getattr(note, name) for name in columns] for note in self.odd_evidence], columns=columns)


def load(path: str | Path | None = None, *, download: bool = False) -> Locomo:
    """The ten dialogues, from ``path`` or from where the registry finds the file.

    Raises ``DataMissing`` (which file goes where, and its source) or ``ValueError`` for a file of another form.
    """
    file = Path(path) if path is not None else registry.path("locomo", "locomo10.json", download=download)
    raw = read_json(file)
    odd: list[EvidenceNote] = []
    try:
        dialogues = tuple(_dialogue(entry, odd) for entry in raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not a LoCoMo file; {type(error).__name__} at {error}") from error
    return Locomo(dialogues, tuple(odd))


def _dialogue(entry: dict[str, Any], odd: list[EvidenceNote]) -> LocomoDialogue:
    name, talk = entry["sample_id"], entry["conversation"]
    numbers = sorted(int(key.split("_")[1]) for key in talk if re.fullmatch(r"session_\d+", key))
    turns = tuple(turn for number in numbers for turn in _turns(talk, number))
    known = {turn.key for turn in turns}
    questions = tuple(_question(name, item, known, odd) for item in entry["qa"])
    return LocomoDialogue(name, (talk["speaker_a"], talk["speaker_b"]), turns, questions)


def _turns(talk: dict[str, Any], number: int) -> Iterator[LocomoTurn]:
    time = session_time(talk[f"session_{number}_date_time"])
    for turn in talk[f"session_{number}"]:
        yield LocomoTurn(turn["dia_id"], number, time, turn["speaker"], turn["text"], turn.get("blip_caption"))


def session_time(written: str) -> float:
    """Seconds since 1970 UTC of "1:56 pm on 8 May, 2023"; ``ValueError`` for anything else."""
    try:
        return datetime.strptime(written.strip(), "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise ValueError(f"session date {written!r} is not of the form '1:56 pm on 8 May, 2023'") from error


def _question(dialogue: str, item: dict[str, Any], known: set[str], odd: list[EvidenceNote]) -> LocomoQuestion:
    category = item["category"]
    if category not in CATEGORIES:
        raise ValueError(f"{dialogue}: question category {category!r} is not one of {sorted(CATEGORIES)}")
    evidence: list[str] = []
    for entry in item["evidence"]:
        read, dropped = read_evidence(entry, known)
        evidence += read
        if read != (entry,):
            odd.append(EvidenceNote(dialogue, item["question"], entry, read, dropped))
    adversarial = category == 5
    answer = NEVER_SAID if adversarial else str(item["answer"])
    trap = item.get("adversarial_answer") if adversarial else None
    return LocomoQuestion(dialogue, item["question"], answer, tuple(dict.fromkeys(evidence)), category, trap)


def read_evidence(entry: str, known: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids in an evidence entry that exist, and what had to be dropped.

    Tolerant of several ids in one entry, a colon after the D and leading zeros. An entry without any id is dropped
    whole.

    >>> read_evidence("D8:6; D9:17", {"D8:6"})
    (('D8:6',), ('D9:17',))
    >>> read_evidence("D", {"D8:6"})
    ((), ('D',))
    """
    found = [f"D{int(session)}:{int(turn)}" for session, turn in _ID.findall(entry)]
    read = tuple(key for key in found if key in known)
    dropped = tuple(key for key in found if key not in known) if found else (entry,)
    return read, dropped
