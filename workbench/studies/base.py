"""What a study is: one paper's key experiment at two scales, the paper's claims with their tests, and one figure.

A paper is one file, ``workbench/studies/<slug>.py`` (dashes become underscores)::

    class Sirllm(Study):
        slug, title = "sirllm", "SirLLM"
        scales = {"quick": Scale("quick", {"groups": 40}, seconds=20), "full": Scale("full", {...}, 400, ("cuda",))}
        claims = (Claim("C1", "recall(SirLLM) > recall(StreamingLLM)", "card, headline claim 1", recall_claim),)

        def run(self, scale, seed, progress): ...      # a tidy frame
        def figure(self, live, reported, recorded): ...

    STUDIES.register("sirllm")(Sirllm())
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.errors import BadInput, UnknownName, WorkbenchError
from workbench.registry import Registry
from workbench.statistics import HOLDS, INCONCLUSIVE, NOT_REPRODUCED, VERDICTS, Interval, verdict

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

T = TypeVar("T")

#: Modules of this folder that are machinery, not papers.
MACHINERY = ("cells", "gallery", "gallery_page", "needs", "ray_backend", "record", "result", "runner")


class NeedsUnmet(WorkbenchError):
    """A scale needs something that this machine lacks (a GPU, a network, a data file); the message says what to do."""


@dataclass(frozen=True)
class Scale:
    """One size of an experiment.

    ``settings`` are the study's own numbers (JSON values); the runner adds ``device`` ("cpu", "cuda"). ``threads``
    (default 1) is the number of torch threads a cell runs with, fixed so that every back end gives the same rows.
    ``seconds`` is the expected wall time of one seed. ``needs``: "cuda", "hub", "hub:org/name", "data:books".
    """

    name: str
    settings: Mapping[str, Any]
    seconds: float
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", dict(self.settings))


@dataclass(frozen=True)
class Outcome:
    """What a claim's test found: a verdict, an effect with its interval, the number of observations, and a note.

    ``threshold`` is the number that the effect was held against: where pictures draw their line.
    """

    verdict: str
    effect: float
    low: float
    high: float
    n: int
    note: str = ""
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise BadInput(f"verdict {self.verdict!r} is not one of {', '.join(map(repr, VERDICTS))}")

    @classmethod
    def of(cls, interval: Interval, threshold: float = 0.0, direction: str = ">", note: str = "") -> Outcome:
        """The outcome of "effect ``direction`` threshold" for an interval from ``workbench.statistics``."""
        return cls(verdict(interval.low, interval.high, threshold, direction), *interval, note, threshold)

    @classmethod
    def weakest(cls, outcomes: Sequence[Outcome], note: str | None = None) -> Outcome:
        """The weakest link: not reproduced before inconclusive before holds, then the smaller effect; all notes."""
        rank = {NOT_REPRODUCED: 0, INCONCLUSIVE: 1, HOLDS: 2}
        found = min(outcomes, key=lambda outcome: (rank[outcome.verdict], outcome.effect))
        told = "; ".join(outcome.note for outcome in outcomes) if note is None else note
        return replace(found, note=told)

    @classmethod
    def weakest_of(cls, outcomes: Mapping[str, Outcome]) -> Outcome:
        """``weakest`` of named outcomes, each note behind its name."""
        return cls.weakest([replace(outcome, note=f"{name}: {outcome.note}") for name, outcome in outcomes.items()])

    @classmethod
    def over_all(cls, values: Any, threshold: float, direction: str, note: str) -> Outcome:
        """Median, smallest and largest of values that were chosen and are no draws; judged at the worst of them."""
        import numpy as np

        found = np.asarray(values, dtype=float)
        if not len(found):
            return cls.unmeasured(note)
        interval = Interval(float(np.median(found)), float(found.min()), float(found.max()), len(found))
        return cls.of(interval, threshold, direction, note)

    @classmethod
    def unmeasured(cls, note: str) -> Outcome:
        """Inconclusive because the run holds nothing that bears on the claim; the note says why."""
        return cls("inconclusive", math.nan, math.nan, math.nan, 0, note)


@dataclass(frozen=True)
class Claim:
    """One inequality of the paper. ``source`` says where it stands; ``test`` judges a study's tidy frame."""

    id: str
    statement: str
    source: str
    test: Callable[[pd.DataFrame], Outcome]
    scales: tuple[str, ...] = ("quick", "full")


@dataclass
class Progress:
    """Progress bars on stderr (a widget in a notebook): ``for item in progress(items, "groups"): ...``."""

    label: str = ""
    quiet: bool = False

    def __call__(self, items: Iterable[T], label: str = "", total: int | None = None) -> Iterator[T]:
        from tqdm.auto import tqdm

        text = " ".join(part for part in (self.label, label) if part)
        yield from tqdm(items, desc=text, total=total, disable=self.quiet, leave=False)

    def say(self, text: str) -> None:
        from tqdm.auto import tqdm

        if not self.quiet:
            import sys

            tqdm.write(f"{self.label}: {text}" if self.label else text, file=sys.stderr)


class Study(ABC):
    """One paper's experiment. Instances hold no state: ``run`` gets everything from the scale and the seed."""

    slug: str
    title: str
    scales: Mapping[str, Scale] = MappingProxyType({})
    claims: tuple[Claim, ...] = ()

    @abstractmethod
    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        """One cell: a tidy frame, one row an observation; the same (scale, seed) gives the same rows.

        ``scale.settings["device"]`` says where to compute. The names in ``workbench.provenance.COLUMNS`` are the
        runner's (``seed`` may be given if it is this seed).
        """

    @abstractmethod
    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        """The paper's figure: its reported numbers, the recorded run and the live run; any of them may be missing."""

    def scale(self, name: str) -> Scale:
        if name not in self.scales:
            raise UnknownName(f"scale of {self.slug}", name, self.scales)
        return self.scales[name]

    def judge(self, frame: pd.DataFrame, scale: str) -> dict[str, Outcome]:
        """Every claim that this scale can test, judged on ``frame``."""
        return {claim.id: claim.test(frame) for claim in self.claims if scale in claim.scales}

    def claim_rows(self, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
        """What each claim says, and what was found: id, statement, source, and the fields of its outcome."""
        claims = {claim.id: claim for claim in self.claims}
        return [
            {"id": key, "statement": claims[key].statement, "source": claims[key].source, **asdict(outcome)}
            for key, outcome in outcomes.items()
        ]

    def claims_frame(self, frame: pd.DataFrame, scale: str) -> pd.DataFrame:
        """The claims judged on ``frame``, a row each: what ``workbench.views.claims_table`` draws."""
        import pandas as pd

        columns = ["id", "statement", "source", *(field.name for field in fields(Outcome))]
        return pd.DataFrame(self.claim_rows(self.judge(frame, scale)), columns=columns)


STUDIES: Registry[Study] = Registry("study", ["workbench.studies"], "memory_workbench.studies", not_slugs=MACHINERY)
