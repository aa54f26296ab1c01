"""Which memories the app can put into a model, and how one is made of its name and its hyper-parameters."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.registry import slug_of

#: Types of default values for which there is a control.
PLAIN = (bool, int, float, str)

#: The least budget the app proposes by itself.
SMALLEST_BUDGET = 48

#: Rooms of the memories that can serve a model: caches it runs through, edits, stores that are pasted.
ROOMS = {
    "cache": "workbench.memory.cache",
    "edits": "workbench.memory.parametric",
    "store": "workbench.memory.stores",
}


def memory_names() -> list[str]:
    """'none', then token caches, memories of edits, memories of items: built in, registered here, or by entry point."""
    rooms = {name: kind_of(name) for name in MEMORIES.names()}
    return ["none", *(name for kind in ROOMS for name, room in rooms.items() if room == kind)]


def kind_of(name: str) -> str | None:
    """ "cache", "store", "edits", or None for a memory that no model can be given.

    A built-in memory is known by its room and not imported. One of another package that cannot be imported counts as
    a cache: it stays in the list, and choosing it shows why it fails.
    """
    for kind, room in ROOMS.items():
        if name in _slugs(room):
            return kind
    if any(name in _slugs(room) for room in MEMORIES.packages):
        return None
    try:
        made = MEMORIES.get(name)
    except Exception:
        return "cache"
    return kind_of_class(made)


def _slugs(room: str) -> set[str]:
    found = pkgutil.iter_modules(import_module(room).__path__)
    return {slug_of(module.name) for module in found if not module.name.startswith("_") and module.name != "base"}


def kind_of_class(made: type) -> str | None:
    from workbench.memory.parametric.base import ParametricMemory
    from workbench.memory.stores.base import StoreMemory

    if issubclass(made, StoreMemory):
        return "store"
    if issubclass(made, ParametricMemory):
        return "edits"
    return "cache" if hasattr(made, "bind") and hasattr(made, "get_mask_sizes") else None


def hyperparameters(memory: str) -> dict[str, Any]:
    """Names and defaults of a memory's plain constructor arguments, in the order of its signature.

    Those of a memory of items begin with ``path``, the file of its store; empty keeps it in memory.
    """
    if memory not in MEMORIES:  # none, or a memory that was given and not chosen by its name
        return {}
    made = MEMORIES.get(memory)
    parameters = inspect.signature(made).parameters.values()
    plain = {p.name: p.default for p in parameters if isinstance(p.default, PLAIN)}
    return {"path": "", **plain} if kind_of_class(made) == "store" else plain


def starting_settings(memory: str, tokens: int) -> dict[str, Any]:
    """What the app begins with: a budget that the text at hand overflows, so that one can watch it forget."""
    settings = hyperparameters(memory)
    if memory in MEMORIES and (small := getattr(MEMORIES.get(memory), "small", None)):
        return dict(small)  # constants of a paper's large model would drown a small one
    if settings.get("n_local", 0) >= tokens:  # an episodic memory: a window that the text outgrows, in proportion
        local = max(16, tokens // 4)
        sizes = {"n_local": local, "n_mem": local, "n_init": 4, "chunk": min(32, local), "min_block": 4}
        return {**sizes, "max_block": 48, "repr_topk": 2}
    budget = settings.get("budget")
    return {} if budget is None or budget < tokens else {"budget": max(SMALLEST_BUDGET, tokens // 2)}


def make_memory(name: str, settings: Mapping[str, Any], *, keep: Any = None) -> tuple[Any, list[str]]:
    """A memory with these hyper-parameters, and the lines of code that put it in.

    ``keep`` is a memory of items whose store goes on under the new hyper-parameters. Raises UnknownName for a memory
    nobody registered, BadInput for a hyper-parameter it does not have or refuses, BundleError for a damaged file.
    """
    made = MEMORIES.get(name)
    store = kind_of_class(made) == "store"
    given = {key: value for key, value in settings.items() if not (store and key == "path")}
    path = str(settings.get("path", "")).strip() if store else ""
    imports = []
    if keep is not None:
        given.pop("encoder", None)
        given, source = {"store": keep.store, **given}, "memory.store"
    elif path:
        from workbench.memory.durable import Store

        given, source = {"store": Store(path), **given}, f"Store({path!r})"
        imports = ["from workbench.memory.durable import Store"]
    else:
        source = ""
    try:
        memory = made(**given)
    except TypeError as error:
        raise BadInput(f"{name} cannot be made with {dict(settings)}: {error}; it takes {signature(name)}") from error
    arguments = ", ".join(f"{key}={source if key == 'store' else repr(value)}" for key, value in given.items())
    maker = f"MEMORIES.get({name!r})({arguments})"
    if store:
        return memory, [*imports, f"memory = {maker}", "model.use(memory=memory)"]
    return memory, [f"model.use(memory={maker})"]


def given_memory(memory: Any) -> tuple[Any, list[str], str, dict[str, Any]]:
    """A living memory of items as the app takes it: itself, its lines of code, its name, the settings with a control.

    Raises BadInput for anything else.
    """
    from workbench.models.through_store import is_store, plain_settings

    if not is_store(memory):
        raise BadInput(
            f"give the name of a memory, or a memory of items (StoreMemory), got {type(memory).__name__}; a token "
            "cache goes in by its name and its settings"
        )
    controls = hyperparameters(memory.slug)
    settings = {name: value for name, value in plain_settings(memory).items() if name in controls}
    return memory, ["model.use(memory=memory)  # the memory that was given"], memory.slug, settings


def signature(memory: str) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in hyperparameters(memory).items()) or "no plain arguments"
