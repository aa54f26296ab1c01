"""Items of a store as a table whose rows can be chosen: one page of them travels to the browser, never all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets as t

from workbench.widgets.app_parts import STATIC, _Part
from workbench.widgets.app_state import TURN

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.durable import Item

#: Characters of one cell; the editor shows the whole text.
LONGEST = 180


class StoreTable(_Part):
    """Rows with an ``id`` each; ``selected`` is the chosen one, -1 for none.

    Page Up and Page Down in the table call ``turn(-1)`` and ``turn(1)``.
    """

    _esm = STATIC / "store_table.js"
    columns = t.List(t.Unicode()).tag(sync=True)
    rows: Any = t.List().tag(sync=True)
    label = t.Unicode("").tag(sync=True)
    empty = t.Unicode("").tag(sync=True)
    selected = t.Int(-1).tag(sync=True)

    def __init__(self, empty: str, turn: Callable[[int], Any] = lambda pages: None):
        super().__init__(empty=empty)
        self._turn = turn
        self.on_msg(self._heard)

    def _heard(self, _: Any, content: Mapping[str, Any], buffers: Any) -> None:
        with TURN:
            if content.get("page") in (-1, 1):
                self._turn(content["page"])

    def show(self, frame: pd.DataFrame, label: str, *, bars: Sequence[str] = (), marks: Mapping[int, str] = {}) -> None:
        """Draw a frame with a column ``id``; a float column in ``bars`` gets bars, ``marks`` are CSS classes by id."""
        tops = [float(np.nanmax(frame[c])) if c in bars and len(frame) else 0.0 for c in frame.columns]
        records = zip(frame["id"], frame.itertuples(index=False))
        rows = [
            {
                "id": int(item),
                "cells": [brief(value, str(name)) for name, value in zip(frame.columns, record)],
                "shares": [_share(value, top) for value, top in zip(record, tops)],
                "mark": marks.get(int(item), ""),
            }
            for item, record in records
        ]
        with self.hold_sync():
            self.columns, self.rows, self.label = [str(name) for name in frame.columns], rows, label


def _share(value: Any, top: float) -> float:
    return float(value) / top if top > 0 and value > 0 else 0.0


def brief(value: Any, column: str = "") -> str:
    """One value as a cell: moments as dates, lists by their members, long texts cut."""
    if isinstance(value, Mapping):
        value = [f"{name}: {brief(one)}" for name, one in value.items()]
    if isinstance(value, Iterable) and not isinstance(value, str):
        text = ", ".join(brief(one) for one in value)
    elif value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return ""
    elif hasattr(value, "strftime"):
        text = value.strftime("%Y-%m-%d %H:%M")
    elif isinstance(value, (float, np.floating)):
        text = moment(float(value)) if column == "time" else f"{value:.4g}"
    else:
        text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def in_words(frame: pd.DataFrame, *but: str) -> pd.DataFrame:
    """Every cell as ``brief`` writes it, except in the columns named."""
    import pandas as pd

    columns = {name: frame[name] if name in but else [brief(v, str(name)) for v in frame[name]] for name in frame}
    return pd.DataFrame(columns, columns=list(frame))


def moment(seconds: float) -> str:
    """Seconds since 1970 UTC as a date with minutes."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def worth_showing(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that say something on this page, the id first; moments stand once."""
    import pandas as pd

    out = {"time"} & set(frame) if "when" in frame else set()
    if "index_text" in frame and "text" in frame and (frame["index_text"] == frame["text"]).all():
        out.add("index_text")
    kept = [name for name in frame if name not in out and (name == "id" or not all(map(_blank, frame[name])))]
    shown = frame[kept] if len(frame) else frame
    return pd.DataFrame({"id": shown["id"], **{name: shown[name] for name in shown if name != "id"}})


def _blank(value: Any) -> bool:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str | list | tuple | dict):
        return len(value) == 0
    return value is None or value != value


def items_frame(items: Sequence[Item]) -> pd.DataFrame:
    """Items as a frame of what tells them apart."""
    import pandas as pd

    names = ["id", "key", "kind", "text", "time", "tags"]
    return pd.DataFrame([[getattr(item, name) for name in names] for item in items], columns=names)
