"""Public-domain English novels as clean text: headers and footers stripped, two whole books held out of training."""

from __future__ import annotations

import re
import unicodedata

from workbench_datasets import registry

HELD_OUT = ("a-tale-of-two-cities", "sherlock-holmes")
SPLITS = ("train", "heldout", "all")
_QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "…": "...", "\ufeff": ""})


def names(split: str = "all") -> tuple[str, ...]:
    """The books of a split, by file stem; held-out books are never in training text of a shipped model."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    every = tuple(sorted(file.removesuffix(".txt") for file in registry.collection("books").files))
    return tuple(name for name in every if split == "all" or (name in HELD_OUT) == (split == "heldout"))


def clean(raw: str) -> str:
    """Text between the start and end marks, with plain quotes and line ends, without emphasis marks.

    Paragraphs are single lines, separated by one empty line. A text without marks is taken whole.
    """
    text = raw.replace("\r\n", "\n").replace("\r", "\n")
    start = re.search(r"^\*\*\* ?START OF (?:THIS|THE) PROJECT GUTENBERG.*$", text, re.M)
    text = text[start.end() :] if start else text
    end = re.search(r"^(?:\*\*\* ?END OF|End of (?:the |this )?Project Gutenberg)", text, re.M)
    text = text[: end.start()] if end else text
    text = re.sub(r"\[Illustration[^\]]*\]", "", unicodedata.normalize("NFC", text).translate(_QUOTES)).replace("_", "")
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    kept = [
        part
        for part in parts
        if part and not re.match(r"(Produced by|E-text prepared|Transcrib|An Anonymous|\*)", part)
    ]
    kept = [part for part in kept if "Gutenberg" not in part and "{pg" not in part]
    return "\n\n".join(kept) + "\n"


def read(name: str, *, download: bool = False) -> str:
    """One clean book; a file that is absent says which file goes where (``FileNotFoundError``)."""
    if name not in names():
        raise ValueError(f"name={name!r}: expected one of {', '.join(names())}")
    path = registry.path("books", f"{name}.txt", download=download)
    return clean(path.read_bytes().decode("utf-8", errors="replace"))


def load(split: str = "train", *, download: bool = False) -> dict[str, str]:
    """Clean books by name: ``train`` (11), ``heldout`` (2) or ``all``."""
    return {name: read(name, download=download) for name in names(split)}


def paragraphs(texts: dict[str, str], *, words: tuple[int, int] = (12, 120)) -> list[str]:
    """Running prose of a word range, in book order; headings and tables of contents fall out."""
    low, high = words
    found = (part for text in texts.values() for part in text.split("\n\n"))
    return [part for part in found if low <= len(part.split()) <= high and part[-1:] in '.!?"']
