"""A graph of notes, phrases or whatever is linked: nodes, edges, and a slider over time or over the steps of a walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd

#: A row that is never replaced by a later one of the same node or edge.
_FOREVER = 1e18
_DASHES = ([1, 0], [5, 4], [2, 3], [8, 3, 2, 3], [1, 2])
_ROOM = 0.12
_LEAST_AREA = 24.0


def node_link(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    *,
    groups: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    labels: int = 24,
    arrows: bool = False,
    size_title: str = "size",
    group_title: str = "",
    weight_title: str = "weight",
    step_title: str = "step",
    step: float | None = None,
    seed: int = 0,
    width: int = 640,
    height: int = 420,
    title: str = "",
    subtitle: str | list[str] = "",
) -> alt.Chart:
    """Nodes as discs (area: ``size``, colour: ``group``), edges as lines (width: ``weight``, dash: ``kind``).

    ``nodes`` has the columns ``id``, ``label``, ``size`` (>= 0), ``group``; ``x`` and ``y`` are optional (else
    :func:`layout`); any other column is shown on hover. ``edges`` has ``source``, ``target`` (ids), ``weight``,
    ``kind``; it may be empty. A column ``step`` (a number) in either gives a slider (parameter ``moment``): a row is
    shown from its step on until a later row of the same node (or of the same edge) takes its place, so that things
    may appear, grow and shrink. ``until`` (the first step at which a row is gone) lets them vanish; without it, a row
    stays.

    The ``labels`` nodes that are ever largest are named; all of them say their name on hover. A click on a node
    (selection ``node``, field ``id``) keeps the edges at that node and dims the others. ``arrows`` draws direction.
    ``groups`` orders the groups, ``colours`` gives one colour to each of them.
    At most 5,000 rows in each frame. Raises BadInput for a missing column, an edge to an unknown node, a negative
    size.
    """
    data, lines = _nodes(nodes), _edges(edges)
    _known_ends(data, lines)
    places = _places(data, lines, seed, width / height)
    data = _shown_until(data.drop(columns=["x", "y"], errors="ignore").join(places, on="id"), ["id"])
    lines = _ends(_shown_until(lines, ["source", "target", "kind"]), places, arrows, width, height)
    moments = _moments(data, lines)
    order = list(groups) if groups is not None else list(dict.fromkeys(data["group"]))
    pick = alt.selection_point(name="node", fields=["id"], on="click")
    marks = [_line_marks(lines, weight_title)] if len(lines) else []
    marks += [_arrow_marks(lines)] if arrows and len(lines) else []
    area = min(900.0, max(60.0, 0.12 * width * height / len(places)))
    scale = theme.categories(order) if colours is None else _inks(order, colours)
    marks += [_disc_marks(data, order, scale, size_title, group_title, pick, area)]
    marks += [_name_marks(data, labels, area, width, height)]
    chart = alt.layer(*marks).properties(width=width, height=height)
    if moments:
        start = moments[-1] if step is None else step
        chart = chart.add_params(_slider(moments, start, step_title))
    return theme.themed(chart.resolve_scale(strokeDash="independent"), title, subtitle)


def layout(nodes: Sequence[Any], edges: Sequence[tuple[Any, Any, float]], *, seed: int = 0, aspect: float = 1.5) -> Any:
    """Places of ``nodes`` as a frame (index: id; ``x``, ``y`` in 0 to 1), the same for the same graph and seed.

    Each connected part is laid out by itself (Kamada-Kawai up to 120 nodes, springs beyond, both networkx's), and the
    parts are packed in rows, the largest first, so that lone nodes do not push the others into a corner.
    """
    import networkx as nx
    import pandas as pd

    graph = nx.Graph()
    graph.add_nodes_from(sorted(set(nodes), key=str))
    for source, target, weight in edges:
        if source != target:
            graph.add_edge(source, target, weight=max(float(weight), 1e-6))
    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), str(min(map(str, part)))))
    boxes = [_box(graph.subgraph(sorted(part, key=str)), seed) for part in parts]
    placed = _packed(boxes, aspect)
    frame = pd.DataFrame.from_dict(placed, orient="index", columns=["x", "y"])
    frame = (frame - frame.min()) / (frame.max() - frame.min()).replace(0.0, 1.0)
    return frame.rename_axis("id")


def _box(part: nx.Graph, seed: int) -> dict[Any, tuple[float, float]]:
    """One connected part in a square whose side grows with the root of its number of nodes."""
    import networkx as nx
    import numpy as np

    names = list(part)
    if len(names) == 1:
        return {names[0]: (0.5, 0.5)}
    plain = nx.Graph()  # sorted, so that the picture does not depend on the order the caller gave
    plain.add_nodes_from(names)
    plain.add_edges_from(sorted(part.edges, key=lambda edge: sorted(map(str, edge))))
    if len(names) <= 120:
        found = nx.kamada_kawai_layout(plain, pos=nx.circular_layout(plain))
    else:
        found = nx.spring_layout(plain, seed=seed, iterations=60, method="force")
    where = np.array([found[name] for name in names], dtype=float)
    span = np.ptp(where, axis=0)
    where = (where - where.min(axis=0)) / np.where(span > 1e-9, span, 1.0)
    where = np.where(span > 1e-9, where, 0.5)
    side = math.sqrt(len(names))
    return {name: (float(x) * side, float(y) * side) for name, (x, y) in zip(names, where)}


def _packed(boxes: list[dict[Any, tuple[float, float]]], aspect: float) -> dict[Any, tuple[float, float]]:
    """Boxes side by side in rows, about ``aspect`` times as wide as high."""
    sides = [math.sqrt(len(box)) for box in boxes]
    gap = 0.6
    room = max(max(sides), math.sqrt(sum((side + gap) ** 2 for side in sides) * aspect))
    placed: dict[Any, tuple[float, float]] = {}
    left = top = tallest = 0.0
    for box, side in zip(boxes, sides):
        if left and left + side > room + 1e-9:
            left, top, tallest = 0.0, top + tallest + gap, 0.0
        placed |= {name: (left + x, -(top + y)) for name, (x, y) in box.items()}
        left, tallest = left + side + gap, max(tallest, side)
    return placed


def _nodes(nodes: Any) -> pd.DataFrame:
    data = frame_for("node_link (nodes)", nodes, numbers=("size",), columns=("id", "label", "group"))
    if (data["size"] < 0).any() or data["size"].isna().any():
        raise BadInput("node_link (nodes): column 'size' must hold numbers of at least 0")
    for name in ("step", "until", "x", "y"):
        if name in data:
            frame_for("node_link (nodes)", data, numbers=(name,))
    data["label"], data["group"] = data["label"].astype(str), data["group"].astype(str)
    return data


def _edges(edges: Any) -> pd.DataFrame:
    import pandas as pd

    columns = ("source", "target", "kind")
    if isinstance(edges, pd.DataFrame) and edges.empty:
        return pd.DataFrame({name: [] for name in (*columns, "weight")}).astype({"weight": float})
    data = frame_for("node_link (edges)", edges, numbers=("weight",), columns=columns)
    return data.assign(kind=data["kind"].astype(str))


def _known_ends(data: pd.DataFrame, lines: pd.DataFrame) -> None:
    unknown = (set(lines["source"]) | set(lines["target"])) - set(data["id"])
    if unknown:
        raise BadInput(
            f"node_link (edges): {sorted(map(str, unknown))[0]!r} is the end of an edge but no node has this id"
        )


def _places(data: pd.DataFrame, lines: pd.DataFrame, seed: int, aspect: float) -> pd.DataFrame:
    """x and y by id: the caller's first ones, else a layout of everything that is ever shown."""
    if {"x", "y"} <= set(data):
        return data.drop_duplicates("id").set_index("id")[["x", "y"]]
    strongest = lines.groupby(["source", "target"], sort=True)["weight"].max()
    ends = [(source, target, weight) for (source, target), weight in zip(strongest.index, strongest)]
    return layout(list(data["id"]), ends, seed=seed, aspect=aspect)


def _shown_until(data: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """With ``until``: the step from which a later row of the same thing is shown instead (or it is gone)."""
    data = data.assign(step=data["step"].astype(float) if "step" in data else -_FOREVER)
    data = data.sort_values("step", kind="stable").reset_index(drop=True)
    later = data.groupby(keys, sort=False)["step"].shift(-1).fillna(_FOREVER)
    if "until" in data:
        later = later.where(data["until"].isna(), data["until"]).astype(float).clip(upper=later)
    return data.assign(until=later)


def _moments(*frames: pd.DataFrame) -> list[float]:
    """Every step at which something changes; empty when nothing has a step."""
    found = {float(value) for frame in frames for name in ("step", "until") if name in frame for value in frame[name]}
    return sorted(value for value in found if abs(value) < _FOREVER)


def _slider(moments: list[float], start: float, name: str) -> Any:
    low, high = moments[0], moments[-1]
    gaps = [b - a for a, b in pairwise(moments)]
    step = 1.0 if all(value == int(value) for value in moments) else min(gaps, default=1.0)
    bind = alt.binding_range(min=low, max=high, step=step, name=f"{name} ")
    return alt.param(name="moment", value=min(max(start, low), high), bind=bind)


def _now(frame: pd.DataFrame) -> str:
    """A Vega filter for the rows that are shown at the slider's moment (all of them without a slider)."""
    if not _moments(frame):
        return "true"
    return "datum.step <= moment && moment < datum.until"


def _ends(lines: pd.DataFrame, places: pd.DataFrame, arrows: bool, width: int, height: int) -> pd.DataFrame:
    import numpy as np

    lines = lines.join(places.rename(columns={"x": "x1", "y": "y1"}), on="source")
    lines = lines.join(places.rename(columns={"x": "x2", "y": "y2"}), on="target")
    if arrows and len(lines):
        right, up = (lines["x2"] - lines["x1"]) * width, (lines["y2"] - lines["y1"]) * height
        lines["_angle"] = np.degrees(np.arctan2(right, up))
        lines["_ax"] = lines["x1"] + 0.62 * (lines["x2"] - lines["x1"])
        lines["_ay"] = lines["y1"] + 0.62 * (lines["y2"] - lines["y1"])
    return lines


def _at(field: str, axis: Any) -> Any:
    return axis(f"{field}:Q", axis=None, scale=alt.Scale(domain=[-_ROOM / 2, 1 + _ROOM / 2], nice=False, zero=False))


def _line_marks(lines: pd.DataFrame, weight_title: str) -> Any:
    kinds = list(dict.fromkeys(lines["kind"]))
    dashes = [_DASHES[i % len(_DASHES)] for i in range(len(kinds))]
    legend = alt.Legend(title="edge", symbolType="stroke", symbolSize=300) if len(kinds) > 1 else None
    top = float(lines["weight"].max()) or 1.0
    touched = "!isDefined(node.id) || indexof(node.id, datum.source) >= 0 || indexof(node.id, datum.target) >= 0"
    return (
        alt.Chart(lines)
        .transform_filter(_now(lines))
        .mark_rule(color="#8894a3")
        .encode(
            x=_at("x1", alt.X),
            y=_at("y1", alt.Y),
            x2="x2:Q",
            y2="y2:Q",
            strokeWidth=alt.StrokeWidth("weight:Q", legend=None, scale=alt.Scale(domain=[0, top], range=[0.6, 3.2])),
            strokeDash=alt.StrokeDash("kind:N", legend=legend, scale=alt.Scale(domain=kinds, range=dashes)),
            opacity=alt.condition(touched, alt.value(0.75), alt.value(0.08)),
            tooltip=[
                "source:N", "target:N", "kind:N", alt.Tooltip("weight:Q", title=weight_title, format=".3~g"),
            ],
        )
    )  # fmt: skip


def _arrow_marks(lines: pd.DataFrame) -> Any:
    return (
        alt.Chart(lines[["_ax", "_ay", "_angle", "step", "until"]])
        .transform_filter(_now(lines))
        .mark_point(shape="triangle", filled=True, size=36, color="#8894a3", opacity=0.9)
        .encode(x=_at("_ax", alt.X), y=_at("_ay", alt.Y), angle=alt.Angle("_angle:Q", scale=None))
    )


def _inks(order: list[str], colours: Sequence[str]) -> alt.Scale:
    if len(colours) != len(order):
        raise BadInput(f"node_link: {len(colours)} colours for {len(order)} groups ({', '.join(order)}); give one each")
    return alt.Scale(domain=order, range=list(colours))


def _disc_marks(
    data: pd.DataFrame, order: list[str], scale: alt.Scale, size_title: str, group_title: str, pick: Any, area: float
) -> Any:
    import pandas as pd

    hidden = {"id", "label", "group", "size", "x", "y", "step", "until"}
    more = [name for name in data if name not in hidden and not str(name).startswith("_")]
    told = ["label:N", alt.Tooltip("group:N", title=group_title or "group"),
            alt.Tooltip("size:Q", title=size_title, format=".4~g")]  # fmt: skip
    told += [
        alt.Tooltip(f"{n}:Q", format=".4~g") if pd.api.types.is_numeric_dtype(data[n]) else alt.Tooltip(f"{n}:N")
        for n in more
    ]
    top = float(data["size"].max()) or 1.0
    legend = alt.Legend(symbolType="circle", symbolOpacity=1, symbolStrokeWidth=0) if len(order) > 1 else None
    return (
        alt.Chart(data)
        .transform_filter(_now(data))
        .mark_circle(opacity=1, stroke=theme.PAPER, strokeWidth=1.2)
        .encode(
            x=_at("x", alt.X),
            y=_at("y", alt.Y),
            size=alt.Size("size:Q", legend=None, scale=alt.Scale(domain=[0, top], range=[_LEAST_AREA, area])),
            color=alt.Color("group:N", title=group_title or None, scale=scale, legend=legend),
            stroke=alt.condition({"param": "node", "empty": False}, alt.value(theme.INK), alt.value(theme.PAPER)),
            order=alt.Order("size:Q", sort="descending"),
            tooltip=told,
        )
        .add_params(pick)
    )


def _name_marks(data: pd.DataFrame, labels: int, area: float, width: int, height: int) -> Any:
    import numpy as np

    named = data[data["id"].isin(_readable(data, labels, width, height))].copy()
    named["_name"] = named["label"].map(_short)
    share = named["size"] / (float(data["size"].max()) or 1.0)
    named["_up"] = np.sqrt((_LEAST_AREA + (area - _LEAST_AREA) * share) / np.pi) + 3
    text = alt.Chart(named).transform_filter(_now(data))
    halo = {"fontSize": 10.5, "baseline": "bottom", "dy": alt.expr("-datum._up")}
    where = {"x": _at("x", alt.X), "y": _at("y", alt.Y), "text": "_name:N"}
    back = text.mark_text(**halo, stroke=theme.PAPER, strokeWidth=3, opacity=0.85).encode(**where)
    return alt.layer(back, text.mark_text(**halo, color=theme.INK).encode(**where))


def _short(text: str) -> str:
    return text if len(text) <= 28 else text[:27] + "…"


def _readable(data: pd.DataFrame, labels: int, width: int, height: int) -> list[Any]:
    """Ids of the nodes that are named: the largest first, leaving out names that would run into one already there."""
    largest = data.sort_values("size", ascending=False, kind="stable").drop_duplicates("id")
    taken: list[tuple[float, float, float]] = []
    chosen: list[Any] = []
    for name, text, x, y in zip(largest["id"], largest["label"], largest["x"], largest["y"]):
        middle, line, half = float(x) * width, float(y) * height, 2.8 * len(_short(text))
        if len(chosen) < labels and all(abs(line - b) > 13 or abs(middle - a) > half + h for a, b, h in taken):
            chosen.append(name)
            taken.append((middle, line, half))
    return chosen


__all__ = ["layout", "node_link"]
