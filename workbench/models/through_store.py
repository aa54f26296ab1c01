"""A memory of items around a model: what it is fed is written there, what it finds is pasted before the prompt.

A memory is read once a prompt; what it gives back is fitted to the model's positions and told in the result. The form
of the prompt is that of ``workbench.models.pasting``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput, MemoryError_
from workbench.memory.stores.base import Reading, StoreMemory, count_tokens
from workbench.models import encoding
from workbench.models.pasting import paste, question_of

if TYPE_CHECKING:
    from workbench.models.loaded import LoadedModel


@dataclass(frozen=True)
class Pasted:
    """What a memory put before one prompt.

    ``text`` is the memory's part (empty when nothing was found or nothing fits), ``prompt`` all that the model read,
    ``reading`` the items behind ``text`` and how each was found (its ``note`` says what was left out and why);
    ``budget_tokens`` is what the memory was allowed, in words and marks, None for a model without a longest sequence.
    """

    text: str
    prompt: str
    reading: Reading
    budget_tokens: int | None = None


def is_store(memory: Any) -> bool:
    """Whether this memory holds items that are pasted, and not a token cache that the model runs through."""
    return isinstance(memory, StoreMemory)


def check_reader(loaded: LoadedModel, memory: StoreMemory) -> None:
    """Raise MemoryError_ for a model that cannot read a pasted text: no tokenizer, or an encoder."""
    if loaded.tokenizer is None:
        raise MemoryError_(
            f"{memory.slug} gives back text, and {loaded.name} has no tokenizer to read it with; load a model with one"
        )
    if not loaded.is_decoder:
        raise MemoryError_(
            f"{memory.slug} is read by generating from what it found, and {loaded.name} is an encoder "
            f"({type(loaded.model).__name__}); load a language model"
        )


def open_memory(kind: type, settings: Mapping[str, Any]) -> Any:
    """A memory from its class and hyper-parameters; a ``path`` among those of a memory of items opens that store.

    Raises:
        TypeError: a hyper-parameter it does not have. BundleError, StorageError: the file is no store, or damaged.
    """
    given = dict(settings)
    path = given.pop("path", None) if issubclass(kind, StoreMemory) else None
    if not path:
        return kind(**given)
    from workbench.memory.durable import Store

    return kind(store=Store(path), **given)


def plain_settings(memory: Any) -> dict[str, Any]:
    """What ``open_memory`` needs to make this memory again; of one of items the plain settings, and its file."""
    settings = dict(getattr(memory, "settings", dict)())
    if not is_store(memory):
        return settings
    kept = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
    path = memory.store.path
    return (
        kept
        if path is None
        else {name: value for name, value in kept.items() if name != "encoder"} | {"path": str(path)}
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def recall(loaded: LoadedModel, prompt: Any, new_tokens: int) -> Pasted:
    """Ask the memory about ``prompt`` and paste what fits beside it and ``new_tokens`` into the model's positions.

    Raises:
        BadInput: the prompt is not text, or empty.
    """
    if not isinstance(prompt, str):
        raise BadInput(f"{loaded.memory.slug} is asked in words; give the prompt as text, got {type(prompt).__name__}")
    memory, query, room = loaded.memory, question_of(prompt), _room(loaded, prompt, new_tokens)
    if room is not None and room < 1:
        note = f"nothing was read: the prompt and {new_tokens} new tokens fill the {loaded.max_positions} positions"
        return Pasted("", paste([], prompt)[1], Reading(query, (), 0, note), 0)
    budget = None if room is None else _words(loaded, query, room)
    lines, found = memory.consult(query, budget_tokens=budget)
    kept = _fitting(loaded, lines, room)
    if lines == [item.text for item in found.items]:  # else the memory composed lines of its own from what it found
        found = replace(found, items=tuple(found.items[place] for place in kept))
    text, whole = paste([lines[place] for place in kept], prompt)
    return Pasted(text, whole, _told(found, lines, kept, loaded.max_positions), budget)


def _room(loaded: LoadedModel, prompt: str, new_tokens: int) -> int | None:
    """The model's tokens left for the memory's part; None where the model names no longest sequence."""
    if loaded.max_positions is None:
        return None
    return loaded.max_positions - new_tokens - _length(loaded, paste(["[1 May] ."], prompt)[1])


def _words(loaded: LoadedModel, query: str, room: int) -> int:
    """``room`` in words and marks, as memories count, at the model's rate for the question itself."""
    if not query:
        return max(1, room)
    return max(1, int(room * min(1.0, count_tokens(query) / _length(loaded, query))))


def _length(loaded: LoadedModel, text: str) -> int:
    return int(encoding.encode(loaded, text)["input_ids"].shape[1])


def _fitting(loaded: LoadedModel, lines: Sequence[str], room: int | None) -> list[int]:
    """Places of the lines, best first, that fit together into ``room`` of the model's own tokens."""
    if room is None:
        return list(range(len(lines)))
    kept = []
    for place, line in enumerate(lines):
        used = _length(loaded, f"{' '.join(line.split())}. \n")
        if used <= room:
            kept.append(place)
            room -= used
    return kept


def _told(found: Reading, lines: Sequence[str], kept: Sequence[int], positions: int | None) -> Reading:
    """The reading with the tokens that stand in the prompt, and what was left out."""
    left = len(lines) - len(kept)
    why = f"{left} of {len(lines)} left out: they do not fit into the model's {positions} positions" if left else ""
    tokens = sum(count_tokens(lines[place]) for place in kept)
    return replace(found, tokens=tokens, note="; ".join(filter(None, (found.note, why))))


# -- writing ----------------------------------------------------------------------------------------------------------


def pieces(text: Any) -> list[str]:
    """What is written of ``text``: its lines, or the members of a list of texts; blank ones are none.

    Raises:
        BadInput: ids, an empty text, anything that is not text.
    """
    given = text.splitlines() if isinstance(text, str) else text
    if not isinstance(given, list | tuple) or not all(isinstance(item, str) for item in given):
        raise BadInput(f"a memory of items is fed text or a list of texts; got {type(text).__name__}")
    found = [item.strip() for item in given if item.strip()]
    if not found:
        raise BadInput("the text is empty: there is nothing to write; give at least one line")
    return found


def write(memory: StoreMemory, text: Any, on_piece: Callable[[int, str], Any]) -> list[tuple[int, str]]:
    """Write each piece (one durable operation each: what was written before an error stays); (id, text) of each."""
    written: list[tuple[int, str]] = []
    for piece in pieces(text):
        written.append((memory.write(piece), piece))
        on_piece(*written[-1])
    return written
