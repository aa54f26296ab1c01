"""MemoryBank in dialogue: is the right exchange found, does a reader answer better with it, what does forgetting cost?

And, on the authors' own users, whether the day that a question names is found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from workbench.studies._memorybank_claims import NONE, OFF, RECENT, TALK, USERS, WORLD
from workbench.studies._memorybank_world import acquaintances, evening

if TYPE_CHECKING:
    from workbench.llm import Reader
    from workbench.memory.retrieval import Encoder
    from workbench.memory.stores.base import Reading
    from workbench.memory.stores.memorybank import MemoryBank
    from workbench.studies.base import Progress
    from workbench_datasets.companions import Companions, Exchange, Probe, User

#: Forgetting in dialogue by name; λ = 5 days as in the life simulation, θ = 0.3.
FORGETTING: dict[str, dict[str, Any]] = {
    OFF: {"rule": "none"},
    "hazard": {"rule": "hazard", "time_scale": 5.0},
    "threshold": {"rule": "threshold", "time_scale": 5.0},
    "as published (bug)": {"rule": "as_published_bug", "time_scale": 5.0},
}
Row = dict[str, Any]


@lru_cache(maxsize=4)
def encoder_of(name: str) -> Encoder:
    """One encoder a process that remembers what it encoded: every condition writes the same texts."""
    from workbench.memory.retrieval import cached, encoder

    return cached(encoder(name))


def talk_rows(settings: Mapping[str, Any], seed: int, progress: Progress) -> Iterator[Row]:
    """All worlds and ways of forgetting; readers are asked with the memory, with recent exchanges, with nothing."""
    from workbench_datasets.companions import companions_world

    made = {TALK: acquaintances, WORLD: companions_world}
    for experiment in settings["worlds"]:
        users = made[experiment](settings["first_world"] + seed, users=settings["users"])
        warm(encoder_of(settings["encoder"]), users)
        for name in progress(settings["forgetting"], experiment):
            yield from _one(settings, seed, experiment, name, users)


def warm(encoder: Encoder, users: Companions) -> None:
    """Encode what will be written and asked in one batch, which is many times faster than one by one."""
    from workbench.memory.stores.memorybank import told_as

    said = [told_as(e.user, e.query, e.response) for e in users.exchanges]
    encoder.encode([*said, *(probe.text for probe in users.probes)])


def _one(settings: Mapping[str, Any], seed: int, experiment: str, name: str, users: Companions) -> Iterator[Row]:
    memory = _bank(settings, seed, name)
    same = {"experiment": experiment, "policy": name}
    for user in users:
        asked_before, wasted = _live(memory, user)
        yield {**same, "metric": "recalls of other pieces", "unit": user.name, "value": wasted}
        yield {**same, "metric": "pieces held", "unit": user.name, "value": float(len(memory.pieces(user.name)))}
        for number, probe in enumerate(user.probes):
            unit = f"{user.name} {number}"
            reading = memory.read(probe.text, user=user.name)
            if probe.evidence:
                kind = "asked before" if probe in asked_before else "first asked"
                yield {
                    **same,
                    "metric": "retrieved",
                    "unit": unit,
                    "step": kind,
                    "value": _found(memory, probe, reading),
                }
            if name == OFF:
                last = user.exchanges[-settings["k"] :]
                contexts = {OFF: reading.text(), RECENT: "\n".join(map(_line, last)), NONE: ""}
                yield from _answers(settings, experiment, unit, probe, contexts)


def _bank(settings: Mapping[str, Any], seed: int, name: str) -> MemoryBank:
    from workbench.memory.stores.memorybank import MemoryBank

    return MemoryBank(encoder=encoder_of(settings["encoder"]), k=settings["k"], seed=seed, **FORGETTING[name])


def _live(memory: MemoryBank, user: User) -> tuple[list[Probe], float]:
    """The user's days; every other probe is asked once before, on the evening of the day after it was told.

    Returns these probes, and the share of the recalls that went to pieces other than the one that answers.
    """
    told = {exchange.key: exchange.day for exchange in user.exchanges}
    early = [probe for probe in user.probes if probe.evidence][::2]
    found, recalled = 0.0, 0
    for at, day in enumerate(user.days):
        memory.remember([exchange for exchange in user.exchanges if exchange.day == day])
        for probe in early:
            if at > 0 and told[probe.evidence[0]] == user.days[at - 1]:
                reading = memory.read(probe.text, time=evening(user, at), user=user.name)
                found, recalled = found + _found(memory, probe, reading), recalled + len(reading.ids)
    memory.end_day(evening(user, len(user.days) - 1), user=user.name)
    return early, 1 - found / recalled if recalled else 0.0


def _line(exchange: Exchange) -> str:
    """An exchange as the memory gives it back."""
    return f"[{exchange.day}] {' '.join(exchange.text.split())}"


def _found(memory: MemoryBank, probe: Probe, reading: Reading) -> float:
    gold = memory.store.find(probe.evidence[0])
    return float(gold is not None and gold.id in reading.ids)


def _answers(
    settings: Mapping[str, Any], experiment: str, unit: str, probe: Probe, contexts: Mapping[str, str]
) -> Iterator[Row]:
    told = "told" if probe.evidence else "never said"
    for name in settings["readers"] if experiment == TALK else ["extractive rules"]:
        for policy, context in contexts.items():
            right = is_right(_reader(name).answer(probe.text, context).text, probe)
            yield {"experiment": experiment, "policy": policy, "metric": f"correct ({name})", "unit": unit,
                   "step": told, "value": float(right)}  # fmt: skip


@lru_cache(maxsize=2)
def _reader(name: str) -> Reader:
    from workbench.llm import EmbeddedReader, ExtractiveReader

    return EmbeddedReader(overflow="drop-last") if name == "embedded model" else ExtractiveReader()


def is_right(said: str, probe: Probe) -> bool:
    """The answer stands in what was said, as whole words; what was never said must be answered by "unknown"."""
    words = _words(said)
    if not probe.evidence:
        return words in (["unknown"], ["not", "mentioned"])
    gold = _words(probe.answer or "")
    return any(words[at : at + len(gold)] == gold for at in range(len(words) - len(gold) + 1))


def _words(text: str) -> list[str]:
    import re

    return re.findall(r"\w+", text.lower())


# -- the authors' users -----------------------------------------------------------------------------------------------


def user_rows(settings: Mapping[str, Any], progress: Progress) -> Iterator[Row]:
    """Day@k of the probes that name a day: is a piece of that day among the first k?"""
    from workbench.memory.stores.memorybank import MemoryBank
    from workbench_datasets import companions

    users = companions.load()
    counts = {"users": len(users), "exchanges": len(users.exchanges), "probes": len(users.probes),
              "dated probes": len(users.dated)}  # fmt: skip
    for metric, value in counts.items():
        yield {"experiment": USERS, "policy": "data", "metric": metric, "unit": "all", "value": float(value)}
    for name, encoder, unit in progress(settings["retrievers"], "authors' users"):
        warm(encoder_of(encoder), users)
        memory = MemoryBank(encoder=encoder_of(encoder), unit=unit, rule="none", reinforce="never", k=settings["k"])
        memory.remember(users.exchanges)
        for user in users:
            memory.end_day(evening(user, len(user.days) - 1), user=user.name)
        yield from _dated(memory, name, users.dated)


def _dated(memory: MemoryBank, name: str, probes: Iterable[Probe]) -> Iterator[Row]:
    for number, probe in enumerate(probes):
        reading = memory.read(probe.text, user=probe.user)
        days = [memory.store.get(id).meta["date"] for id in reading.ids]
        for k in (1, 3, 6):
            hit = float(str(probe.day) in days[:k])
            yield {"experiment": USERS, "policy": name, "metric": f"day@{k}", "unit": f"{probe.user} {number}",
                   "value": hit}  # fmt: skip
