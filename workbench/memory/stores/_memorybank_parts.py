"""Small parts of MemoryBank: checked settings, names, dates, and one whole turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.checks import number, whole
from workbench.errors import BadInput
from workbench.memory.stores._memorybank_prompt import Prompt
from workbench.memory.stores._memorybank_summaries import ByModel, Extractive, Summariser
from workbench.memory.stores.base import Reading

if TYPE_CHECKING:
    from workbench.llm import Reply
    from workbench.memory.durable import Store

REINFORCE = ("retrieved", "used", "never")
UNITS = ("sentence", "piece")
ROLE = "You are a companion who remembers earlier conversations. Use the memories below when they help."


@dataclass(frozen=True)
class Turn:
    """One whole turn: what the model read, what it answered, and the id under which the exchange was stored."""

    prompt: Prompt
    reading: Reading
    reply: Reply
    item: int


def check_settings(
    *, k: int, glue: int, recent: int, capacity: int | None, time_scale: float, increment: float, seed: int, role: str
) -> None:
    """Raise BadInput for a hyper-parameter outside its range."""
    for name, value, least in (("k", k, 1), ("glue", glue, 0), ("recent", recent, 0), ("capacity", capacity, 1)):
        if value is None and name == "capacity":
            continue
        whole(name, value, least)
    whole("seed", seed, None, more=" (it decides the luck of the random rules)")
    if not isinstance(role, str):
        raise BadInput(f"role={role!r} must be text: the first block of the prompt")
    number("time_scale λ", time_scale, above=0, more=" (days per unit of strength)")
    number("increment", increment, 0, more=" (what a recall adds to the strength)")


def open_store(store: Any, encoder: Any) -> Store:
    """The store given, the one at a path, or one in memory. Raises BadInput for an encoder beside an open store."""
    from workbench.memory.durable import Store

    if isinstance(store, Store):
        if encoder is not None:
            raise BadInput("an open store has its encoder; give the encoder to Store(path, encoder=...) instead")
        return store
    return Store(store, encoder=encoder)


def summariser_of(llm: Any) -> Summariser:
    """The summariser given, extraction for "rules", or a chat model (or the name of one) that writes."""
    if all(hasattr(llm, name) for name in ("day", "overall", "insight", "portrait", "label")):
        return llm
    if llm is None or llm == "rules":
        return Extractive()
    from workbench.llm import open_llm

    return ByModel(open_llm(llm))


def user_name(user: Any) -> str:
    """A user's name without blanks around it. Raises BadInput for an empty one or something else than text."""
    if not isinstance(user, str) or not user.strip():
        raise BadInput(f"a user is named by text that is not empty, got {user!r}")
    return user.strip()


def date_of(time: Any) -> str:
    """The ISO date (UTC) of a moment given as seconds, a date or text."""
    from workbench.memory.durable import seconds, when

    return f"{when(seconds(time)):%Y-%m-%d}"


def told_as(user: str, query: str, response: str) -> str:
    """An exchange as one text. Raises BadInput when the user said nothing."""
    if not isinstance(query, str) or not query.strip():
        raise BadInput("the exchange is empty; give what the user said")
    return f"{user}: {query.strip()}" + (f"\nAI: {response.strip()}" if response and response.strip() else "")
