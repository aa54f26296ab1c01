"""From a trace or a memory to the tidy frames that the views draw.

A trace is anything with the attributes of ``workbench.models`` traces (``tokens``, ``surprise``, ``entropy``,
``map``, ``region``, ``mass``, ``layers``); only its arrays are read, so torch is never imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import BadInput
from workbench.views import raster
from workbench.views._check import matrix, visible

if TYPE_CHECKING:
    import pandas as pd

#: Tokens a side that one head may have as a chart: 70 x 70 = 4,900 cells.
MOST_TOKENS = 70


def array(values: Any) -> np.ndarray:
    """A tensor or anything array-like as float64 numpy."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _row(trace: Any, name: str, row: int) -> Any:
    values = getattr(trace, name)
    if not -len(values) <= row < len(values):
        raise BadInput(f"row {row} is outside this trace of {len(values)} texts")
    return values[row]


def words(trace: Any, row: int = 0) -> list[str]:
    """The row's tokens with white space made visible."""
    return [visible(token) for token in _row(trace, "tokens", row)]


def keys(trace: Any, layer: int, row: int = 0) -> list[str]:
    """The labels of a layer's keys: the row's tokens, behind the slots of a memory when it brought keys of its own."""
    text = words(trace, row)
    found = next((at for at in getattr(trace, "layers", ()) if at.index == layer), None)
    before = 0 if found is None else found.k.shape[1] - len(text)
    return [f"[slot {slot}]" for slot in range(before)] + text


def tokens(trace: Any, row: int = 0) -> pd.DataFrame:
    """position, token, surprise (nats, NaN first), entropy (nats) of one row of a trace."""
    import pandas as pd

    text = words(trace, row)
    columns: dict[str, Any] = {"position": np.arange(len(text)), "token": text}
    for name in ("surprise", "entropy"):
        values = getattr(trace, name, None)
        if values is not None:
            columns[name] = array(values[row])[: len(text)]
    return pd.DataFrame(columns)


def heads_of(
    maps: Any,
    *,
    scheme: str = "viridis",
    scale: str = "sqrt",
    side: int = 256,
    statistics: Mapping[str, Sequence[float]] | None = None,
) -> pd.DataFrame:
    """head, image (data URI) and statistics for ``head_grid`` from (heads, R, C) pooled maps.

    Each head has its own colour range (``scale="sqrt"`` lifts the faint part); ``statistics`` adds a column per name.
    """
    import pandas as pd

    stack = array(maps)
    if stack.ndim != 3 or 0 in stack.shape:
        raise BadInput(f"maps must be (heads, rows, columns), got shape {stack.shape}")
    rows = [{"head": head, "image": _picture(cells, scheme, scale, side)} for head, cells in enumerate(stack)]
    frame = pd.DataFrame(rows)
    for name, values in (statistics or {}).items():
        if len(values) != len(stack):
            raise BadInput(f"statistics[{name!r}] must hold {len(stack)} numbers, one a head, got {len(values)}")
        frame[name] = array(values)
    return frame


def _picture(cells: np.ndarray, scheme: str, scale: str, side: int) -> str:
    pixels = raster.colours(cells, scheme=scheme, scale=scale)
    factor = max(1, round(side / max(cells.shape)))
    return raster.data_uri(raster.enlarge(pixels, cells.shape[0] * factor, cells.shape[1] * factor))


def heads(
    trace: Any, layer: int, *, row: int = 0, size: int = 128, reduce: str = "mean", **options: Any
) -> pd.DataFrame:
    """All heads of one traced layer, ready for ``head_grid``, with their statistics where those take under a second."""
    if "statistics" not in options and _quickly(trace, layer):
        options["statistics"] = head_statistics(trace, layer, row=row)
    return heads_of(trace.map(layer, size=size, reduce=reduce, batch=row), **options)


def _quickly(trace: Any, layer: int) -> bool:
    return hasattr(trace, "statistics") and trace.cost("statistics", layer=layer).seconds < 1.0


def head_statistics(trace: Any, layer: int, *, row: int = 0) -> dict[str, np.ndarray]:
    """Of each head of a layer, means over the row's tokens: entropy (nats), sink_mass (on the first four keys) and
    distance (tokens looked back, weighted by attention)."""
    found = trace.statistics(layer, batch=row, topk=1)
    names = {"entropy": "entropy", "sink_mass": "sink_mass", "distance": "mean_distance"}
    return {name: np.nanmean(array(found[key]), axis=-1) for name, key in names.items()}


def attention(
    trace: Any, layer: int, head: int | None, *, rows: slice | None = None, cols: slice | None = None, row: int = 0
) -> pd.DataFrame:
    """query, key, value, query_token, key_token of one head (``None``: mean of heads) for ``head_tokens``.

    ``rows``/``cols`` default to everything; more than 70 tokens a side raise BadInput: pick a stretch.
    """
    text, held = words(trace, row), keys(trace, layer, row)
    r, c = _stretch("rows", rows, len(text)), _stretch("cols", cols, len(held))
    probs = array(trace.region(layer, head, r, c, batch=row))
    probs = probs.reshape(-1, *probs.shape[-2:]).mean(axis=0)
    return cells(probs, text[r], held[c], start=(r.start, c.start))


def cells(
    values: Any, query_tokens: Sequence[str], key_tokens: Sequence[str], *, start: tuple[int, int] = (0, 0)
) -> pd.DataFrame:
    """A (R, C) matrix and its labels as a tidy frame: query, key, value, query_token, key_token."""
    import pandas as pd

    plane = matrix("values", values)
    if plane.shape != (len(query_tokens), len(key_tokens)):
        raise BadInput(f"values {plane.shape} do not fit {len(query_tokens)} query and {len(key_tokens)} key tokens")
    if max(plane.shape) > MOST_TOKENS:
        raise BadInput(
            f"{plane.shape} cells are more than a chart shows; take {MOST_TOKENS} tokens a side or use MatrixView"
        )
    r, c = np.indices(plane.shape)
    return pd.DataFrame(
        {
            "query": (r + start[0]).ravel(),
            "key": (c + start[1]).ravel(),
            "value": plane.ravel(),
            "query_token": np.repeat([visible(t) for t in query_tokens], plane.shape[1]),
            "key_token": np.tile([visible(t) for t in key_tokens], plane.shape[0]),
        }
    )


def _stretch(argument: str, part: slice | None, length: int) -> slice:
    start, stop = (0, length) if part is None else (part.start or 0, length if part.stop is None else part.stop)
    if not 0 <= start < stop <= length:
        raise BadInput(f"{argument} must lie inside the {length} tokens, got {start} to {stop}")
    if stop - start > MOST_TOKENS:
        raise BadInput(
            f"{argument}: {stop - start} tokens are more than the {MOST_TOKENS} a chart can show; pick a stretch"
        )
    return slice(start, stop)


def slots(mass: Any, *, tokens: Sequence[str] | None = None, positions: Sequence[int] | None = None) -> pd.DataFrame:
    """head, slot, mass (and token, position) for ``slot_attention`` from (heads, slots) attention mass."""
    import pandas as pd

    plane = matrix("mass", mass)
    h, s = np.indices(plane.shape)
    frame = pd.DataFrame({"head": h.ravel(), "slot": s.ravel(), "mass": plane.ravel()})
    for name, values in (("token", tokens), ("position", positions)):
        if values is None:
            continue
        if len(values) != plane.shape[1]:
            raise BadInput(f"{name}s must hold {plane.shape[1]} entries, one a slot, got {len(values)}")
        frame[name] = np.tile([visible(v) if name == "token" else v for v in values], plane.shape[0])
    return frame


def slot_mass(trace: Any, layer: int, at: Sequence[int], *, row: int = 0, queries: slice = slice(None)) -> pd.DataFrame:
    """Attention of each head to each of the keys ``at`` (their places in the layer), averaged over ``queries``."""
    first, last, _ = queries.indices(len(words(trace, row)))
    chunks = [slice(start, min(start + 64, last)) for start in range(first, last, 64)]
    if not chunks:
        raise BadInput(f"queries must hold at least one position, got {queries}")
    parts = [array(trace.region(layer, None, chunk, list(at), batch=row)).sum(axis=1) for chunk in chunks]
    text = keys(trace, layer, row)
    return slots(sum(parts) / (last - first), tokens=[text[key] for key in at], positions=at)


def events(log: Any) -> pd.DataFrame:
    """step, kind, n, items, why of an event log (``memory.events()``), or of a frame that already is one."""
    frame = log.frame() if hasattr(log, "frame") else log
    absent = [name for name in ("step", "kind", "items", "why") if name not in frame.columns]
    if absent:
        raise BadInput(f"events: column {absent[0]!r} is missing; given: {', '.join(map(str, frame.columns))}")
    return frame


def spans(log: Any, labels: Mapping[int, str] | Sequence[str] | None = None) -> pd.DataFrame:
    """item, token, entered, left (steps; ``left`` is one beyond the last step while still held), why_in, why_out.

    One row per stay of an item in the memory: an item that returns has several rows.
    """
    import pandas as pd

    frame = events(log)
    open_: dict[int, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    into = frame["into"] if "into" in frame else [()] * len(frame)
    for step, kind, items, why, merged in zip(frame["step"], frame["kind"], frame["items"], frame["why"], into):
        entering, leaving = _moves(kind, items, merged, open_)
        rows += [open_.pop(item) | {"left": int(step), "why_out": why} for item in leaving if item in open_]
        open_ |= {item: {"item": item, "entered": int(step), "why_in": why} for item in entering if item not in open_}
    end = int(frame["step"].max()) + 1 if len(frame) else 0
    rows += [stay | {"left": end, "why_out": ""} for stay in open_.values()]
    table = pd.DataFrame(rows, columns=["item", "entered", "left", "why_in", "why_out"]).sort_values(
        ["item", "entered"]
    )
    table.insert(1, "token", [_label(labels, item) for item in table["item"]])
    return table.reset_index(drop=True)


def _moves(kind: str, items: Iterable[int], into: Any, held: Mapping[int, Any]) -> tuple[list[int], list[int]]:
    """Items that enter and items that leave; merged ones leave and come back as the items they went ``into``."""
    if kind in ("write", "restore"):
        return [int(i) for i in items], []
    if kind in ("evict", "merge"):
        return [int(i) for i in into] if isinstance(into, (list, tuple, set)) else [], [int(i) for i in items]
    return [], list(held) if kind == "reset" else []


def _label(labels: Mapping[int, str] | Sequence[str] | None, item: int) -> str:
    if labels is None:
        return str(item)
    try:
        return visible(labels[item])
    except (KeyError, IndexError):
        return str(item)


def activations(values: Any, *, names: Sequence[str] | None = None) -> pd.DataFrame:
    """row, col, value (row_token, col_token) of a similarity matrix for ``similarity_map``."""
    frame = cells(values, *(_names(names, values, axis) for axis in (0, 1)))
    return frame.rename(columns={"query": "row", "key": "col", "query_token": "row_token", "key_token": "col_token"})


def _names(names: Sequence[str] | None, values: Any, axis: int) -> list[str]:
    length = matrix("values", values).shape[axis]
    return [str(i) for i in range(length)] if names is None else list(names)
