"""What a person touches in a notebook: the ``Workbench`` app and the matrix canvas.

>>> from workbench.widgets import Workbench
>>> Workbench("embedded", text="The key of Ada lies under the mat.")      # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.widgets.app import Workbench
    from workbench.widgets.matrix import MatrixView

_LAZY = {"Workbench": "workbench.widgets.app", "MatrixView": "workbench.widgets.matrix"}

__all__ = ["MatrixView", "Workbench", "app_page_path"]


def app_page_path() -> Path:
    """The notebook that ``workbench app`` serves as a page (it also opens in JupyterLab and Notebook 7)."""
    return Path(__file__).parent / "app_page.ipynb"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
