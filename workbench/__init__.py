"""Memory Workbench: load a model, swap its attention kernel or its memory mechanism, and look.

    >>> import workbench as wb
    >>> model = wb.load("embedded")                       # doctest: +SKIP
    >>> model.use(attention="flash-attention")            # doctest: +SKIP
    >>> model.trace("The key of Ada is under the mat.")   # doctest: +SKIP

Importing the package is cheap: everything heavy (torch, transformers, altair) is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench._version import __version__
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.models import LoadedModel, load
    from workbench.studies import run
    from workbench.widgets import Workbench

_LAZY = {
    "load": "workbench.models",
    "LoadedModel": "workbench.models",
    "run": "workbench.studies",
    "Workbench": "workbench.widgets",
}

__all__ = ["LoadedModel", "Workbench", "WorkbenchError", "__version__", "load", "run"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted(__all__)
