"""What a run hands back: the rows, the verdict on every claim, and the paper's figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.studies.base import STUDIES, Outcome

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd


@dataclass
class Result:
    """One study at one scale over all seeds. ``seconds`` is the computing time of its cells, reused ones included."""

    slug: str
    scale: str
    frame: pd.DataFrame
    outcomes: dict[str, Outcome]
    seconds: float
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether every claim that was tested holds."""
        return all(outcome.verdict == "holds" for outcome in self.outcomes.values())

    def claims(self) -> list[dict[str, Any]]:
        """One entry a claim: id, statement, source, verdict, effect, low, high, n, note, threshold."""
        return STUDIES.get(self.slug).claim_rows(self.outcomes)

    def claims_frame(self) -> pd.DataFrame:
        """``claims()`` as a table."""
        import pandas as pd

        columns = ["id", "statement", "source", "verdict", "effect", "low", "high", "n", "note", "threshold"]
        return pd.DataFrame(self.claims(), columns=columns)

    def figure(self) -> alt.Chart:
        """The study's figure with the paper's reported numbers and the recorded run beside these rows."""
        reported, recorded = published(self.slug)
        return STUDIES.get(self.slug).figure(self.frame, reported, recorded)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: slug, scale, seconds, claims and provenance; a number that was not measured is null."""
        return {
            "slug": self.slug,
            "scale": self.scale,
            "seconds": round(self.seconds, 3),
            "claims": [{key: plain(value) for key, value in claim.items()} for claim in self.claims()],
            "provenance": self.provenance,
        }


def plain(value: Any) -> Any:
    """NaN and infinities have no JSON spelling; numpy scalars become Python's."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def published(slug: str) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """(reported, recorded) of a study; ``None`` where nothing was written down (a study from another package)."""
    from workbench_datasets import recorded, reported

    scale = "full" if "full" in recorded.scales(slug) else next(iter(recorded.scales(slug)), "full")
    return (
        reported.load(slug) if reported.exists(slug) else None,
        recorded.load(slug, scale) if recorded.exists(slug) else None,
    )
