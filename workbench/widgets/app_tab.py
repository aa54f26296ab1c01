"""What every tab of the app has in common, and the small things several of them need."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as w
import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from workbench.widgets.app import Workbench
    from workbench.widgets.matrix import MatrixView


class Tab:
    """One page of the app: ``view`` is its widget, ``draw`` fills it, ``static`` is the same as plain HTML.

    ``follows`` names the choices (beside model, kernel, memory and text) that make its picture out of date.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    follows: ClassVar[frozenset[str]] = frozenset()
    map: MatrixView

    def __init__(self, app: Workbench):
        self.app, self.state, self.session = app, app.state, app.session
        self.view = w.VBox(self.build())

    def build(self) -> list[w.Widget]:
        """The widgets of the page, made once."""
        return []

    def draw(self) -> None:
        """Show what the session holds now; raises WorkbenchError when it cannot be shown."""

    def static(self) -> str:
        return ""

    def write_down(self, *lines: str) -> None:
        for line in lines:
            self.app.code.add(line)


def as_array(values: Any) -> np.ndarray:
    """Whatever a trace returns (tensor or array) as float32 numpy."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, np.float32)


def plane_stack(values: Any) -> np.ndarray:
    """(..., R, C) of one text to (n, R, C)."""
    array = as_array(values)
    return array.reshape(-1, *array.shape[-2:])


def img(picture: Image, alt: str, width: int = 620) -> str:
    """A PIL picture as an <img> that needs no file beside it."""
    buffer = io.BytesIO()
    picture.convert("P", colors=128).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{data}">'


def cell(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{value:.4g}"
    if isinstance(value, (list, tuple)) and len(value) > 12:
        return html.escape(f"{value[0]} … {value[-1]} ({len(value)})")
    if value is None:
        return ""
    return html.escape(str(value))


def bar(value: Any, top: float) -> str:
    """The attribute that paints a bar behind a cell, or nothing."""
    if not top > 0 or not value > 0:
        return ""
    return f' class="wb-bar-cell" style="--share:{100 * value / top:.1f}%"'


def table(frame: pd.DataFrame, *, most: int = 500, caption: str = "", bars: Sequence[str] = ()) -> str:
    """A data frame as an HTML table; columns named in ``bars`` get a bar behind each number, from 0 to their maximum.

    Beyond ``most`` rows it says how many are left out.
    """
    tops = [float(frame[column].max()) if column in bars and len(frame) else 0.0 for column in frame.columns]
    head = "".join(f'<th scope="col">{html.escape(str(column))}</th>' for column in frame.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td{bar(value, top)}>{cell(value)}</td>' for value, top in zip(record, tops))}</tr>"
        for record in frame.head(most).itertuples(index=False)
    )
    left = f'<div class="wb-note">{len(frame) - most:,} more rows are not shown</div>' if len(frame) > most else ""
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = f"{title}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wb-scroll"><table class="wb-table">{body}</table></div>{left}'


def bytes_text(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def seconds_text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{max(1, round(1000 * seconds))} ms"
