"""A life with more facts than a memory can hold: which forgetting keeps what will be asked for?

Every day brings new facts. Each has a latent importance w, drawn from a Pareto distribution, so that a few matter much
and most hardly at all; questions about the past come with probability proportional to w. A question *hits* when its
fact is still stored, and the hit recalls it. The memory never sees w: it has to learn it from its recalls. With
``drift`` the importances of all facts are drawn anew every so many days, as interests change.

Policies share everything but themselves: the same facts, importances, questions and luck for the same seed, so that
differences are paired. The whole is vectorised over seeds; a policy over 200 seeds takes about a tenth of a second.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.checks import is_whole, whole
from workbench.errors import BadInput
from workbench.memory.stores.memorybank import checked_threshold, forgotten_now, known_rule

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

EVICTIONS = ("retention", "fifo", "random", "lru", "lfu")


@dataclass(frozen=True)
class Life:
    """``days`` of ``facts`` new facts and ``questions`` questions each.

    Importance is Pareto(``shape``) + ``floor``. ``score_from``: days that only fill the memory and are not scored.
    ``drift``: days after which all importances are drawn anew (None: never).
    """

    days: int = 60
    facts: int = 10
    questions: int = 8
    shape: float = 1.1
    floor: float = 0.02
    score_from: int = 20
    drift: int | None = None

    def __post_init__(self) -> None:
        for name in ("days", "facts", "questions"):
            whole(f"Life: {name}", getattr(self, name))
        if not is_whole(self.score_from, 0, self.days - 1):
            raise BadInput(f"Life(score_from={self.score_from}) must be a day before the last, {self.days}")
        drifts = self.drift is None or is_whole(self.drift, 1)
        if not _number(self.shape) or self.shape <= 0 or not _number(self.floor) or self.floor < 0 or not drifts:
            raise BadInput(f"Life(shape={self.shape}, floor={self.floor}, drift={self.drift}): shape > 0, floor >= 0, "
                           "drift >= 1 or None")  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """What a memory forgets.

    ``rule`` is a forgetting rule of MemoryBank, applied at the start of every day with λ = ``time_scale`` (days per
    unit of strength) and θ = ``threshold``; ``capacity`` is the largest number of facts held after the day's are
    written, let go in the order ``evict``: lowest retention, oldest ("fifo"), "random", least recently recalled ("lru")
    or fewest recalls ("lfu", ties least recently recalled). A recall adds ``increment`` to the strength and sets the
    time since the last recall to zero; without ``reinforce`` it does neither.
    """

    name: str
    rule: str = "none"
    capacity: int | None = None
    evict: str = "retention"
    time_scale: float = 5.0
    increment: float = 1.0
    reinforce: bool = True
    threshold: float = 0.3

    def __post_init__(self) -> None:
        known_rule(self.rule)
        checked_threshold(self.threshold)
        if self.evict not in EVICTIONS:
            raise BadInput(f"Policy {self.name!r}: evict={self.evict!r} is not one of {', '.join(EVICTIONS)}")
        if self.capacity is not None:
            whole(f"Policy {self.name!r}: capacity", self.capacity, more=", or None")
        if not _number(self.time_scale) or self.time_scale <= 0 or not _number(self.increment) or self.increment < 0:
            raise BadInput(f"Policy {self.name!r}: time_scale must be above 0 and increment at least 0")


def _number(value: Any) -> bool:
    """A number; infinity is one (λ = inf never fades), NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


KEEP_ALL = Policy("KEEP-ALL")


def policies_at(capacity: int = 64) -> list[Policy]:
    """The card's policies; those with a fixed size hold ``capacity`` facts."""
    return [
        KEEP_ALL,
        Policy("EBB hazard", "hazard"),
        Policy("EBB hazard, no reinforcement", "hazard", reinforce=False),
        Policy("EBB threshold", "threshold"),
        Policy("as published (bug)", "as_published_bug"),
        *at_capacity(capacity),
    ]


def at_capacity(capacity: int) -> list[Policy]:
    """The policies that hold exactly as many facts as one another."""
    return [
        Policy("FIFO", capacity=capacity, evict="fifo"),
        Policy("RANDOM", capacity=capacity, evict="random"),
        Policy("LRU", capacity=capacity, evict="lru"),
        Policy("LFU", capacity=capacity, evict="lfu"),
        Policy("EBB capacity", "capacity", capacity=capacity),
        Policy("EBB capacity, no reinforcement", "capacity", capacity=capacity, reinforce=False),
    ]


@dataclass(frozen=True)
class Fate:
    """What the seeds draw before any policy acts; n = days x facts, fact i is born on day i // facts.

    Shapes: importance (seeds, epochs, n); asked (seeds, days, questions) fact indices; luck (seeds, n) of a fact's
    first life; relived (seeds, days, questions) luck of the life that a recall begins.
    """

    life: Life
    seeds: tuple[int, ...]
    importance: np.ndarray
    asked: np.ndarray
    luck: np.ndarray
    relived: np.ndarray


def draw(life: Life, seeds: Sequence[int]) -> Fate:
    """The fates of ``seeds``; a seed's fate does not depend on which others are drawn with it."""
    import numpy as np

    try:
        chosen = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        chosen = ()
    if not chosen or min(chosen) < 0:
        raise BadInput(f"seeds={seeds!r} must hold at least one whole number >= 0, and nothing else")
    n = life.days * life.facts
    epochs = 1 if life.drift is None else -(-life.days // life.drift)
    shape = (life.days, life.questions)
    rngs = [np.random.default_rng([seed, 0]) for seed in chosen]
    importance = np.stack([rng.pareto(life.shape, (epochs, n)) + life.floor for rng in rngs])
    where = np.stack([rng.random(shape) for rng in rngs])
    luck, relived = np.stack([rng.random(n) for rng in rngs]), np.stack([rng.random(shape) for rng in rngs])
    asked = np.stack([_ask(life, importance, where, day) for day in range(life.days)], axis=1)
    return Fate(life, chosen, importance, asked, luck, relived)


def epoch_of(life: Life, day: int) -> int:
    """Which drawing of importances holds on ``day`` (0, 1, ...)."""
    return 0 if life.drift is None else day // life.drift


def _ask(life: Life, importance: np.ndarray, where: np.ndarray, day: int) -> np.ndarray:
    """(seeds, questions) facts of today or before, drawn with probability proportional to importance."""
    known = (day + 1) * life.facts
    total = importance[:, epoch_of(life, day), :known].cumsum(axis=1)  # s n
    point = where[:, day] * total[:, -1:]  # s q
    return (total[:, None, :] <= point[:, :, None]).sum(axis=2).clip(max=known - 1)


@dataclass(frozen=True)
class Lives:
    """What one policy made of the fates: hits (seeds, days, questions), sizes (seeds, days), strength and died
    (seeds, n); ``died`` is the day on which a fact was forgotten, ``days`` where it never was."""

    fate: Fate
    policy: Policy
    hits: np.ndarray
    sizes: np.ndarray
    strength: np.ndarray
    died: np.ndarray

    def hit_rate(self) -> np.ndarray:
        """Share of scored questions that hit, one a seed."""
        return self.hits[:, self.fate.life.score_from :].mean(axis=(1, 2))

    def mean_size(self) -> np.ndarray:
        """Facts held on scored days, mean, one a seed."""
        return self.sizes[:, self.fate.life.score_from :].mean(axis=1)

    def items(self, seed: int) -> pd.DataFrame:
        """One row a fact of one seed: item, born, died, importance (of its first day), strength, recalls (days)."""
        import numpy as np
        import pandas as pd

        if seed not in self.fate.seeds:
            raise BadInput(f"seed {seed} was not simulated; seeds: {', '.join(map(str, self.fate.seeds))}")
        at, life = self.fate.seeds.index(seed), self.fate.life
        item = np.arange(life.days * life.facts)
        born = item // life.facts
        epochs = [epoch_of(life, int(day)) for day in born]
        day, question = np.nonzero(self.hits[at])
        recalled = pd.Series(day, dtype=int).groupby(self.fate.asked[at][day, question]).agg(list)
        return pd.DataFrame({
            "item": item, "born": born, "died": self.died[at], "alive": self.died[at] == life.days,
            "importance": self.fate.importance[at][epochs, item], "strength": self.strength[at],
            "recalls": [recalled.get(i, []) for i in item],
        })  # fmt: skip


def live(fate: Fate, policy: Policy) -> Lives:
    """One policy through all days and seeds of ``fate``.

    A day: the rule forgets; the day's facts are written; what is over capacity goes; then the questions, one after
    the other, each hit being a recall.
    """
    import numpy as np

    life, rows = fate.life, np.arange(len(fate.seeds))
    n = life.days * life.facts
    born = np.repeat(np.arange(life.days), life.facts)
    state = _State(len(rows), n, born, fate.luck.copy(), life.days)
    hits = np.zeros(fate.asked.shape, dtype=bool)
    sizes = np.zeros((len(rows), life.days))
    for day in range(life.days):
        _sweep(state, policy, fate, day)
        state.alive[:, day * life.facts : (day + 1) * life.facts] = True
        if policy.capacity is not None:
            _evict(state, policy, fate, day)
        sizes[:, day] = state.alive.sum(axis=1)
        for question in range(life.questions):
            item = fate.asked[:, day, question]
            hit = state.alive[rows, item]
            hits[:, day, question] = hit
            _recall(state, policy, rows[hit], item[hit], day, fate.relived[hit, day, question])
    return Lives(fate, policy, hits, sizes, state.strength, state.died)


class _State:
    """Arrays of shape (seeds, n)."""

    def __init__(self, seeds: int, n: int, born: np.ndarray, luck: np.ndarray, never: int):
        import numpy as np

        self.alive, self.count = np.zeros((seeds, n), dtype=bool), np.zeros((seeds, n), dtype=int)
        self.strength, self.last = np.ones((seeds, n)), np.tile(born, (seeds, 1))
        self.luck, self.died = luck, np.full((seeds, n), never)

    def forget(self, gone: np.ndarray, day: int) -> None:
        self.alive &= ~gone
        self.died[gone] = day


def _sweep(state: _State, policy: Policy, fate: Fate, day: int) -> None:
    known = slice(0, day * fate.life.facts)
    if day == 0 or policy.rule in ("none", "capacity"):
        return
    fresh = policy.rule in ("sweep", "as_published_bug")
    luck = _daily(fate, day, 1, known.stop) if fresh else state.luck[:, known]
    gone = forgotten_now(
        policy.rule, day - state.last[:, known], state.strength[:, known], luck,
        time_scale=policy.time_scale, threshold=policy.threshold,
    )  # fmt: skip
    full = state.alive.copy()
    full[:, known] &= gone
    full[:, known.stop :] = False
    state.forget(full, day)


def _evict(state: _State, policy: Policy, fate: Fate, day: int) -> None:
    """Let the worst go, at most as many as a day brings: a key per fact (larger goes first), ties oldest first."""
    import numpy as np

    life, capacity = fate.life, int(policy.capacity or 0)
    known = (day + 1) * life.facts
    alive = state.alive[:, :known]
    over = alive.sum(axis=1) - capacity  # s
    if over.max() <= 0:
        return
    key = np.where(alive, _keys(state, policy, fate, day, known), -np.inf) - 1e-12 * np.arange(known)
    most = min(int(over.max()), known)
    worst = np.argpartition(key, known - most, axis=1)[:, known - most :]
    rows = np.arange(len(over))[:, None]
    worst = worst[rows, np.argsort(-key[rows, worst], axis=1, kind="stable")]
    gone = np.zeros_like(state.alive)
    gone[np.broadcast_to(rows, worst.shape), worst] = np.arange(most) < over[:, None]
    state.forget(gone, day)


def _keys(state: _State, policy: Policy, fate: Fate, day: int, known: int) -> Any:
    idle = day - state.last[:, :known]
    if policy.evict == "retention":  # exp(-t / (λ S)) falls as t / S grows, whatever λ
        return idle / state.strength[:, :known]
    if policy.evict == "fifo":
        return 0.0 * idle
    if policy.evict == "random":
        return _daily(fate, day, 2, known)
    if policy.evict == "lru":
        return 1.0 * idle
    return idle - 1_000.0 * fate.life.days * state.count[:, :known]


def _daily(fate: Fate, day: int, stream: int, known: int) -> np.ndarray:
    """Fresh luck of the facts known on a day, (seeds, known)."""
    import numpy as np

    return np.stack([np.random.default_rng([seed, stream, day]).random(known) for seed in fate.seeds])


def _recall(state: _State, policy: Policy, rows: Any, items: Any, day: int, luck: Any) -> None:
    state.count[rows, items] += 1
    if policy.reinforce:
        state.strength[rows, items] += policy.increment
        state.last[rows, items] = day
        state.luck[rows, items] = luck


def scores(
    life: Life, policies: Sequence[Policy], seeds: Sequence[int], *, batch: int = 50, progress: Any = iter
) -> pd.DataFrame:
    """One row a policy and seed: the policy's settings, ``unit`` (the seed), ``hit_rate`` and ``mean_size``."""
    import pandas as pd

    names = [policy.name for policy in policies]
    if not names or len(set(names)) != len(names):
        raise BadInput(f"policies need names of their own, got {names}")
    parts = []
    for start in range(0, len(seeds), batch):
        fate = draw(life, seeds[start : start + batch])
        for policy in progress(policies):
            lives = live(fate, policy)
            found = {"unit": fate.seeds, "hit_rate": lives.hit_rate(), "mean_size": lives.mean_size()}
            parts.append(pd.DataFrame({**_settings(policy), **found}))
    return pd.concat(parts, ignore_index=True)


def _settings(policy: Policy) -> dict[str, Any]:
    told = asdict(policy)
    return {
        "policy": told.pop("name"),
        **told,
        "capacity": float("nan" if policy.capacity is None else policy.capacity),
    }


def grid(
    time_scales: Sequence[float], increments: Sequence[float], capacities: Sequence[int], *, rule: str = "hazard"
) -> list[Policy]:
    """Every combination: the rule with λ and the increment, within a capacity (λ = inf is the capacity alone)."""
    base = Policy("grid", rule)
    return [
        replace(base, name=f"λ {scale:g}, +{step:g}, C {size}", time_scale=scale, increment=step, capacity=size)
        for scale in time_scales
        for step in increments
        for size in capacities
    ]
