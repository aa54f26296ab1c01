"""Users who tell their companion about acquaintances, in the small world's words.

The shape is that of :func:`workbench_datasets.companions.companions_world`: days of talk in which every other exchange
tells something and the rest is small talk, then probing questions, two of them about what was never said. What is told
are statements about people that the embedded model has never seen, so that it can read the answer only from the
memory.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from workbench_datasets.companions import NEVER_SAID, Companions, Exchange, Probe, User, companions_world

if TYPE_CHECKING:
    from workbench_datasets.small_world import World

REPLIES = ("That is good to know.", "Thank you for telling me.", "I will remember it.", "How nice to hear.")


def acquaintances(seed: int, users: int = 6, days: int = 10, exchanges: int = 4, probes: int = 10) -> Companions:
    """``users`` with ``days`` of ``exchanges``, and ``probes`` questions each, two of them never answered before.

    Probes know their answer, the key of the gold exchange and their relation as ``kind``.
    """
    frame = companions_world(seed, users=users, days=days, exchanges=exchanges, probes=2, never=2)
    rng = random.Random(f"acquaintances:{seed}")
    return Companions(tuple(_user(rng, _small_world(), user, probes) for user in frame))


@lru_cache(maxsize=1)
def _small_world() -> World:
    from workbench_datasets.small_world import world

    return world(0)


def _user(rng: random.Random, world: World, user: User, probes: int) -> User:
    from workbench_datasets.small_world import PERSON_RELATIONS, RELATIONS

    slots = [at for at in range(len(user.exchanges)) if at % 2]
    people = world.new_people(rng, len(slots) // 2, "unseen")
    pairs = [(person, relation) for person in people for relation in PERSON_RELATIONS]
    chosen = rng.sample(pairs, len(slots))
    talk, asked = list(user.exchanges), []
    for at, (person, relation) in zip(slots, chosen):
        value = rng.choice(world.objects(relation))
        said = rng.choice(RELATIONS[relation].frames("statement", "train")).format(s=person, o=value)
        old = talk[at]
        talk[at] = Exchange(old.key, old.user, old.day, old.time, f"{said[0].upper()}{said[1:]}.", rng.choice(REPLIES))
        asked.append(Probe(user.name, _question(rng, relation, person), None, value, (old.key,), relation))
    untold = [pair for pair in pairs if pair not in chosen]
    never = [
        Probe(user.name, _question(rng, relation, person), None, NEVER_SAID, (), "never-said")
        for person, relation in rng.sample(untold, 2)
    ]
    wanted = [*rng.sample(asked, probes - 2), *never]
    rng.shuffle(wanted)
    return User(user.name, user.about, tuple(talk), tuple(wanted))


def _question(rng: random.Random, relation: str, person: str) -> str:
    from workbench_datasets.small_world import RELATIONS

    return rng.choice(RELATIONS[relation].frames("question", "train")).format(s=person)


def evening(user: User, day: int) -> float:
    """Seconds since 1970 of ten in the evening of the user's ``day``-th day (0, 1, ...)."""
    date = user.days[day]
    return datetime(date.year, date.month, date.day, 22, tzinfo=UTC).timestamp()
