"""What studies share that train one variant after the other until their time is up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput, WorkbenchError

if TYPE_CHECKING:
    from workbench.studies.base import Progress
    from workbench.training.tiny import Trained


def had(variant: str, train: Callable[[], Trained], left: float, progress: Progress) -> Trained | None:
    """What ``train`` gives; None, with the reason said, where no time is ``left`` or the training cannot be had whole.

    Settings that no model can have (BadInput) are a mistake of the study, not of the machine, and are raised.
    """
    if left <= 0:
        progress.say(f"{variant}: left out, the time is up")
        return None
    try:
        made = train()
    except BadInput:
        raise
    except (RuntimeError, WorkbenchError) as error:  # a card that runs out of memory must not cost the others
        progress.say(f"{variant}: left out, {type(error).__name__}: {error}")
        return None
    if not made.complete:
        progress.say(f"{variant}: left out, the time was up before its last step")
        return None
    return made


def learned(losses: Any, every: int = 50) -> Iterator[tuple[float, int, str, float]]:
    """(step, number of the seed, "loss" or "right", mean of the ``every`` steps up to it) of ``Trained.losses``."""
    numbers = {seed: i for i, seed in enumerate(dict.fromkeys(losses["seed"]))}
    blocks = losses.assign(x=((losses["step"] - 1) // every + 1) * every).groupby(["seed", "x"])[["loss", "right"]]
    for (seed, x), row in blocks.mean().iterrows():
        for metric in ("loss", "right"):
            yield x, numbers[seed], metric, row[metric]


def made_by(made: Trained, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What fixed the first of these models, for the header of the file that it ships in: recipe, seed, curriculum."""
    return {**made.record["recipe"], "seeds": made.record["seeds"][:1], "stages": settings["stages"],
            "sequences": settings["sequences"]}  # fmt: skip
