"""Claims of a paper and how they fared: verdict, effect and interval, one line each."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from workbench.views import theme
from workbench.views._check import frame_for, one_of

if TYPE_CHECKING:
    import pandas as pd

_ROW = 44


def claims_table(frame: pd.DataFrame, *, title: str = "", subtitle: str = "", width: int = 240) -> alt.Chart:
    """One row a claim: verdict (shape and colour), statement, effect with its interval, the numbers.

    Columns: ``id``, ``statement``, ``verdict`` ("holds", "not reproduced", "inconclusive"), ``effect``, ``low``,
    ``high``, ``n``; optional ``threshold`` (default 0), ``source``, ``note`` (on hover). Effects have different
    units, so each row is scaled by its own interval; the vertical line is the threshold.
    """
    data = frame_for(
        "claims_table", frame, numbers=("effect", "low", "high", "n"), columns=("id", "statement", "verdict")
    )
    for verdict in data["verdict"]:
        one_of("claims_table", "verdict", verdict, tuple(theme.VERDICTS))
    _scaled(data)
    data["_row"] = data.index
    data["_numbers"] = [_interval(*row) for row in zip(data["effect"], data["low"], data["high"], data["n"])]
    lines = data["statement"].map(lambda text: textwrap.wrap(str(text), 58, max_lines=2, placeholder=" …") or [""])
    data["_lines"] = lines.map("\n".join)
    y = alt.Y("_row:O", axis=None, scale=alt.Scale(paddingInner=0, paddingOuter=0))
    told = [
        alt.Tooltip(f"{n}:N")
        for n in ("id", "statement", "verdict", "effect", "low", "high", "threshold", "n", "source", "note")
        if n in data
    ]
    lift = alt.expr("-6.5 * (length(split(datum._lines, '\\n')) - 1)")
    text = alt.Chart(data).mark_text(align="left", x=4, lineBreak="\n", lineHeight=14, baseline="middle", dy=lift)
    numbers = alt.Chart(data).mark_text(align="left", x=4).encode(y=y, text="_numbers:N")
    parts = [
        _column(data, y, told, 116, "verdict", _verdict(data, y, told)),
        _column(data, y, told, 350, "claim", text.encode(y=y, text="_lines:N", tooltip=told)),
        _column(data, y, told, width, "effect about its threshold", _forest(data, y, told)),
        _column(data, y, told, 210, "effect [95 % interval]", numbers),
    ]
    return theme.themed(alt.hconcat(*parts, spacing=0), title, subtitle)


def _scaled(data: pd.DataFrame) -> None:
    zero = data["threshold"].astype(float) if "threshold" in data else 0.0
    sides = np.stack([(data[name] - zero).abs().to_numpy(float) for name in ("effect", "low", "high")])
    reach = np.where(np.isfinite(sides), sides, 0).max(axis=0)
    reach = np.where(reach > 0, reach, 1.0)
    for name in ("effect", "low", "high"):
        data[f"_{name}"] = (data[name] - zero) / reach


def _interval(effect: float, low: float, high: float, n: float) -> str:
    from workbench.views.raster import short

    numbers = [short(float(f"{value:.3g}")) if np.isfinite(value) else "–" for value in (effect, low, high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" + (f"   n = {int(n):,}" if np.isfinite(n) else "")


def _verdict(data: pd.DataFrame, y: alt.Y, told: list[alt.Tooltip]) -> Any:
    names = list(theme.VERDICTS)
    colour = alt.Color(
        "verdict:N", legend=None, scale=alt.Scale(domain=names, range=[theme.VERDICTS[v][0] for v in names])
    )
    shape = alt.Shape(
        "verdict:N", legend=None, scale=alt.Scale(domain=names, range=[theme.VERDICTS[v][1] for v in names])
    )
    dot = (
        alt.Chart(data)
        .mark_point(filled=True, size=110, x=10, opacity=1)
        .encode(y=y, color=colour, shape=shape, tooltip=told)
    )
    word = alt.Chart(data).mark_text(align="left", x=22, fontWeight=600).encode(y=y, text="verdict:N", color=colour)
    return alt.layer(dot, word)


def _forest(data: pd.DataFrame, y: alt.Y, told: list[alt.Tooltip]) -> Any:
    x = alt.Scale(domain=[-1.08, 1.08], nice=False)
    names = list(theme.VERDICTS)
    colour = alt.Color(
        "verdict:N", legend=None, scale=alt.Scale(domain=names, range=[theme.VERDICTS[v][0] for v in names])
    )
    zero = alt.Chart(data).mark_rule(color="#b8c0ca").encode(x=alt.X(datum=0, scale=x, axis=None))
    known = alt.Chart(data).transform_filter("isValid(datum._low) && isValid(datum._high)")
    whisker = known.mark_rule(strokeWidth=2.5).encode(
        y=y, x=alt.X("_low:Q", scale=x, axis=None), x2="_high:Q", color=colour
    )
    dot = (
        alt.Chart(data)
        .mark_point(filled=True, size=70, opacity=1)
        .encode(y=y, x=alt.X("_effect:Q", scale=x, axis=None), color=colour, tooltip=told)
    )
    return alt.layer(zero, whisker, dot)


def _column(data: pd.DataFrame, y: alt.Y, told: list[alt.Tooltip], width: int, name: str, marks: Any) -> Any:
    stripe = (
        alt.Chart(data)
        .mark_rect(height=_ROW)
        .encode(
            y=y, tooltip=told, color=alt.condition("datum._row % 2 == 0", alt.value("#f4f6f8"), alt.value(theme.PAPER))
        )
    )
    head = alt.TitleParams(name, fontSize=11, color=theme.MUTED, fontWeight=500, anchor="start", offset=4, dx=2)
    return alt.layer(stripe, marks).properties(width=width, height=alt.Step(_ROW), title=head)
