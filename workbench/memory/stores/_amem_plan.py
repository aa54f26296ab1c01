"""From a model's decision to what is changed: links of the new note, new contexts and tags of its neighbours.

Pure: plain notes in, a plan out; nothing is stored here. Whatever a model says that cannot be used (ids that were not
shown, fewer entries than neighbours, unknown actions) is dropped, kept as it was and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from workbench.memory.stores._amem_notes import Evolution, Note, distinct

ACTIONS = ("strengthen", "update_neighbor")


@dataclass(frozen=True)
class Plan:
    """What one ``add`` will do.

    Attributes:
        note: the new note with its links and tags as they will be stored.
        changed: neighbours as they will be (same ids; content untouched), only those that differ from before.
        problems: what the model said that could not be used, counted by kind.
    """

    note: Note
    changed: tuple[Note, ...] = ()
    problems: Counter[str] = field(default_factory=Counter)


def plan(reply: Evolution, note: Note, neighbours: Sequence[Note], *, link: bool = True, evolve: bool = True) -> Plan:
    """Apply a decision to plain notes (paper, section 3.2 and 3.3; the published code's one-call form).

    "strengthen" gives the new note its links and replaces its tags; "update_neighbor" replaces context and tags of
    neighbour i by entry i, where a missing or empty entry leaves it as it is. ``link=False`` ignores the first,
    ``evolve=False`` the second.
    """
    problems: Counter[str] = Counter()
    if not reply.should_evolve:
        return Plan(note, (), problems)
    actions = {action.strip().casefold().replace(" ", "_") for action in reply.actions}
    problems["unknown action"] = len(actions - set(ACTIONS))
    if link and "strengthen" in actions:
        note = _strengthened(reply, note, neighbours, problems)
    changed: tuple[Note, ...] = ()
    if evolve and "update_neighbor" in actions:
        changed = _evolved(reply, neighbours, problems)
    return Plan(note, changed, +problems)


def _strengthened(reply: Evolution, note: Note, neighbours: Sequence[Note], problems: Counter[str]) -> Note:
    shown = {old.id for old in neighbours}
    wanted = tuple(dict.fromkeys(reply.suggested_connections))
    problems["id that was not shown"] = sum(item not in shown for item in wanted)
    links = tuple(item for item in wanted if item in shown)
    return replace(note, links=links, tags=distinct(reply.tags_to_update) or note.tags)


def _evolved(reply: Evolution, neighbours: Sequence[Note], problems: Counter[str]) -> tuple[Note, ...]:
    contexts, tags = reply.new_context_neighborhood, reply.new_tags_neighborhood
    problems["missing context"] = max(len(neighbours) - len(contexts), 0)
    problems["missing tags"] = max(len(neighbours) - len(tags), 0)
    problems["entry beyond the neighbours"] = max(len(contexts) - len(neighbours), 0)
    changed = []
    for index, old in enumerate(neighbours):
        context = " ".join(contexts[index].split()) if index < len(contexts) else ""
        words = distinct(tags[index]) if index < len(tags) else ()
        new = replace(old, context=context or old.context, tags=words or old.tags)
        if (new.context, new.tags) != (old.context, old.tags):
            changed.append(new)
    return tuple(changed)
