"""Text as the model met it: a strip of coloured words, a track of surprise and entropy, scores over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for

if TYPE_CHECKING:
    import pandas as pd

_LEGEND = alt.Legend(orient="bottom", direction="horizontal", gradientLength=160, titleOrient="left", offset=8)
_CHARACTER = 6.75  # points a character of 11-point DejaVu Sans Mono is wide


def token_strip(
    frame: pd.DataFrame,
    *,
    score: str = "surprise",
    kept: str | None = None,
    time: str | None = None,
    width: int = 760,
    units: str = "nats",
    scheme: str = "viridis",
    signed: bool = False,
    title: str = "",
    subtitle: str | list[str] = "",
) -> alt.Chart:
    """The text, each token on its score's colour; tokens that a memory kept are boxed.

    Columns: ``position``, ``token``, ``score`` (NaN stays white); ``kept`` names a boolean column. ``time`` names a
    number column (a round): the frame then holds the text once per value and a slider (parameter ``time``) chooses.
    A click selects a token (selection ``token``, field ``position``).
    """
    numbers = ("position", score, *((time,) if time else ()))
    data = frame_for("token_strip", frame, numbers=numbers, columns=("token", *((kept,) if kept else ())))
    _typeset(data, width)
    top = float(data[score].abs().max()) or 1.0
    scale = theme.signed(top) if signed else theme.magnitude(scheme, domain=[min(0.0, float(data[score].min())), top])
    base = alt.Chart(data).encode(
        y=alt.Y("_line:O", axis=None), tooltip=["position:Q", "token:N", alt.Tooltip(f"{score}:Q", format=".3f")]
    )
    place = {"x": alt.X("_x0:Q", axis=None, scale=alt.Scale(domain=[0, width], nice=False)), "x2": "_x1:Q"}
    known = f"isValid(datum['{score}'])"
    fill = alt.condition(
        known, alt.Color(f"{score}:Q", title=units, scale=scale, legend=_LEGEND), alt.value(theme.PAPER)
    )
    pick = alt.selection_point(name="token", fields=["position"], on="click")
    ring = alt.condition({"param": "token", "empty": False}, alt.value("#0072B2"), alt.value(theme.PAPER))
    marks = [
        base.mark_rect(cornerRadius=3, height=19, strokeWidth=2)
        .encode(**place, color=fill, stroke=ring)
        .add_params(pick)
    ]
    if kept:
        held = base.transform_filter(f"datum['{kept}']")
        marks.append(
            held.mark_rect(cornerRadius=3, height=20, fillOpacity=0, stroke="#D55E00", strokeWidth=2).encode(**place)
        )
    marks.append(
        base.mark_text(font=theme.MONO, fontSize=11).encode(
            x=alt.X("_mid:Q", axis=None),
            text="_shown:N",
            color=alt.condition(_dark_ink(score, top, signed), alt.value("#1f2933"), alt.value("#ffffff")),
        )
    )
    chart = alt.layer(*marks).properties(width=width, height=alt.Step(23))
    return theme.themed(chart if time is None else scrubbed(chart, data, time), title, subtitle)


def _typeset(data: pd.DataFrame, width: int) -> None:
    """Adds the line and the horizontal extent of every token, set in a fixed-width face and wrapped at ``width``."""
    shown = data["token"].astype(str).str.slice(0, 40)
    lines, starts, x, line = [], [], 0.0, 0
    previous = -1.0
    for word, position in zip(shown, data["position"]):
        wide = _CHARACTER * len(word) + 7
        if position <= previous:  # the next moment of the same text starts at the top again
            x, line = 0.0, 0
        if x > 0 and x + wide > width:
            x, line = 0.0, line + 1
        lines.append(line)
        starts.append(x)
        x, previous = x + wide, position
        if word.endswith("↵"):
            x, line = 0.0, line + 1
    data["_shown"], data["_line"], data["_x0"] = shown, lines, starts
    data["_x1"] = data["_x0"] + _CHARACTER * shown.str.len() + 6
    data["_mid"] = (data["_x0"] + data["_x1"]) / 2


def _dark_ink(score: str, top: float, signed: bool) -> str:
    value = f"datum['{score}']"
    return f"!isValid({value}) || " + (f"abs({value}) < {0.6 * top}" if signed else f"{value} > {0.62 * top}")


def scrubbed(chart: Any, data: pd.DataFrame, column: str, name: str = "time", label: str | None = None) -> Any:
    """``chart`` limited to one value of ``column`` at a time, chosen by a slider (parameter ``name``)."""
    values = sorted({float(value) for value in data[column]})
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    slider = alt.binding_range(min=values[0], max=values[-1], step=step, name=f"{label or column} ")
    moment = alt.param(name=name, value=values[-1], bind=slider)
    return chart.add_params(moment).transform_filter(f"datum['{column}'] == {name}")


def token_track(
    frame: pd.DataFrame,
    *,
    series: Sequence[str] = ("surprise", "entropy"),
    threshold: float | str | None = None,
    marks: pd.DataFrame | None = None,
    units: str = "nats",
    width: int = 760,
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """Surprise and entropy along the text; a drag brushes a stretch (interval selection ``stretch``).

    Columns: ``position``, ``token`` and the numbers in ``series`` (the first is drawn as stems with dots).
    ``threshold`` is a number or a column. ``marks`` has columns ``position`` and ``kind`` (boundaries: surprise,
    refined, gold...), drawn as vertical lines of one dash pattern and colour a kind.
    """
    series = [name for name in series if name in frame.columns] if hasattr(frame, "columns") else list(series)
    if not series:
        raise BadInput(
            "token_track: none of the columns of series is in the frame; needed: position, token and a number"
        )
    data = frame_for("token_track", frame, numbers=("position", *series), columns=("token",))
    span = [float(data["position"].min()) - 0.5, float(data["position"].max()) + 0.5]
    x = alt.X("position:Q", title="token position", scale=alt.Scale(domain=span, nice=False))
    told = ["position:Q", "token:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in series)]
    base = alt.Chart(data).encode(x=x)
    brush = alt.selection_interval(name="stretch", encodings=["x"])
    layers = _boundaries(marks, x) if marks is not None and len(marks) else []
    for name in series[1:]:
        layers.append(
            _series(base, name, series).mark_line(strokeWidth=1.6, interpolate="monotone").encode(y=f"{name}:Q")
        )
    first = _series(base, series[0], series).encode(y=alt.Y(f"{series[0]}:Q", title=units))
    layers.append(first.mark_rule(strokeWidth=1.2, opacity=0.45).encode(y2=alt.datum(0)))
    layers.append(first.mark_circle(size=30, opacity=1).encode(tooltip=told).add_params(brush))
    layers += _threshold(base, threshold)
    return theme.themed(alt.layer(*layers).properties(width=width, height=170), title, subtitle)


def _series(base: alt.Chart, name: str, series: Sequence[str]) -> alt.Chart:
    """``base`` coloured and named in the legend as one of ``series``."""
    colour = alt.Color("series:N", title=None, sort=list(series), scale=theme.categories(list(series)))
    return base.transform_calculate(series=f"'{name}'").encode(color=colour)


def _threshold(base: alt.Chart, threshold: float | str | None) -> list[alt.Chart]:
    if threshold is None:
        return []
    look = {"strokeDash": [4, 3], "strokeWidth": 1.3, "color": theme.MUTED}
    if isinstance(threshold, str):
        return [base.mark_line(**look).encode(y=f"{threshold}:Q")]
    return [alt.Chart(alt.Data(values=[{"at": threshold}])).mark_rule(**look).encode(y="at:Q")]


def _boundaries(marks: pd.DataFrame, x: alt.X) -> list[alt.Chart]:
    data = frame_for("token_track (marks)", marks, numbers=("position",), columns=("kind",))
    kinds = list(dict.fromkeys(data["kind"]))
    dashes = [[4, 3], [1, 0], [1, 3], [6, 2, 1, 2]]
    dash = alt.StrokeDash(
        "kind:N", title="boundary", scale=alt.Scale(domain=kinds, range=[dashes[i % 4] for i in range(len(kinds))])
    )
    return [
        alt.Chart(data)
        .mark_rule(color="#8a94a1", strokeWidth=1.2)
        .encode(x=x, strokeDash=dash, tooltip=["position:Q", "kind:N"])
    ]


def token_curves(
    frame: pd.DataFrame,
    *,
    x: str = "round",
    y: str = "score",
    line: str = "item",
    admission: str | None = None,
    log: bool = True,
    title: str = "",
    subtitle: str = "",
    units: str = "decayed score",
) -> alt.Chart:
    """Scores of chosen tokens over rounds, with the score a token needed to be kept as a dashed line.

    Columns: ``x``, ``y`` numbers, ``line`` the token; ``admission`` names a number column (the lowest kept score).
    """
    numbers = (x, y, *((admission,) if admission else ()))
    data = frame_for("token_curves", frame, numbers=numbers, columns=(line,))
    names = list(dict.fromkeys(data[line]))
    pick = alt.selection_point(name="lines", fields=[line], bind="legend")
    base = alt.Chart(data).encode(x=alt.X(f"{x}:Q", title=x, axis=alt.Axis(tickMinStep=1)))
    scale = alt.Scale(type="log" if log else "linear")
    curves = (
        base.mark_line(point=alt.OverlayMarkDef(size=30, filled=True))
        .encode(
            y=alt.Y(f"{y}:Q", title=units, scale=scale),
            color=alt.Color(f"{line}:N", title=None, sort=names, scale=theme.categories(names)),
            opacity=alt.condition(pick, alt.value(1), alt.value(0.12)),
            tooltip=[f"{line}:N", f"{x}:Q", alt.Tooltip(f"{y}:Q", format=".3~g")],
        )
        .add_params(pick)
    )
    layers = [curves]
    if admission:
        layers.append(base.mark_line(strokeDash=[5, 3], color=theme.INK).encode(y=alt.Y(f"mean({admission}):Q")))
    return theme.themed(alt.layer(*layers).properties(width=460, height=240), title, subtitle)
