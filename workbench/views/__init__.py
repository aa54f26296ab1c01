"""Pictures: pure functions from a tidy frame to an Altair chart, at most 5,000 rows each.

Every chart saves itself: ``chart.save("x.svg")`` (or ``.png``, ``.pdf``, ``.html``), without a browser or a network.
Frames of a trace or a memory come from ``workbench.views.frames``; matrices too large for a chart are drawn by
``workbench.views.raster`` (pictures) and ``workbench.widgets.matrix`` (to look into). Nothing is enabled globally.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "workbench.views.heads": ("head_grid", "head_scores", "head_scatter", "head_tokens", "head_links"),
    "workbench.views.tokens": ("token_strip", "token_track", "token_curves"),
    "workbench.views.memories": ("memory_table", "memory_timeline", "event_log", "slot_attention"),
    "workbench.views.layers": ("state_table", "state_similarity", "token_scalars", "recall_by_state"),
    "workbench.views.similarity": ("similarity_map", "image_overlay"),
    "workbench.views.costs": ("cost_bars",),
    "workbench.views.claims": ("claims_table",),
    "workbench.views.graph": ("node_link",),
    "workbench.views.retrieval": ("retrieval_trace",),
    "workbench.views.figures": ("line_with_band", "bars_with_interval", "paper_recorded_live"),
    "workbench.views.theme": ("themed", "bare", "beside", "below", "layered"),
    "workbench.views.raster": ("map_figure", "map_svg"),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__all__: list[str] = []
__all__.extend(sorted(_HOME))


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'workbench.views' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
