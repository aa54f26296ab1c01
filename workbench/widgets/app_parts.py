"""The small pieces of the app that ipywidgets does not have: head grid, token strip, status line, code strip.

Each is one anywidget with its script beside it in ``static/``; nothing is fetched, arrays travel as raw bytes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anywidget
import numpy as np
import traitlets as t

from workbench.errors import WorkbenchError
from workbench.views import palettes
from workbench.widgets.app_state import TURN, calm

if TYPE_CHECKING:
    from workbench.models import LoadedModel

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"


def levels(maps: np.ndarray) -> np.ndarray:
    """uint8 levels of attention maps (..., R, C): the square root of each map over its own maximum.

    Probabilities of a causal row fall like 1/n, so a linear scale shows the first rows only.
    """
    maps = np.nan_to_num(np.asarray(maps, np.float32), nan=0.0)
    top = maps.max(axis=(-2, -1), keepdims=True)
    return (255 * np.sqrt(np.clip(maps, 0, None) / np.where(top > 0, top, 1))).round().astype(np.uint8)


class _Part(anywidget.AnyWidget):
    """Takes what the browser sends one message at a time: kernels may answer two messages on two threads."""

    def set_state(self, sync_data: dict[str, object]) -> None:
        with TURN:
            super().set_state(sync_data)


class HeadPicker(_Part):
    """Thumbnails of every head; ``layer`` and ``head`` are the chosen one (click, arrow keys)."""

    _esm = STATIC / "head_picker.js"
    layers = t.List(t.Int()).tag(sync=True)
    heads = t.Int(0).tag(sync=True)
    size = t.Int(0).tag(sync=True)
    levels = t.Bytes(b"").tag(sync=True)
    notes = t.List(t.Unicode()).tag(sync=True)
    palette = t.Bytes(b"").tag(sync=True)
    layer = t.Int(0).tag(sync=True)
    head = t.Int(0).tag(sync=True)

    def __init__(self, **kwargs: object):
        super().__init__(palette=palettes.table("viridis").tobytes(), **kwargs)

    def show(self, layers: list[int], maps: np.ndarray, notes: list[str]) -> None:
        """``maps`` (layers, heads, size, size), one note per head in the same order."""
        with self.hold_sync():
            self.layers, self.heads, self.size = list(layers), int(maps.shape[1]), int(maps.shape[-1])
            self.notes = list(notes)
            self.levels = levels(maps).tobytes()


class TokenStrip(_Part):
    """Tokens with a bar each; ``selected`` is the position that was clicked, -1 for none."""

    _esm = STATIC / "token_strip.js"
    tokens = t.List(t.Unicode()).tag(sync=True)
    values = t.Bytes(b"").tag(sync=True)
    top = t.Float(1.0).tag(sync=True)
    start = t.Int(0).tag(sync=True)
    selected = t.Int(-1).tag(sync=True)
    title = t.Unicode("").tag(sync=True)
    unit = t.Unicode("").tag(sync=True)

    def show(self, tokens: list[str], values: np.ndarray, *, start: int, title: str, unit: str) -> None:
        values = np.asarray(values, np.float32)
        finite = values[np.isfinite(values)]
        with self.hold_sync():
            self.tokens, self.start, self.title, self.unit = list(tokens), start, title, unit
            self.top = float(np.quantile(finite, 0.98)) if finite.size else 1.0
            self.values = values.tobytes()


class StatusStrip(anywidget.AnyWidget):
    """What runs now, how far it is (``fraction`` in 0..1, -1 hides the bar), and the last error."""

    _esm = STATIC / "status_strip.js"
    _css = STATIC / "app.css"
    message = t.Unicode("").tag(sync=True)
    fraction = t.Float(-1.0).tag(sync=True)
    error = t.Unicode("").tag(sync=True)

    @contextlib.contextmanager
    def working(
        self, what: str, *, keep_error: bool = False, model: LoadedModel | None = None, tokens: int = 0
    ) -> Iterator[StatusStrip]:
        """Show that something runs, one thing at a time; an error is shown here instead of going up the stack."""
        with TURN:
            self.message, self.fraction = f"{what} …", 0.02
            if not keep_error:
                self.error = ""
            try:
                with calm(model, tokens):
                    yield self
            except WorkbenchError as error:
                self.error = str(error)
            except KeyboardInterrupt:
                self.error = f"stopped while {what}; nothing was changed"
            except Exception as error:  # a widget's callback has nobody above it who could show this
                log.exception("while %s", what)
                self.error = f"{type(error).__name__} while {what}: {error}"
            finally:
                self.message, self.fraction = "", -1.0

    @contextlib.contextmanager
    def counting(self, what: str) -> Iterator[Callable[[float], None]]:
        """A bar under something that shows its own errors: the function to call with the fraction done."""
        self.message, self.fraction = f"{what} …", 0.02
        try:
            yield lambda done: self.set_trait("fraction", float(done))
        finally:
            self.message, self.fraction = "", -1.0


class CodeStrip(anywidget.AnyWidget):
    """Every action as the line of code that does the same; the last one in front, all of them on request."""

    _esm = STATIC / "code_strip.js"
    lines = t.List(t.Unicode()).tag(sync=True)
    app_id = t.Unicode("").tag(sync=True)

    def add(self, line: str) -> None:
        once = line.startswith(("import ", "from "))
        if line not in (self.lines if once else self.lines[-1:]):
            self.lines = [*self.lines, line]
