"""FactStream: facts ``key value`` strewn among fillers, questions at the end; the house's probe of a long memory.

The specification is ours and shared by several papers (Titans, HMT, Synaptic Resonance, and more), so
that their results agree. Ids: 0 pad, 1 bos, 2 fact, 3 question, 4 answer, 5 topic, then 128 keys, 128 values, 16
topics, and 234 fillers to a vocabulary of 512.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench_datasets._checks import between, whole
from workbench_datasets.streams import PAD, Streams, blank, drawn, generator, in_blocks

__all__ = ["FILLERS", "KEYS", "TOPICS", "VALUES", "VOCABULARY", "fact_stream"]

BOS, FACT, QUESTION, ANSWER, TOPIC = 1, 2, 3, 4, 5
VOCABULARY = 512
KEYS = range(6, 134)
VALUES = range(134, 262)
TOPICS = range(262, 278)
FILLERS = range(278, VOCABULARY)
PLACEMENTS = ("uniform", "segment")
QUESTION_TOKENS = 4  # question, key, answer, and the filler behind it
assert PAD not in (BOS, FACT, QUESTION, ANSWER, TOPIC)


@dataclass(frozen=True)
class Plan:
    """Settings of a pool; :func:`fact_stream` documents and checks them."""

    length: int
    facts: int
    queries: int
    placement: str
    segment: int
    segments: tuple[int, ...] | None
    per_segment: int
    min_gap: int
    distractor_ratio: float
    topics: int
    overwrite: bool
    haystack: str = "zipf"
    depth: tuple[float, float] | None = None  # needles: where the asked fact stands, as shares of the prefix

    @property
    def head(self) -> int:
        """Tokens before the prefix: bos, and the topic that is asked about."""
        return 3 if self.topics else 1

    @property
    def block(self) -> int:
        """Tokens of a fact: mark, key, value; with topics ``5 topic`` before them."""
        return 5 if self.topics else 3

    @property
    def end(self) -> int:
        """Where the questions begin."""
        return self.length - QUESTION_TOKENS * self.queries

    @property
    def distractors(self) -> int:
        return round(self.distractor_ratio * self.facts)

    @property
    def askable(self) -> int:
        """Different keys that may be asked for."""
        relevant = self.facts - self.distractors
        return (relevant + 1) // 2 if self.overwrite else relevant

    def regions(self) -> list[tuple[int, int]]:
        """(begin, end) of the stretches that may hold facts."""
        if self.depth is not None and self.facts == 1:
            first, last = self.at_depth(self.depth[0]), self.at_depth(self.depth[1])
            return [(first, last + self.block)]
        if self.placement == "uniform":
            return [(self.head, self.end)]
        whole_ones = self.end // self.segment
        chosen = range(whole_ones) if self.segments is None else self.segments
        return [(max(self.head, s * self.segment), (s + 1) * self.segment) for s in chosen]

    def at_depth(self, depth: float) -> int:
        """Where a fact begins at a depth from 0 (first of the prefix) to 1 (right before the questions)."""
        return self.head + int(depth * (self.end - self.block - self.head))

    def most(self, region: tuple[int, int]) -> int:
        """Facts that a stretch may hold."""
        room = (region[1] - region[0] + self.min_gap) // (self.block + self.min_gap)
        return room if self.placement == "uniform" else min(room, self.per_segment)


def fact_stream(
    n: int,
    *,
    length: int = 256,
    facts: int = 8,
    queries: int = 4,
    placement: str = "uniform",
    segment: int = 32,
    segments: Sequence[int] | None = None,
    per_segment: int = 2,
    min_gap: int = 0,
    distractor_ratio: float = 0.0,
    topics: int = 0,
    overwrite: bool = False,
    seed: int = 0,
    split: str = "train",
) -> Streams:
    """``n`` sequences of ``length`` tokens: bos, facts ``2 key value`` among fillers, questions ``3 key 4`` filler.

    The target, the value, stands at the position of the 4. Fillers are independent and Zipf distributed (s = 1) over
    their ids. Values are drawn with replacement; different facts of a sequence may share one.

    Args:
        facts, queries: how many of each; questions stand at the end, each about another key, in random order.
        placement: "uniform" over the prefix (every arrangement without overlap is equally likely), or "segment": in
            whole stretches of ``segment`` tokens before the questions, at most ``per_segment`` facts in each, in the
            given ``segments`` (numbers from 0; default: all).
        min_gap: fewest tokens between two facts of a stretch.
        distractor_ratio: share of the facts that are never asked about. With topics they carry another topic and the
            keys of asked facts with other values, so that they interfere.
        topics: 0, or how many of the 16 topics are used. The sequence then opens with ``5 topic``, each fact is told as
            ``5 topic_i 2 key value``, and only the opening topic is asked about.
        overwrite: facts retell keys, so that each key of the (facts + 1) // 2 there are is told at least once; the
            latest value counts.
        split: "train" and "test" never share a sequence's random numbers.

    ``distance`` is the position of the question mark minus that of the (latest) fact mark; ``category`` is "once" or
    "overwritten"; chance is 1/128.

    Raises ValueError that names the argument for settings that do not fit.

    >>> pool = fact_stream(3, length=64, facts=4, queries=2, seed=1)
    >>> pool.ids.shape, int((pool.targets != -100).sum())
    ((3, 64), 6)
    """
    if segments is not None and (not isinstance(segments, Sequence) or placement != "segment"):
        raise ValueError(f"segments={segments!r}: expected segment numbers, (0, 2) say, with placement='segment'")
    held = None if segments is None else tuple(segments)
    plan = Plan(length, facts, queries, placement, segment, held, per_segment, min_gap, distractor_ratio, topics,
                overwrite)  # fmt: skip
    check(plan)
    return build("fact-stream", plan, n, seed, split)


def check(plan: Plan) -> None:
    """ValueError for the first setting that is out of range or does not fit."""
    whole("facts", plan.facts)
    whole("queries", plan.queries)
    whole("min_gap", plan.min_gap, 0)
    between("distractor_ratio", plan.distractor_ratio)
    if plan.topics != 0:
        whole("topics", plan.topics, 2, len(TOPICS))
    whole("length", plan.length, 1)
    _check_keys(plan)
    if plan.placement not in PLACEMENTS:
        raise ValueError(f"placement={plan.placement!r}: expected one of {', '.join(PLACEMENTS)}")
    if plan.placement == "segment":
        _check_segments(plan)
    room = sum(max(0, plan.most(region)) for region in plan.regions())
    if plan.facts > room:
        raise ValueError(
            f"facts={plan.facts}: {plan.length} tokens with {plan.queries} queries have room for {room} "
            f"({plan.block} tokens each, min_gap={plan.min_gap}, placement {plan.placement!r}); make length larger"
        )


def _check_keys(plan: Plan) -> None:
    if plan.queries > plan.askable:
        raise ValueError(
            f"queries={plan.queries}: {plan.facts} facts have {plan.askable} keys to ask for (each is asked once; "
            f"distractor_ratio={plan.distractor_ratio}, overwrite={plan.overwrite})"
        )
    if plan.topics and plan.distractors > plan.askable * (plan.topics - 1):
        raise ValueError(
            f"{plan.distractors} distractors: {plan.askable} asked keys under {plan.topics - 1} other topics make only "
            f"{plan.askable * (plan.topics - 1)} different ones; lower distractor_ratio or raise topics"
        )
    keys = plan.askable + (0 if plan.topics else plan.distractors)
    if keys > len(KEYS):
        raise ValueError(f"facts={plan.facts}: {keys} different keys are needed, there are {len(KEYS)}")


def _check_segments(plan: Plan) -> None:
    whole("segment", plan.segment, plan.block)
    whole("per_segment", plan.per_segment)
    there = plan.end // plan.segment
    for number in plan.segments or ():
        whole("segments", number, 0, max(0, there - 1))
    if plan.segments is not None and (not plan.segments or len(set(plan.segments)) < len(plan.segments)):
        raise ValueError(f"segments={plan.segments}: expected different segment numbers from 0 to {there - 1}")


def build(name: str, plan: Plan, n: int, seed: int, split: str) -> Streams:
    """Sequences of a checked plan."""
    whole("n", n)
    rng = generator(name, seed, split, plan.length, plan.facts, plan.queries, plan.topics, int(plan.overwrite))
    return in_blocks(n, max(plan.length, len(KEYS)), lambda rows: _made(rng, plan, rows))


def _made(rng: np.random.Generator, plan: Plan, rows: int) -> Streams:
    tables = blank(rows, plan.length)
    ids = tables["ids"]
    ids[:] = _fillers(rng, plan, rows)
    ids[:, 0] = BOS
    starts = np.sort(_starts(rng, plan, rows), 1)
    owner = _owners(rng, plan, rows)
    keys, values = _keys(rng, plan, rows, owner), _values(rng, plan, rows, owner)
    marks = starts + plan.block - 3
    for offset, tokens in enumerate((FACT, keys, values)):
        np.put_along_axis(ids, marks + offset, np.broadcast_to(np.asarray(tokens), marks.shape), 1)
    if plan.topics:
        _write_topics(rng, plan, ids, starts, owner)
    _write_questions(rng, plan, tables, owner, marks, keys, values)
    return Streams(**tables, categories=("once", "overwritten"), vocabulary=VOCABULARY, chance=1 / len(VALUES))


def _fillers(rng: np.random.Generator, plan: Plan, rows: int) -> np.ndarray:
    if plan.haystack == "repeat":  # one short phrase over and over, another one in every sequence
        phrase = drawn(rng, rows, 8, len(FILLERS))
        return FILLERS.start + np.tile(phrase, (1, -(-plan.length // 8)))[:, : plan.length]
    weight = 1 / np.arange(1, len(FILLERS) + 1)
    edges = np.cumsum(weight / weight.sum())
    edges[-1] = 1.0
    return FILLERS.start + np.searchsorted(edges, rng.random((rows, plan.length)), side="right")


def _starts(rng: np.random.Generator, plan: Plan, rows: int) -> np.ndarray:
    """Where facts begin, (rows, facts): how many each stretch holds, then where in it."""
    regions = plan.regions()
    counts = _counts(rng, rows, plan.facts, [max(0, plan.most(region)) for region in regions])
    starts = np.empty((rows, plan.facts), np.int32)
    before = np.zeros(rows, np.int64)
    for column, region in enumerate(regions):
        for count in np.unique(counts[:, column]):
            if not count:
                continue
            here = np.flatnonzero(counts[:, column] == count)
            spread = _spread(rng, len(here), int(count), region, plan)
            starts[here[:, None], before[here][:, None] + np.arange(count)] = spread
        before += counts[:, column]
    return starts


def _counts(rng: np.random.Generator, rows: int, facts: int, most: list[int]) -> np.ndarray:
    """Facts of every stretch, (rows, stretches): facts take free seats at random."""
    if len(most) == 1:
        return np.full((rows, 1), facts)
    seats = np.repeat(np.arange(len(most)), most)
    taken = seats[drawn(rng, rows, facts, len(seats))]
    return np.stack([(taken == column).sum(1) for column in range(len(most))], 1)


def _spread(rng: np.random.Generator, rows: int, count: int, region: tuple[int, int], plan: Plan) -> np.ndarray:
    """Starts of ``count`` facts in a stretch, every arrangement without overlap equally likely (stars and bars)."""
    unit = plan.block + plan.min_gap
    free = region[1] - region[0] - count * unit + plan.min_gap
    seats = np.sort(drawn(rng, rows, count, free + count), 1)
    return region[0] + seats + np.arange(count) * (unit - 1)


def _owners(rng: np.random.Generator, plan: Plan, rows: int) -> np.ndarray:
    """Which key each fact tells: 0..askable-1, then one number a distractor; (rows, facts) in the stream's order."""
    relevant = plan.facts - plan.distractors
    owner = np.tile(np.arange(plan.facts), (rows, 1))
    owner[:, plan.askable : relevant] = rng.integers(0, plan.askable, (rows, relevant - plan.askable))
    owner[:, relevant:] += plan.askable - relevant
    return rng.permuted(owner, axis=1)


def _keys(rng: np.random.Generator, plan: Plan, rows: int, owner: np.ndarray) -> np.ndarray:
    if not plan.topics:
        return KEYS.start + np.take_along_axis(drawn(rng, rows, plan.askable + plan.distractors, len(KEYS)), owner, 1)
    table = drawn(rng, rows, plan.askable, len(KEYS))
    return KEYS.start + np.take_along_axis(table, owner % plan.askable, 1)  # distractor d tells key d mod askable


def _values(rng: np.random.Generator, plan: Plan, rows: int, owner: np.ndarray) -> np.ndarray:
    """One value a fact; under topics those of a key differ, so that a distractor never tells the asked value."""
    values = rng.integers(0, len(VALUES), owner.shape)
    if plan.topics:
        asked = np.take_along_axis(_latest(owner, plan.askable, values), owner % plan.askable, 1)
        other = (asked + rng.integers(1, len(VALUES), owner.shape)) % len(VALUES)
        values = np.where(owner < plan.askable, values, other)
    return VALUES.start + values


def _latest(owner: np.ndarray, askable: int, what: np.ndarray) -> np.ndarray:
    """``what`` of the latest fact about every askable key, (rows, askable)."""
    found = np.zeros((len(owner), askable), what.dtype)
    rows = np.arange(len(owner))
    for column in range(owner.shape[1]):
        here = owner[:, column] < askable
        found[rows[here], owner[here, column]] = what[here, column]
    return found


def _write_topics(rng: np.random.Generator, plan: Plan, ids: np.ndarray, starts: np.ndarray, owner: np.ndarray) -> None:
    """The opening topic on asked facts; distractors of one key get different other topics."""
    topics = TOPICS.start + drawn(rng, len(ids), plan.topics, len(TOPICS))
    other = 1 + np.maximum(owner - plan.askable, 0) // plan.askable
    chosen = np.where(owner < plan.askable, 0, other)
    ids[:, 1], ids[:, 2] = TOPIC, topics[:, 0]
    np.put_along_axis(ids, starts, np.full_like(starts, TOPIC), 1)
    np.put_along_axis(ids, starts + 1, np.take_along_axis(topics, chosen, 1), 1)


def _write_questions(rng: np.random.Generator, plan: Plan, tables: dict[str, np.ndarray], owner: np.ndarray,
                     marks: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:  # fmt: skip
    asked = _asked(rng, plan, owner, marks)
    of_asked = [np.take_along_axis(_latest(owner, plan.askable, what), asked, 1) for what in (keys, values, marks)]
    at = plan.end + QUESTION_TOKENS * np.arange(plan.queries)
    for offset, tokens in enumerate((QUESTION, of_asked[0], ANSWER)):
        tables["ids"][:, at + offset] = tokens
    told = (owner[:, :, None] == asked[:, None, :]).sum(1)
    tables["targets"][:, at + 2] = of_asked[1]
    tables["distance"][:, at + 2] = at - of_asked[2]
    tables["category"][:, at + 2] = (told > 1).astype(np.int16)


def _asked(rng: np.random.Generator, plan: Plan, owner: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Which keys are asked for, (rows, queries): any, or the one whose fact is nearest to a depth drawn at random."""
    if plan.depth is None:
        return drawn(rng, len(owner), plan.queries, plan.askable)
    first, last = plan.at_depth(plan.depth[0]), plan.at_depth(plan.depth[1])
    wanted = rng.integers(first, last + 1, (len(owner), 1))
    return np.take_along_axis(owner, np.abs(marks - wanted).argmin(1)[:, None], 1)
