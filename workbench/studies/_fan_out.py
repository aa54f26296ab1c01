"""One function over many independent cells of a study, in this process or in several, always in the order given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from workbench.studies.base import Progress

C = TypeVar("C")
R = TypeVar("R")


def fan_out(work: Callable[[C], R], cells: Sequence[C], processes: int, progress: Progress, label: str) -> Iterator[R]:
    """``work(cell)`` for every cell. ``work`` must be picklable (a module's function, or a partial of one) when
    ``processes`` > 1; never more processes than cores or cells. Rows do not depend on the number of processes.
    """
    processes = min(processes, len(cells), os.cpu_count() or 1)
    if processes <= 1:
        yield from (work(cell) for cell in progress(cells, label))
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # CUDA does not survive a fork, and one thread each: the cells are tiny and there are as many as cores.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        yield from progress(pool.map(work, cells), label, total=len(cells))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
