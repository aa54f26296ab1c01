"""Attention heads: all heads of a layer, all heads of a model by score, one head token by token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import altair as alt

from workbench.views import theme
from workbench.views._check import frame_for, one_of

if TYPE_CHECKING:
    import pandas as pd


def head_grid(
    frame: pd.DataFrame,
    *,
    columns: int = 4,
    cell: int = 132,
    title: str = "",
    subtitle: str = "",
    chosen: int | None = None,
) -> alt.Chart:
    """Small pooled maps of all heads of a layer; a click selects a head (selection ``head``, field ``head``).

    Columns: ``head`` (number), ``image`` (data URI of the map; ``frames.heads_of`` makes it). Optional columns are
    shown on hover: ``entropy`` (nats), ``sink_mass``, ``distance`` (tokens), ``note`` (also printed beside the head's
    number).
    """
    data = frame_for("head_grid", frame, numbers=("head",), columns=("image",))
    columns = max(1, min(columns, len(data)))
    data["_col"], data["_row"] = data.index % columns, data.index // columns
    data["_label"] = "head " + data["head"].astype(int).astype(str)
    if "note" in data:
        data["_label"] += "  " + data["note"].astype(str)
    pick = alt.selection_point(name="head", fields=["head"], on="click", toggle=False, **_start("head", chosen))
    lit = {"condition": {"param": "head", "empty": False, "value": "#E69F00"}, "value": theme.FAINT}
    base = alt.Chart(data).encode(
        x=alt.X("_col:O", axis=None, scale=alt.Scale(paddingInner=0, paddingOuter=0)),
        y=alt.Y("_row:O", axis=None, scale=alt.Scale(paddingInner=0, paddingOuter=0)),
    )
    half = cell / 2
    picture = base.mark_image(width=cell, height=cell, aspect=False, yOffset=6).encode(
        url="image:N", tooltip=_told(data, "head", "entropy", "sink_mass", "distance")
    )
    frame_marks = base.mark_rect(
        width=cell + 2, height=cell + 2, yOffset=6, fillOpacity=0, strokeWidth=2.5, cursor="pointer"
    )
    label = base.mark_text(align="left", dx=-half, dy=-half - 4, fontSize=11, fontWeight=600).encode(text="_label:N")
    chart = alt.layer(
        picture, frame_marks.encode(stroke=lit, tooltip=_told(data, "head", "entropy", "sink_mass", "distance")), label
    )
    chart = chart.add_params(pick).properties(width=alt.Step(cell + 16), height=alt.Step(cell + 32))
    return theme.themed(chart, title, subtitle)


def head_scores(
    frame: pd.DataFrame,
    *,
    score: str = "score",
    signed: bool = False,
    mark: str | None = None,
    title: str = "",
    subtitle: str = "",
    units: str = "",
    low: float | None = None,
    high: float | None = None,
) -> alt.Chart:
    """Layer x head map of one number per head; a click selects (selection ``head``, fields ``layer``, ``head``).

    Columns: ``layer``, ``head``, ``score``. ``signed`` takes a diverging scale about zero. ``mark`` names a boolean
    column: heads where it is true get a ring (pruned, chosen).
    """
    data = frame_for("head_scores", frame, numbers=("layer", "head", score), columns=(mark,) if mark else ())
    most = float(data[score].abs().max())
    scale = (
        theme.signed(most)
        if signed
        else theme.magnitude(domain=[_or(low, min(0.0, data[score].min())), _or(high, most)])
    )
    pick = alt.selection_point(name="head", fields=["layer", "head"], on="click")
    base = alt.Chart(data).encode(
        x=alt.X("head:O", axis=alt.Axis(labelAngle=0, ticks=False, domain=False)),
        y=alt.Y("layer:O", sort="descending"),
    )
    cells = base.mark_rect(cornerRadius=3, strokeWidth=2).encode(
        color=alt.Color(f"{score}:Q", title=units or score, scale=scale),
        stroke=alt.condition({"param": "head", "empty": False}, alt.value("#E69F00"), alt.value(theme.PAPER)),
        tooltip=["layer:O", "head:O", alt.Tooltip(f"{score}:Q", format=".4~g")],
    )
    marks = [cells.add_params(pick)]
    if data.shape[0] <= 400:
        marks.append(_numbers(base, data, score, signed, scale.domain))
    if mark:
        chosen = base.transform_filter(f"datum['{mark}']")
        rings = ((4.5, "#ffffff"), (2, theme.INK))
        marks += [chosen.mark_point(size=560, strokeWidth=w, filled=False, opacity=1, color=c) for w, c in rings]
    chart = alt.layer(*marks).properties(width=alt.Step(42), height=alt.Step(34))
    return theme.themed(chart, title, subtitle)


def _numbers(base: alt.Chart, data: pd.DataFrame, score: str, signed: bool, domain: list[float]) -> alt.Chart:
    """The score inside each cell, dark on light and light on dark."""
    reach = max(abs(domain[0]), abs(domain[-1])) or 1.0
    light = (
        f"abs(datum['{score}']) > {0.55 * reach}"
        if signed
        else f"datum['{score}'] < {domain[0] + 0.6 * (domain[-1] - domain[0])}"
    )
    return base.mark_text(fontSize=10).encode(
        text=alt.Text(f"{score}:Q", format=".2f"),
        color=alt.condition(light, alt.value("#ffffff"), alt.value("#1f2933")),
    )


def head_scatter(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    x_title: str = "",
    y_title: str = "",
    kind: str | None = None,
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """Two numbers per head against each other, one point a head (selection ``head``); zero lines cross.

    Columns: ``layer``, ``head``, ``x``, ``y``; ``kind`` an optional category for the colour (else the layer).
    """
    data = frame_for("head_scatter", frame, numbers=("layer", "head", x, y), columns=(kind,) if kind else ())
    pick = alt.selection_point(name="head", fields=["layer", "head"], on="click")
    kinds = list(dict.fromkeys(data[kind])) if kind else []
    colour = (
        alt.Color(f"{kind}:N", title=None, scale=theme.categories(kinds))
        if kind
        else alt.Color("layer:Q", title="layer", scale=theme.magnitude("cividis"))
    )
    dots = (
        alt.Chart(data)
        .mark_circle(size=90, strokeWidth=2)
        .encode(
            x=alt.X(f"{x}:Q", title=x_title or x, axis=alt.Axis(grid=True)),
            y=alt.Y(f"{y}:Q", title=y_title or y),
            color=colour,
            stroke=alt.condition({"param": "head", "empty": False}, alt.value("#E69F00"), alt.value(theme.PAPER)),
            tooltip=["layer:O", "head:O", alt.Tooltip(f"{x}:Q", format=".3~g"), alt.Tooltip(f"{y}:Q", format=".3~g")],
        )
    )
    zero = alt.Chart().mark_rule(color="#b8c0ca")
    chart = alt.layer(zero.encode(x=alt.datum(0)), zero.encode(y=alt.datum(0)), dots.add_params(pick), data=data)
    return theme.themed(chart.properties(width=360, height=300), title, subtitle)


def head_tokens(
    frame: pd.DataFrame, *, scheme: str = "viridis", title: str = "", subtitle: str = "", units: str = "probability"
) -> alt.Chart:
    """One head, token by token: rows are queries, columns keys; hovering a cell lights its row and column.

    Columns: ``query``, ``key`` (positions), ``value``, ``query_token``, ``key_token`` (``frames.attention``), at most
    70 x 70 tokens. A click selects (selection ``cell``, fields ``query``, ``key``).
    """
    data = frame_for("head_tokens", frame, numbers=("query", "key", "value"), columns=("query_token", "key_token"))
    data["_q"], data["_k"] = _named(data, "query"), _named(data, "key")
    pick = alt.selection_point(name="cell", fields=["query", "key"], on="click")
    over = alt.selection_point(name="over", fields=["query"], on="pointerover", clear="pointerout", empty=False)
    cells = (
        alt.Chart(data)
        .mark_rect(**theme.SEAMLESS)
        .encode(
            x=alt.X("key:O", title="key", axis=_token_axis(data, "key", -90)),
            y=alt.Y("query:O", title="query", axis=_token_axis(data, "query", 0)),
            color=alt.Color("value:Q", title=units, scale=theme.magnitude(scheme)),
            stroke=alt.condition(over, alt.value("#ffffff"), alt.value(None)),
            strokeWidth=alt.condition(over, alt.value(0.8), alt.value(0)),
            tooltip=[
                alt.Tooltip("_q:N", title="query"),
                alt.Tooltip("_k:N", title="key"),
                alt.Tooltip("value:Q", format=".4~g"),
            ],
        )
    )
    size = _cell(max(data["query"].nunique(), data["key"].nunique()))
    chart = cells.add_params(pick, over).properties(width=alt.Step(size), height=alt.Step(size))
    return theme.themed(chart, title, subtitle)


def head_links(frame: pd.DataFrame, *, title: str = "", subtitle: str = "", least: float = 0.05) -> alt.Chart:
    """One head as lines from each query token (left) to the key tokens (right) it attends to.

    Columns as in ``head_tokens``; links weaker than ``least`` are left out. Hovering a query keeps only its links.
    """
    data = frame_for("head_links", frame, numbers=("query", "key", "value"), columns=("query_token", "key_token"))
    data["_left"], data["_right"] = "query", "key"
    over = alt.selection_point(name="over", fields=["query"], on="pointerover", clear="pointerout")
    sides = alt.Scale(domain=["query", "key"], padding=0)
    positions = alt.Scale(domain=sorted({*data["query"], *data["key"]}))
    y = {"scale": positions, "axis": None}
    links = (
        alt.Chart(data)
        .transform_filter(f"datum.value >= {least}")
        .mark_rule(strokeWidth=1.6)
        .encode(
            x=alt.X("_left:N", scale=sides, axis=None),
            x2="_right:N",
            y=alt.Y("query:O", **y),
            y2="key:O",
            color=alt.value(theme.CATEGORIES[0]),
            opacity=alt.condition(
                over,
                alt.Opacity("value:Q", scale=alt.Scale(domain=[0, 1], range=[0.08, 1]), legend=None),
                alt.value(0.02),
            ),
            tooltip=["query_token:N", "key_token:N", alt.Tooltip("value:Q", format=".3f")],
        )
    )
    left = _token_column(data, "query", "_left", sides, y, align="right", dx=-8).add_params(over)
    right = _token_column(data, "key", "_right", sides, y, align="left", dx=8)
    step = _cell(len(positions.domain), 9, 18)
    chart = alt.layer(links, left, right).properties(width=240, height=alt.Step(step))
    return theme.themed(chart, title, subtitle)


def _token_column(data: pd.DataFrame, which: str, side: str, sides: alt.Scale, y: dict, **mark: object) -> alt.Chart:
    words = data.drop_duplicates(which)[[which, f"{which}_token", side]]
    return (
        alt.Chart(words)
        .mark_text(fontSize=11, cursor="default", **mark)
        .encode(x=alt.X(f"{side}:N", scale=sides, axis=None), y=alt.Y(f"{which}:O", **y), text=f"{which}_token:N")
    )


def _named(data: pd.DataFrame, which: str) -> pd.Series:
    return data[which].astype(int).astype(str) + " “" + data[f"{which}_token"].astype(str) + "”"


def _token_axis(data: pd.DataFrame, which: str, angle: int) -> alt.Axis:
    """Tokens as tick labels; equal tokens at different positions stay apart: the axis itself counts positions."""
    one_of("head_tokens", "axis", which, ("query", "key"))
    pairs = data.drop_duplicates(which)
    table = {str(int(position)): str(token) for position, token in zip(pairs[which], pairs[f"{which}_token"])}
    return alt.Axis(
        labelExpr=f"{json.dumps(table, ensure_ascii=True)}[datum.label]",
        labelAngle=angle,
        labelLimit=90,
        ticks=False,
        domain=False,
        labelOverlap=False,
    )


def _cell(count: int, least: int = 11, most: int = 24) -> int:
    return max(least, min(most, 620 // max(count, 1)))


def _told(data: pd.DataFrame, *names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{n}:Q", format=".3~g") for n in names if n in data]


def _start(field: str, value: object | None) -> dict:
    return {} if value is None else {"value": [{field: value}]}


def _or(value: float | None, other: float) -> float:
    return float(other if value is None else value)
