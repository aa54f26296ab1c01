"""Errors that teach: each says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkbenchError(Exception):
    """Base of every error this package raises on purpose."""


class BadInput(WorkbenchError, ValueError):
    """An argument is outside what the function accepts; the message names the argument and the legal values."""


class UnknownName(BadInput, KeyError):
    """A model, kernel, memory or study that nobody registered; the message suggests the nearest names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name.lower(), self.known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(self.known) or 'none'}"
        super().__init__(f"there is no {kind} called {name!r}; {hint}")

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class ModelError(WorkbenchError):
    """A model cannot be loaded or traced: no model folder, no safetensors, truncated weights, NaN in weights."""


class KernelUnsupported(WorkbenchError):
    """The chosen attention kernel cannot do what the model needs; the message names kernels that can."""


class MemoryError_(WorkbenchError):
    """A memory mechanism refuses an operation (budget exceeded, no pre-rotary keys, state of another model)."""


class BundleError(WorkbenchError):
    """A saved workbench state cannot be opened (other version, missing or damaged part)."""


class DataMissing(WorkbenchError, FileNotFoundError):
    """A data file is absent; the message says exactly which file goes where and where it comes from."""


class StorageError(WorkbenchError, OSError):
    """Writing failed (disk full, read-only folder); nothing that stood before is lost."""
