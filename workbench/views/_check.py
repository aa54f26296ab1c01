"""What every view asks of its frame before it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

#: Altair's own limit; a view that would need more says how to draw less.
MAX_ROWS = 5_000


def frame_for(view: str, frame: Any, *, numbers: tuple[str, ...] = (), columns: tuple[str, ...] = ()) -> pd.DataFrame:
    """A copy of ``frame`` that has the columns ``view`` needs, numeric where it must be, within ``MAX_ROWS``.

    Raises BadInput naming the column that is absent or not a number, or the number of rows beyond the cap.
    """
    import pandas as pd

    has_columns(view, frame, *columns, *numbers)
    for column in numbers:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            raise BadInput(f"{view}: column {column!r} must hold numbers, it holds {frame[column].dtype}")
    if frame.empty:
        raise BadInput(f"{view}: the frame has no rows, so there is nothing to draw")
    if len(frame) > MAX_ROWS:
        raise BadInput(
            f"{view}: {len(frame):,} rows are more than the {MAX_ROWS:,} a chart can hold; pool, filter or sample"
        )
    return frame.reset_index(drop=True).copy()


def has_columns(view: str, frame: Any, *columns: str) -> None:
    """BadInput where ``frame`` is no DataFrame or lacks one of the columns."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise BadInput(f"{view}: frame must be a pandas DataFrame, got {type(frame).__name__}")
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        has = ", ".join(map(str, frame.columns)) or "none"
        raise BadInput(f"{view}: column {absent[0]!r} is missing; needed: {', '.join(columns)}; given: {has}")


def one_of(view: str, argument: str, value: Any, legal: tuple[Any, ...]) -> Any:
    if value not in legal:
        raise BadInput(f"{view}: {argument}={value!r} is not one of {', '.join(map(repr, legal))}")
    return value


def matrix(argument: str, values: Any) -> np.ndarray:
    """``values`` as a (rows, columns) float array; tensors of any device are welcome."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    array = np.asarray(values)
    if array.ndim != 2 or 0 in array.shape:
        raise BadInput(f"{argument} must be a matrix with at least one cell, got shape {array.shape}")
    if array.dtype.kind not in "biuf":
        raise BadInput(f"{argument} must hold real numbers, it holds {array.dtype}")
    return array.astype(np.float64, copy=False)


def tokens_for(argument: str, tokens: Any, length: int) -> list[str] | None:
    """Token labels with white space made visible, or None; their number must be ``length``."""
    if tokens is None:
        return None
    if isinstance(tokens, str) or len(tokens) != length:
        raise BadInput(f"{argument} must hold {length} labels, got {len(tokens)}")
    return [visible(token) for token in tokens]


def visible(token: Any) -> str:
    """A token as one can read it: leading space as a middle dot, line breaks as arrows, byte-level marks undone."""
    text = str(token).replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")
    text = text.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
    return ("·" + text[1:] if text.startswith(" ") and len(text) > 1 else text.replace(" ", "·")) or "∅"
