"""Registries that know a mechanism by its slug without importing it.

One mechanism is one file named after its slug (``sirllm`` is ``.../sirllm.py``, ``flash-attention`` is
``flash_attention.py``), so the names are read from the folder and the module is imported only when it is asked for.
Another package joins through an entry point of the registry's group (``memory_workbench.memories`` and the like).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from typing import Generic, TypeVar

from workbench.errors import BadInput, UnknownName

T = TypeVar("T")


def slug_of(module: str) -> str:
    return module.rsplit(".", 1)[-1].replace("_", "-")


class Registry(Generic[T]):
    """Names to objects of one kind; built-in ones are found in ``packages``, foreign ones by entry point."""

    def __init__(self, kind: str, packages: Iterable[str], group: str, *, not_slugs: Iterable[str] = ()):
        self.kind, self.packages, self.group = kind, tuple(packages), group
        self._not_slugs = frozenset(not_slugs) | {"base"}
        self._known: dict[str, T] = {}
        self._found: dict[str, str] | None = None

    def register(self, name: str) -> Callable[[T], T]:
        """Class or object decorator: ``@MEMORIES.register("sirllm")``."""

        def add(item: T) -> T:
            held = self._known.get(name)
            if held is not None and _origin(held) != _origin(item):
                raise BadInput(f"{self.kind} {name!r} is already registered by {_origin(held)}; choose another name")
            self._known[name] = item
            return item

        return add

    def _modules(self) -> dict[str, str]:
        if self._found is None:
            self._found = {}
            for package in self.packages:
                for info in pkgutil.iter_modules(import_module(package).__path__):
                    if not info.name.startswith("_") and info.name not in self._not_slugs:
                        self._found[slug_of(info.name)] = f"{package}.{info.name}"
        return self._found

    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        return {point.name: point for point in metadata.entry_points(group=self.group)}

    def names(self) -> list[str]:
        return sorted({*self._known, *self._modules(), *self._entry_points()})

    def home(self, name: str) -> str | None:
        """The module of a built-in name, which need not be imported; None for a name from elsewhere."""
        return self._modules().get(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.names()

    def get(self, name: str) -> T:
        """The registered object, importing its module if need be; a misspelt name suggests the nearest."""
        if name not in self._known and name in self._modules():
            import_module(self._modules()[name])
        if name not in self._known and name in self._entry_points():
            self._known.setdefault(name, self._entry_points()[name].load())
        if name not in self._known:
            raise UnknownName(self.kind, str(name), self.names())
        return self._known[name]


def _origin(item: object) -> str:
    return (
        f"{getattr(item, '__module__', type(item).__module__)}.{getattr(item, '__qualname__', type(item).__qualname__)}"
    )
