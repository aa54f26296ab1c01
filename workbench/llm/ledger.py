"""What the language models of a run cost and how often they had to be helped."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.llm.base import Reply, Usage

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class _Line:
    label: str
    usage: Usage = field(default_factory=Usage)
    answers: int = 0
    retries: int = 0
    repaired: int = 0
    fallbacks: int = 0
    failures: int = 0
    cached: int = 0
    seconds: float = 0.0


class Ledger:
    """Counts of every answer, by model; safe to share between threads.

    ``retries`` are requests beyond the first of an answer (of the transport and for malformed text alike), ``repaired``
    answers that were mended before they were JSON, ``fallbacks`` answers that a rule gave, ``failures`` questions that
    ended in an error.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._reasons: Counter[tuple[str, str, str]] = Counter()

    def note(self, name: str, label: str, reply: Reply, *, failed: str = "") -> None:
        """Add one answer; ``failed`` is the reason when there was none after all tries."""
        with self._lock:
            line = self._lines.setdefault(name, _Line(label))
            line.usage += reply.usage
            line.answers += 1
            line.retries += max(reply.attempts - 1, 0)
            line.repaired += bool(reply.repairs)
            line.fallbacks += reply.fallback is not None
            line.failures += bool(failed)
            line.cached += reply.cached
            line.seconds += reply.seconds
            self._reasons.update((name, "repaired", repair) for repair in set(reply.repairs))
            if reply.fallback is not None:
                self._reasons[name, "fallback", reply.fallback] += 1
            if failed:
                self._reasons[name, "failure", failed] += 1

    def _sum(self, field: str) -> int:
        with self._lock:
            return sum(getattr(line, field) for line in self._lines.values())

    @property
    def usage(self) -> Usage:
        with self._lock:
            return sum((line.usage for line in self._lines.values()), Usage())

    @property
    def answers(self) -> int:
        return self._sum("answers")

    @property
    def retries(self) -> int:
        return self._sum("retries")

    @property
    def repaired(self) -> int:
        return self._sum("repaired")

    @property
    def fallbacks(self) -> int:
        return self._sum("fallbacks")

    @property
    def failures(self) -> int:
        return self._sum("failures")

    def frame(self) -> pd.DataFrame:
        """One row per model: model, label, answers, calls, prompt_tokens, completion_tokens, retries, repaired,
        fallbacks, failures, cached, seconds."""
        import pandas as pd

        columns = ["model", "label", "answers", "calls", "prompt_tokens", "completion_tokens", "retries", "repaired",
                   "fallbacks", "failures", "cached", "seconds"]  # fmt: skip
        with self._lock:
            rows = [
                (name, line.label, line.answers, line.usage.calls, line.usage.prompt_tokens,
                 line.usage.completion_tokens, line.retries, line.repaired, line.fallbacks, line.failures, line.cached,
                 line.seconds)
                for name, line in self._lines.items()
            ]  # fmt: skip
        return pd.DataFrame(rows, columns=columns)

    def reasons(self) -> pd.DataFrame:
        """One row per reason, most frequent first: model, kind (repaired, fallback, failure), reason, n."""
        import pandas as pd

        with self._lock:
            rows = [(*key, n) for key, n in sorted(self._reasons.items(), key=lambda item: (-item[1], item[0]))]
        return pd.DataFrame(rows, columns=["model", "kind", "reason", "n"])

    def __repr__(self) -> str:
        return (
            f"Ledger({self.answers} answers, {self.usage.calls} calls, {self.retries} retries, "
            f"{self.repaired} repaired, {self.fallbacks} by rule)"
        )
