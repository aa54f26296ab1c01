"""MemoryBank (Zhong, Guo, Gao, Ye, Wang 2023, arXiv 2305.10250): dated talk, summaries, a portrait, and forgetting.

Per user the store holds every exchange, a summary and an insight of each day, a global summary and a portrait.
Exchanges and daily summaries are *pieces*: they are retrieved by dense similarity, fade by R = exp(-t / (λ S)) and grow
stronger when they are recalled (section 2.3). The paper leaves open how R decides; see :data:`RULES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.stores import _memorybank_inspect as inspect_
from workbench.memory.stores._memorybank_curve import (
    RULES,
    checked_threshold,
    compounded,
    curves,
    eviction_order,
    forgetting_day,
    forgotten_now,
    keep_probability,
    known_rule,
    luck_of,
    retention,
)
from workbench.memory.stores._memorybank_days import Days
from workbench.memory.stores._memorybank_fading import Fading, begun_anew
from workbench.memory.stores._memorybank_mirror import PIECES, Mirror, noted, user_of, user_tag
from workbench.memory.stores._memorybank_parts import (
    REINFORCE,
    ROLE,
    UNITS,
    Turn,
    check_settings,
    date_of,
    open_store,
    summariser_of,
    told_as,
    user_name,
)
from workbench.memory.stores._memorybank_pieces import Found, SentenceIndex, split
from workbench.memory.stores._memorybank_prompt import Block, Prompt, compose
from workbench.memory.stores._memorybank_summaries import ByModel, Extractive, Summariser, stated_facts
from workbench.memory.stores.base import Reading, check_read, count_tokens

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from workbench.llm import ChatModel, Reader
    from workbench.memory.durable import Store

__all__ = [
    "PIECES", "RULES", "Block", "ByModel", "Extractive", "MemoryBank", "Prompt", "Turn", "checked_threshold", "compose",
    "compounded", "curves", "eviction_order", "forgetting_day", "forgotten_now", "keep_probability", "known_rule",
    "luck_of", "retention", "stated_facts", "told_as",
]  # fmt: skip


@MEMORIES.register("memorybank")
class MemoryBank(Fading):
    """A companion's memory that fades.

    Args:
        store: a store, a path, or None for one in memory.
        user: whose memory it is when no user is named.
        k: sentences (or pieces) that a query finds (6 in the authors' code).
        rule: how retention decides: "hazard" (default; alive at t with probability R(t), whatever the schedule),
            "sweep" (the structure of the published code: R(t) at every sweep anew), "threshold" (R < θ),
            "capacity" (lowest R out of a full store), "as_published_bug" (strength speeds forgetting up), "none".
        time_scale: λ, days per unit of strength (1 in the paper's formula; the code holds a 5).
        threshold: θ of the rule "threshold".
        capacity: largest number of pieces a user may have, None for no limit; joins any rule.
        increment: what a recall adds to S (1 in the paper).
        reinforce: "retrieved" (the paper), "used" (only pieces that share words with the answer, told by
            :meth:`used`), or "never".
        unit: what is compared with the query: the whole "piece" (the paper's text; vectors are the store's own) or
            every "sentence" of it (the authors' code; vectors are made again when a file is opened).
        glue: with sentences, characters up to which neighbours of one that was found are given back with it.
        recent: exchanges of the current talk in the prompt.
        summaries: whether a new day closes the one before (summaries, portrait) and sweeps.
        llm: who writes the summaries: "rules" (extraction, no model), a chat model or its name, or a ``Summariser``.
        role: the first block of the prompt.
        seed: of the luck of the random rules; the same seed, items and times forget the same pieces.
        encoder: of a store made here (a name or an encoder).

    A memory that is told times lives in them: without one, a question is asked at the latest moment it knows. One
    that never was goes by the store's clock. Time runs forwards: a moment before a user's latest memory is an error.
    """

    slug: ClassVar[str] = "memorybank"

    def __init__(
        self,
        store: Store | str | Path | None = None,
        *,
        user: str = "user",
        k: int = 6,
        rule: str = "hazard",
        time_scale: float = 1.0,
        threshold: float = 0.3,
        capacity: int | None = None,
        increment: float = 1.0,
        reinforce: str = "retrieved",
        unit: str = "piece",
        glue: int = 200,
        recent: int = 3,
        summaries: bool = True,
        llm: Any = "rules",
        role: str = ROLE,
        seed: int = 0,
        encoder: Any = None,
    ):
        check_settings(
            k=k, glue=glue, recent=recent, capacity=capacity, time_scale=time_scale, increment=increment, seed=seed,
            role=role,
        )  # fmt: skip
        if known_rule(rule) == "capacity" and capacity is None:
            raise BadInput("the rule 'capacity' needs a capacity: the largest number of pieces a user may have")
        for name, value, legal in (("reinforce", reinforce, REINFORCE), ("unit", unit, UNITS)):
            if value not in legal:
                raise BadInput(f"{name}={value!r} is not one of {', '.join(map(repr, legal))}")
        self.user, self.k, self.rule, self.time_scale = user_name(user), int(k), rule, float(time_scale)
        self.capacity = None if capacity is None else int(capacity)
        self.threshold, self.increment = checked_threshold(threshold), float(increment)
        self.reinforce, self.unit, self.glue, self.recent = reinforce, unit, int(glue), int(recent)
        self.summaries, self.role, self.seed = summaries, role, int(seed)
        self.summariser: Summariser = summariser_of(llm)
        self.store = open_store(store, encoder)
        self._days = Days(self.store, self.summariser)
        self._mirror = Mirror(self.store)
        self._numbers: dict[tuple[str, str], int] | None = None
        self._sentences: SentenceIndex | None = None

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, text: str, *, time: Any = None, key: str | None = None, meta: dict[str, Any] | None = None) -> int:
        """Keep one piece of talk as it stands; ``meta["user"]`` names whose it is. Returns its id."""
        if meta is not None and not isinstance(meta, Mapping):
            raise BadInput(f"the meta of a piece must be a mapping of names to values, got {type(meta).__name__}")
        meta = dict(meta or {})
        return self._add(user_name(meta.pop("user", self.user)), [(text, time, key, meta)])[0]

    def exchange(
        self, query: str, response: str = "", *, time: Any = None, user: str | None = None, key: str | None = None
    ) -> int:
        """Keep what the user said and what was answered as one piece. Returns its id."""
        who = self._who(user)
        return self._add(who, [(told_as(who, query, response), time, key, {"query": query, "response": response})])[0]

    def remember(self, exchanges: Iterable[Any], *, user: str | None = None) -> list[int]:
        """Keep many exchanges in the order given, each with ``query``, ``response``, ``time``, ``key`` and ``user``
        (as :mod:`workbench_datasets.companions` gives them); a day of a user is one transaction. Returns their ids."""

        def day_of(one: Any) -> tuple[str, str]:
            return self._who(getattr(one, "user", user)), date_of(one.time)

        made: list[int] = []
        for (who, _), group in groupby(exchanges, key=day_of):
            made += self._add(who, [
                (told_as(who, e.query, e.response), e.time, getattr(e, "key", None),
                 {"query": e.query, "response": e.response}) for e in group
            ])  # fmt: skip
        return made

    def _add(self, user: str, pieces: Sequence[tuple[str, Any, str | None, dict[str, Any]]]) -> list[int]:
        """New exchanges of one user and day: the day begins, they are written, what is over capacity goes."""
        from workbench.memory.durable import NewItem, seconds

        moments = [self._clock(user, time) if time is None else seconds(time) for _, time, _, _ in pieces]
        date = date_of(moments[0])
        with self.store.transaction(f"talk of {date}"):
            late = self._begin_day(user, date, moments[0])
            new = [
                NewItem(
                    text, key or self._key(user, date), "exchange", moment, tags=(user_tag(user),),
                    meta=noted(user, date, moment, time is not None, meta),
                )
                for (text, time, key, meta), moment in zip(pieces, moments)
            ]  # fmt: skip
            made = self.store.add_many(new)
            if late:
                self.end_day(date, user=user)
            self._evict(user, max([*moments, self._newest(user)]))
        return [item.id for item in made]

    def _begin_day(self, user: str, date: str, moment: float) -> bool:
        """Close the day before and sweep, when ``date`` is a new one; True when it is one that was closed already."""
        days = [str(item.meta["date"]) for item in self._mirror.pieces(user) if item.kind == "exchange"]
        latest = max(days, default=date)
        if date > latest and self.summaries:
            self.end_day(latest, user=user)
        if date > latest:
            self.sweep(moment, user=user)
        return self.summaries and date < latest

    def _key(self, user: str, date: str) -> str:
        """user_date_number; a number is not given twice, also not when the piece was forgotten."""
        if self._numbers is None:
            self._numbers = {}
            for item in (*self.store.items(kinds="exchange"), *self.store.forgotten()):
                if item.kind == "exchange":
                    at = (str(item.meta.get("user")), str(item.meta.get("date")))
                    self._numbers[at] = self._numbers.get(at, 0) + 1
        number = self._numbers.get((user, date), 0)
        while f"{user}_{date}_{number}" in self.store:
            number += 1
        self._numbers[user, date] = number + 1
        return f"{user}_{date}_{number}"

    def end_day(self, date: Any, *, user: str | None = None) -> None:
        """Write the day's summary and insight, then the global summary and the portrait. Nothing said, nothing done."""
        who, day = self._who(user), date_of(date)
        with self.store.transaction(f"end of {day}"):
            self._days.close(who, day, self._mirror.pieces(who))
            self._evict(who, self._newest(who))

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(
        self,
        query: str,
        *,
        k: int | None = None,
        budget_notes: int | None = None,
        budget_tokens: int | None = None,
        time: Any = None,
        user: str | None = None,
    ) -> Reading:
        """The pieces nearest to ``query``, best first (the prompt has them in order of time).

        Every piece given back is recalled once: S + increment, t = 0 (with ``reinforce="retrieved"``).
        """
        query = check_read(query, k=k, budget_notes=budget_notes, budget_tokens=budget_tokens)
        who = self._who(user)
        now = self._moment(who, time)
        found = self._find(query, who, k or self.k)
        reading = inspect_.reading(query, found, budget_notes, budget_tokens)
        if reading.items:
            with self.store.transaction(f"read: {query}"):
                strengthened = reading.ids if self.reinforce == "retrieved" else []
                self.store.record("read", reading.ids, query, at=now, recalled=strengthened)
                self._recall(strengthened, now)
        return reading

    def used(self, reading: Reading, answer: str, *, time: Any = None) -> list[int]:
        """Recall the pieces of a reading that share a content word with the answer beyond those of the question;
        for ``reinforce="used"``. Returns their ids."""
        ids = [id for id in inspect_.overlapping(reading, answer) if id in self.store]
        if ids and self.reinforce == "used":
            now = self._moment(user_of(self.store.get(ids[0])) or self.user, time)
            with self.store.transaction(f"used: {reading.query}"):
                self.store.record("read", ids, reading.query, at=now, recalled=ids)
                self._recall(ids, now)
        return ids

    def _recall(self, ids: Sequence[int], now: float) -> None:
        for item in self.store.items(dict.fromkeys(ids)) if ids else []:
            meta = {**begun_anew(item, now), "recalls": item.meta.get("recalls", 0) + 1}
            self.store.update(item.id, strength=item.strength + self.increment, meta=meta)

    def _find(self, query: str, user: str, k: int) -> list[Found]:
        pieces = self._mirror.pieces(user)
        if not pieces:
            return []
        if self.unit == "piece":
            by_id = {piece.id: piece for piece in pieces}
            hits = self.store.search(query, min(k, len(pieces)), ids=list(by_id))
            cut = {hit.id: tuple(split(by_id[hit.id].text)) for hit in hits}
            return [Found(by_id[h.id], h.score, cut[h.id], tuple(range(len(cut[h.id])))) for h in hits]
        if self._sentences is None or self._sentences.encoder is not self.store.encoder:
            self._sentences = SentenceIndex(self.store.encoder)
        self._sentences.forget(self._mirror.take_gone())
        return self._sentences.search(self.store.encoder.encode([query])[0], pieces, k, self.glue)

    def prompt(
        self, query: str, *, reading: Reading | None = None, budget_tokens: int | None = None, time: Any = None,
        user: str | None = None, count: Any = count_tokens,
    ) -> Prompt:  # fmt: skip
        """What a model reads: role, portrait, global summary, memories by date, recent exchanges, the user's turn.

        Reads the memory first unless a ``reading`` is given. See :func:`compose` for what is dropped and when.
        """
        who = self._who(user)
        found = self.read(query, time=time, user=who) if reading is None else reading
        talk = [p for p in self._mirror.pieces(who) if p.kind == "exchange"]
        recent = sorted(talk, key=lambda piece: (piece.time, piece.id))[-self.recent :] if self.recent else []
        blocks = [
            Block("role", self.role),
            *self._background(who),
            *inspect_.memories(self.store, found),
            *(Block("recent", piece.text, (piece.id,), time=piece.time) for piece in recent),
            Block("user", f"{who}: {query}"),
        ]
        return compose(blocks, budget_tokens, count=count)

    def consult(
        self, query: str, *, budget_tokens: int | None = None, time: Any = None, user: str | None = None
    ) -> tuple[list[str], Reading]:
        """Portrait, global summary and memories by date: what is put before a question, within the budget."""
        who = self._who(user)
        check_read(query, budget_tokens=budget_tokens)
        found = self.read(query, time=time, user=who)
        composed = compose([*self._background(who), *inspect_.memories(self.store, found)], budget_tokens).text()
        return [line for line in composed.splitlines() if line.strip()], found

    def _background(self, user: str) -> Iterator[Block]:
        for kind, name, text in (("portrait", "portrait", f"About {user}: "),
                                 ("global summary", "global_summary", "So far: ")):  # fmt: skip
            held = self.store.find(f"{user}_{name}")
            if held is not None:
                yield Block(kind, text + held.text, (held.id,))

    def turn(
        self, query: str, llm: ChatModel | Reader, *, time: Any = None, user: str | None = None,
        budget_tokens: int | None = None, **options: Any,
    ) -> Turn:  # fmt: skip
        """One turn in the paper's order: retrieve, answer, reinforce, store the exchange (a new day begins first)."""
        who = self._who(user)
        check_read(query, budget_tokens=budget_tokens)
        now = self._moment(who, time)
        self._begin_day(who, date_of(now), now)
        reading = self.read(query, time=now, user=who)
        prompt = self.prompt(query, reading=reading, budget_tokens=budget_tokens, user=who)
        if hasattr(llm, "chat"):
            reply = llm.chat(prompt.messages(), **options)
        else:
            reply = llm.answer(
                query, "\n".join(b.text for b in prompt.blocks if b.kept and b.kind not in ("role", "user"))
            )
        self.used(reading, reply.text, time=now)
        said = reply.text.strip()
        stored = self.exchange(query, said, time=now if time is not None else None, user=who)
        return Turn(prompt, reading, reply, stored)

    # -- looking in ---------------------------------------------------------------------------------------------------

    def contents(
        self, *, start: int = 0, count: int | None = None, today: Any = None, query: str | None = None,
        forgotten: bool = False,
    ) -> pd.DataFrame:  # fmt: skip
        """One row an item: id, key, kind, user, date, text, S, last_recall (date), t (days), R, recalls, forgotten_at
        (date) and, with a ``query``, similarity. ``today`` is the moment of t and R; ``forgotten`` adds tombstones.
        """
        return inspect_.contents(self, start, count, today, query, forgotten)

    def lives(self, user: str | None = None) -> pd.DataFrame:
        """One row a piece, living or not: id, key, kind, text, born, ended, alive, S, recalls (list); times in days
        since the user's first piece. Read from the log."""
        return inspect_.lives(self, self._who(user))
