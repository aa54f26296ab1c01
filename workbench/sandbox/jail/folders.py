"""What the code left in its folder: collected without following anything, and removed whatever shape it has."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

DEPTH = 16


def collect(box: str, given: dict[str, str], limit: int) -> Iterator[tuple[str, bytes | None, str]]:
    """New and changed plain files of ``box`` in order of name, ``limit`` bytes in all: (name, content, why left out).

    Nothing may run in ``box`` any more. ``given``: sha256 of the files that were there before. Links are never
    followed, and a file with a second name is left out, since the other name may lie outside.
    """
    left = limit
    for name, path, info in _walk(box, "", 0):
        if info is None:
            yield name, None, f"deeper than {DEPTH} folders"
        elif not stat.S_ISREG(info.st_mode):
            yield name, None, "a link" if stat.S_ISLNK(info.st_mode) else "not a plain file"
        elif info.st_nlink != 1:
            yield name, None, "it has a second name (hard link)"
        elif info.st_size > left and not given.get(name):
            yield name, None, f"{info.st_size:,} bytes are more than may be returned"
        else:
            content = _read(path)
            if hashlib.sha256(content).hexdigest() == given.get(name):
                continue
            if len(content) > left:
                yield name, None, f"{len(content):,} bytes are more than may be returned"
                continue
            left -= len(content)
            yield name, content, ""


def _walk(folder: str, prefix: str, depth: int) -> Iterator[tuple[str, str, os.stat_result | None]]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path, shown = os.path.join(folder, name), os.fsencode(prefix + name).decode("utf-8", "backslashreplace")
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode):
            yield shown, path, info
        elif depth >= DEPTH:
            yield shown, path, None
        else:
            os.chmod(path, 0o700)
            yield from _walk(path, f"{prefix}{name}/", depth + 1)


def _read(path: str) -> bytes:
    os.chmod(path, 0o600)
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        return file.read()


def usage(folder: str, stop_bytes: int, stop_files: int) -> tuple[int, int]:
    """Bytes on disk and number of entries below ``folder``; stops counting once either is past its bound.

    The folder changes while it is counted, and the other side chooses its shape: what vanishes counts as nothing.
    """
    size = count = 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    count += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    if size > stop_bytes or count > stop_files:
                        return size, count
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # a path too long or closed to us: what cannot be counted counts as too much
            return stop_bytes + 1, count
    return size, count


def sweep(folder: str, parent: int | None = None) -> None:
    """Remove ``folder`` and everything in it, whatever its depth (no path is ever built) and its permissions.

    Nothing may run in it any more: the way up is by "..". ``parent``: an open folder that ``folder`` is relative to.
    """
    os.chmod(folder, 0o700, dir_fd=parent)
    here = os.open(folder, _FOLDER, dir_fd=parent)
    above: list[tuple[str, list[str]]] = []  # name of each folder on the way down, folders left to do beside it
    try:
        left = _empty(here)
        while left or above:
            if left:
                name = left.pop()
                os.chmod(name, 0o700, dir_fd=here)
                below = os.open(name, _FOLDER, dir_fd=here)
                above.append((name, left))
                os.close(here)
                here = below
                left = _empty(here)
            else:
                up = os.open("..", _FOLDER, dir_fd=here)
                os.close(here)
                here = up
                name, left = above.pop()
                os.rmdir(name, dir_fd=here)
    finally:
        os.close(here)
    os.rmdir(folder, dir_fd=parent)


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _empty(handle: int) -> list[str]:
    """Unlink all but folders; returns the names of those."""
    inner = []
    with os.scandir(handle) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                inner.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=handle)
    return inner
