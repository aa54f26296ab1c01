"""The inspector's table of an episodic memory: one line an event and layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.cache._event_store import Stored
    from workbench.memory.cache._retriever import Retriever

COLUMNS = (
    "event", "layer", "start", "end", "length", "token_ids", "peak_surprise", "kind", "representatives",
    "representative_scores", "last_score", "buffer", "retrieved", "last_used", "place",
)  # fmt: skip


def events_frame(stored: Sequence[Stored], retriever: Retriever) -> pd.DataFrame:
    """Scores and buffers are of the last pass; events that are younger than it have no score."""
    import pandas as pd

    buffers = {
        (layer, event): name
        for layer, both in retriever.last.items()
        for name, chosen in zip(("similarity", "contiguity"), both)
        for event in chosen
    }
    known = {layer: np.asarray(scores.tolist()) for layer, scores in retriever.scores.items()}
    lines = []
    for event in stored:
        for layer in range(len(event.representatives)):
            scores, last = known.get(layer, ()), buffers.get((layer, event.event), "-")
            score = float(scores[event.event]) if event.event < len(scores) else float("nan")
            lines.append({**_line(event, layer, retriever), "last_score": score, "buffer": last})
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _line(event: Stored, layer: int, retriever: Retriever) -> dict[str, Any]:
    places, scores = event.representatives[layer]
    order = np.argsort(-scores.max(0), kind="stable") if scores.ndim == 2 else np.arange(len(places))
    best: dict[int, float] = {}
    for place, score in zip(places[:, order].ravel().tolist(), scores[:, order].ravel().tolist()):
        best[event.start + place] = max(score, best.get(event.start + place, 0.0))
    ranked = sorted(best, key=lambda place: -best[place])
    known = event.surprise[~np.isnan(event.surprise)]
    return {
        "event": event.event, "layer": layer, "start": event.start, "end": event.end, "length": event.length,
        "token_ids": event.token_ids.tolist(), "peak_surprise": float(known.max()) if len(known) else float("nan"),
        "kind": event.kind, "representatives": ranked,
        "representative_scores": [round(best[place], 3) for place in ranked],
        "retrieved": int(retriever.retrieved[layer, event.event]),
        "last_used": int(retriever.last_used[layer, event.event]),
        "place": retriever.archive.place(event.event),
    }  # fmt: skip
