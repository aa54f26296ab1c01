"""Load a model, swap its attention kernel or its memory in place, and look at what one forward pass left behind.

>>> from workbench.models import load
>>> model = load("embedded")                                  # doctest: +SKIP
>>> with model.use(attention="flash-attention"):              # doctest: +SKIP
...     trace = model.trace("The key of Ada is under the mat.")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.models.attention import KERNELS, AttentionKernel
    from workbench.models.bundle import load_bundle, save_bundle
    from workbench.models.generation import Fed, Generation
    from workbench.models.loaded import LoadedModel
    from workbench.models.loading import load
    from workbench.models.swap import Swap
    from workbench.models.trace import LayerTrace, Trace

_LAZY = {
    "KERNELS": "attention",
    "AttentionKernel": "attention",
    "Fed": "generation",
    "Generation": "generation",
    "LayerTrace": "trace",
    "LoadedModel": "loaded",
    "Swap": "swap",
    "Trace": "trace",
    "load": "loading",
    "load_bundle": "bundle",
    "save_bundle": "bundle",
}

__all__ = [
    "KERNELS",
    "AttentionKernel",
    "Fed",
    "Generation",
    "LayerTrace",
    "LoadedModel",
    "Swap",
    "Trace",
    "load",
    "load_bundle",
    "save_bundle",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
