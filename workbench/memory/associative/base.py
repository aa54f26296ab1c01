"""What every memory of patterns says: a pattern goes in, a cue brings back what it fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workbench.errors import BadInput
from workbench.memory.base import EventLog, settings_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Recollection:
    """What a cue brought back.

    ``code`` is the memory's own representation of the cue, ``familiarity`` in [0, 1] how well it is known, ``items``
    the stored items nearest to it with ``overlaps`` in [0, 1], best first, ``scores`` one number per class (empty
    without classes), ``note`` what was unusual ("empty input").
    """

    code: np.ndarray
    familiarity: float
    items: tuple[int, ...] = ()
    overlaps: tuple[float, ...] = ()
    scores: dict[Any, float] = field(default_factory=dict)
    note: str = ""

    @property
    def label(self) -> Any:
        """The class with the highest score; None without classes."""
        return max(self.scores, key=lambda name: self.scores[name]) if self.scores else None


class AssociativeMemory(ABC):
    """Base of the memories of patterns: item numbers count from 0, and from 0 again after a reset."""

    slug: ClassVar[str]
    n_inputs: int

    def __init__(self) -> None:
        self._log = EventLog()

    @abstractmethod
    def write(self, pattern: Any, label: Any = None) -> int:
        """Store one binary pattern (n_inputs,) on a single exposure; returns its item number."""

    @abstractmethod
    def read(self, cue: Any, k: int = 5) -> Recollection:
        """What the cue (n_inputs,) brings back, with at most ``k`` nearest items; nothing that is held changes."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the weights."""

    @abstractmethod
    def contents(self) -> pd.DataFrame:
        """One row per stored item."""

    def events(self) -> EventLog:
        return self._log

    def settings(self) -> dict[str, Any]:
        """The constructor's hyper-parameters as they stand."""
        return settings_of(self)

    def checked(self, pattern: Any) -> np.ndarray:
        """``pattern`` as a bool vector (n_inputs,); raises BadInput for another size or values beside 0 and 1."""
        try:
            array = np.asarray(pattern)
        except ValueError as error:  # rows of different lengths
            raise BadInput(f"a pattern has {self.n_inputs} binary values here, got rows that do not fit") from error
        if array.dtype == object or array.size != self.n_inputs:
            raise BadInput(f"a pattern has {self.n_inputs} binary values here, got {array.size} in shape {array.shape}")
        if array.dtype != bool and not np.isin(array, (0, 1)).all():
            raise BadInput("a pattern holds only 0 and 1; threshold it first")
        return array.astype(bool).ravel()


def label_of(label: Any) -> Any:
    """``label`` if it can name a class; raises BadInput for a list and the like."""
    if not isinstance(label, Hashable):
        raise BadInput(f"a label names a class: give a number, a text or a tuple, got {type(label).__name__}")
    return label
