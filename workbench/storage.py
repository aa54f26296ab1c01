"""Atomic writes: a file is either the old one or the new one, never half of each."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from workbench.errors import StorageError


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; on success it replaces ``path``, on any error ``path`` is untouched."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; choose a folder you may write to"
        ) from error
    try:
        text = None if "b" in mode else "utf-8"
        with os.fdopen(handle, mode, encoding=text, newline=None if text is None else "") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"writing {path} failed: {error.strerror or error}; the file that stood there is unchanged"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_text(path: str | Path, text: str) -> Path:
    with atomic_write(path) as file:
        file.write(text)
    return Path(path)


def write_bytes(path: str | Path, data: bytes) -> Path:
    with atomic_write(path, "wb") as file:
        file.write(data)
    return Path(path)


def cache_dir(*parts: str) -> Path:
    """The user's cache folder of this package (``WORKBENCH_CACHE`` overrides it); not created here."""
    root = os.environ.get("WORKBENCH_CACHE")
    if not root:
        from platformdirs import user_cache_dir

        root = user_cache_dir("memory-workbench")
    return Path(root).joinpath(*parts)
