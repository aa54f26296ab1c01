"""What a person touches in a notebook: the ``Workbench`` app, the inspector of a memory of items, the matrix canvas.

>>> from workbench.widgets import Workbench
>>> Workbench("embedded", text="The key of Ada lies under the mat.")      # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.widgets.app import Workbench
    from workbench.widgets.matrix import MatrixView
    from workbench.widgets.store_view import StoreView

_LAZY = {
    "MatrixView": "workbench.widgets.matrix",
    "StoreView": "workbench.widgets.store_view",
    "Workbench": "workbench.widgets.app",
}

__all__ = ["MatrixView", "StoreView", "Workbench", "app_page_path", "voila_options"]


def app_page_path() -> Path:
    """The notebook that ``workbench app`` serves as a page (it also opens in JupyterLab and Notebook 7)."""
    return Path(__file__).parent / "app_page.ipynb"


def voila_options() -> tuple[list[str], dict[str, str]]:
    """Arguments and environment under which Voila serves that page without asking another host for anything."""
    folder = str(Path(__file__).parent / "jupyter")
    paths = [folder, *filter(None, [os.environ.get("JUPYTER_PATH")])]
    return ["--template=workbench"], {"JUPYTER_PATH": os.pathsep.join(paths)}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
