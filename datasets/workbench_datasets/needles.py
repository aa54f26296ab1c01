"""Needles in a haystack of growing length, on FactStream's alphabet: one question about one fact, told long ago.

The shape of RULER's S-NIAH (Hsieh et al. 2024, arXiv 2404.06654) without a language model: three haystacks from an easy
one to one full of other facts, any length, the needle at a chosen depth. Wording and alphabet are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workbench_datasets._checks import between, whole
from workbench_datasets.fact_stream import KEYS, QUESTION_TOKENS, Plan, build, check
from workbench_datasets.streams import Streams

__all__ = ["HAYSTACKS", "needles", "needles_by_length"]

#: "repeat": one phrase of 8 fillers over and over; "zipf": random fillers; "facts": random fillers, and a fact about
#: another key in every 16 tokens (of longer streams in every 1/128).
HAYSTACKS = ("repeat", "zipf", "facts")
_TOKENS_A_FACT = 16


def needles(
    n: int,
    *,
    length: int = 1024,
    depth: tuple[float, float] = (0.0, 1.0),
    haystack: str = "zipf",
    seed: int = 0,
    split: str = "test",
) -> Streams:
    """``n`` sequences of ``length`` tokens with one question at the end about one fact.

    Args:
        depth: the needle stands between these shares of the stretch before the question (0: right after bos; 1: right
            before the question); with the haystack "facts" it is the fact nearest to a place drawn from there.
        haystack: one of :data:`HAYSTACKS`.

    Columns as of ``fact_stream``; ``category`` is the haystack; chance is 1/128. Raises ValueError for a depth outside
    0..1 or in the wrong order, another haystack, or a length below 20.

    >>> pool = needles(4, length=64, depth=(0, 0.5))
    >>> pool.categories, bool((pool.distance.max(1) > 28).all())
    (('zipf',), True)
    """
    whole("length", length, _TOKENS_A_FACT + QUESTION_TOKENS)
    if haystack not in HAYSTACKS:
        raise ValueError(f"haystack={haystack!r}: expected one of {', '.join(HAYSTACKS)}")
    if not isinstance(depth, Sequence) or len(depth) != 2:
        raise ValueError(f"depth={depth!r}: expected two shares, (0.5, 0.5) for the middle")
    low, high = (between("depth", value) for value in depth)
    if low > high:
        raise ValueError(f"depth={depth}: expected (shallowest, deepest), the smaller share first")
    plan = _full_of_facts(length) if haystack == "facts" else _lone(length, haystack)
    plan = replace(plan, depth=(low, high))
    check(plan)
    pool = build(f"needles-{haystack}", plan, n, seed, split)
    return replace(pool, categories=(haystack,))


def _lone(length: int, haystack: str) -> Plan:
    return Plan(length, 1, 1, "uniform", length, None, 1, 0, 0.0, 0, False, haystack)


def _full_of_facts(length: int) -> Plan:
    """A fact in every stretch of 16 tokens, of more where the 128 keys would not suffice."""
    stretch = max(_TOKENS_A_FACT, -(-(length - QUESTION_TOKENS) // len(KEYS)))
    facts = (length - QUESTION_TOKENS) // stretch
    return Plan(length, facts, 1, "segment", stretch, None, 1, 0, 0.0, 0, False)


def needles_by_length(
    n: int, lengths: Sequence[int] = (256, 512, 1024, 2048), **settings: object
) -> dict[int, Streams]:
    """``n`` sequences of every length, with the same settings."""
    if not isinstance(lengths, Sequence) or not lengths:
        raise ValueError(f"lengths={lengths!r}: expected one or more numbers of tokens, (256, 512) say")
    return {length: needles(n, length=length, **settings) for length in lengths}  # type: ignore[arg-type]
