"""Saving the app's state to a bundle and opening it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from workbench.errors import BundleError
from workbench.widgets.app_controls import NARROW, button, pressed, row

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.models.edited import PackedEdits
    from workbench.widgets.app import Workbench

#: The name under which a bundle keeps the app's choices.
KIND = "workbench-app"


def save(app: Workbench, path: str | Path) -> Path:
    """Write the choices of ``app``, and the edits of its model if there are any, atomically.

    Raises StorageError where nothing can be written.
    """
    from workbench.models.bundle import save_bundle
    from workbench.models.edited import is_edits

    state: dict[str, Any] = {"kind": KIND, "state": app.state.as_dict()}
    memory, tensors = app.session.need_model().memory, None
    if is_edits(memory) and len(memory):
        tensors, state["edits"] = memory.pack()
    return Path(save_bundle(path, state, tensors))


def read(path: str | Path) -> dict[str, Any]:
    """The choices that ``save`` wrote; raises BundleError for anything else."""
    return _opened(path)[0]["state"]


def saved_edits(path: str | Path) -> PackedEdits | None:
    """The edits that ``save`` wrote beside them; None when there were none. Raises BundleError as ``read`` does."""
    from workbench.models.edited import PackedEdits

    whole, tensors = _opened(path)
    return PackedEdits(whole["state"]["memory"], tensors, whole["edits"], str(path)) if "edits" in whole else None


def _opened(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from workbench.models.bundle import load_bundle

    state, tensors = load_bundle(path)
    if state.get("kind") != KIND:
        raise BundleError(f"{path} is a bundle, but not one of the Workbench app; open it with load_bundle")
    return state, tensors


class FileRow:
    """A field for the path and two buttons."""

    def __init__(self, app: Workbench):
        self.app = app
        self.path = w.Text(
            "workbench-state",
            description="Bundle",
            style=NARROW,
            layout=w.Layout(width="320px"),
            tooltip="path of the bundle, relative to the notebook",
        )
        self.save = button("Save state", "write every choice, and the edits of the model, to this bundle")
        self.open = button("Open state", "go to the state in this bundle")
        pressed(self.save, self._save)
        pressed(self.open, self._open)
        self.view = row(self.path, self.save, self.open)

    def _save(self) -> None:
        with self.app.working("saving"):
            path = self.app.save(self.path.value)
            self.app.code.add(f"app.save({str(path)!r})")

    def _open(self) -> None:
        with self.app.working("opening"):
            self.app.restore(read(self.path.value), saved_edits(self.path.value))
            self.app.code.add(f"app = Workbench.open({self.path.value!r})")
