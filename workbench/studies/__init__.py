"""One file a paper: scales, a run that returns a tidy frame, claims with verdicts, and the paper's figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.studies.base import STUDIES, Claim, NeedsUnmet, Outcome, Progress, Scale, Study

if TYPE_CHECKING:
    from workbench.studies.result import Result
    from workbench.studies.runner import run

__all__ = ["STUDIES", "Claim", "NeedsUnmet", "Outcome", "Progress", "Result", "Scale", "Study", "run"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from workbench.studies.runner import run

        return run
    if name == "Result":
        from workbench.studies.result import Result

        return Result
    raise AttributeError(f"module 'workbench.studies' has no attribute {name!r}")
