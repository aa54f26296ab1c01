"""The list task for the small list models: prompts of ``workbench_datasets.list_prompts`` as ``Remaining`` trials.

Scored by ``workbench.tasks.remaining``: accuracy over length and place, and where heads look.
"""

from __future__ import annotations

from workbench.errors import BadInput
from workbench.tasks.remaining import Remaining


def list_trials(kind: str, n: int, size: int, *, seed: int = 0) -> list[Remaining]:
    """``n`` prompts of ``size`` things that no training has seen; ``kind``: "item" or "colour".

    Raises BadInput for an unknown kind and a size outside 2 to 40.
    """
    from workbench_datasets.list_prompts import list_prompts

    try:
        made = list_prompts(kind, n, size, seed=seed, split="test")
    except ValueError as error:
        raise BadInput(str(error)) from error
    rows = zip(made.ids.tolist(), made.listed.tolist(), made.place.tolist(), made.parts.tolist())
    return [
        Remaining(tuple(ids[:-1]), ids[-1], tuple(sorted(set(listed))), place, size, tuple(parts[:-1]))
        for ids, listed, place, parts in rows
    ]
