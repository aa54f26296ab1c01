"""Turns on a card that several test processes share: tests run side by side, one that needs it whole runs alone.

Two files, locked with ``flock``, which the system releases when a process dies. ``card`` is held shared, or exclusively
by a test that reads or fills the memory of the whole card. Who wants it passes ``door``: a test that waits for the
whole card keeps the door shut meanwhile, or twenty others that come and go would never leave it a gap.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path, whole: bool) -> Iterator[None]:
    """Hold the card, beside others or alone (``whole``), for as long as the block runs; waits until that can be had."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held, ExitStack() as passing:
        (held if whole else passing).enter_context(_locked(folder / "door", fcntl.LOCK_EX))
        held.enter_context(_locked(folder / "card", fcntl.LOCK_EX if whole else fcntl.LOCK_SH))
        passing.close()
        yield


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, kind)
        yield  # closing the file lets go of it
