"""Figures that studies share: lines with bands, bars with intervals, and paper beside recorded beside live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for

if TYPE_CHECKING:
    import pandas as pd


_VALUES = alt.Axis(tickCount=5)
#: Labels of a logarithmic axis that would touch are left out.
_APART = alt.Axis(labelSeparation=8)
_LEGEND = alt.Legend(symbolType="circle", symbolOpacity=1, symbolStrokeWidth=0)


def line_with_band(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    low: str | None = None,
    high: str | None = None,
    colour: str | None = None,
    facet: str | None = None,
    x_title: str = "",
    y_title: str = "",
    title: str = "",
    subtitle: str = "",
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
    points: bool = True,
    order: Sequence[str] | None = None,
    level: float | None = None,
    columns: int = 3,
    width: int = 420,
    height: int = 260,
) -> alt.Chart:
    """Lines of ``y`` over ``x``, one a ``colour``, with a shaded interval from ``low`` to ``high``.

    Columns: ``x``, ``y`` (and ``low``, ``high``) numbers; ``colour`` and ``facet`` categories. ``order`` fixes the
    order (and so the colours) of the categories. ``level`` is a dashed line across, such as what a guess reaches.
    Clicking the legend keeps one line in full colour (selection ``lines``).
    """
    numbers = (x, y, *(name for name in (low, high) if name))
    data = frame_for("line_with_band", frame, numbers=numbers, columns=tuple(n for n in (colour, facet) if n))
    if (low is None) != (high is None):
        raise BadInput("line_with_band: give both low and high, or neither")
    names = _order(data, colour, order)
    base = alt.Chart(data).encode(
        x=alt.X(f"{_field(x)}:Q", title=x_title or x, scale=_scale(log_x, False), axis=_APART),
        y=alt.Y(f"{_field(y)}:Q", title=y_title or y, scale=_scale(log_y, zero), axis=_VALUES),
    )
    pick = alt.selection_point(name="lines", fields=[colour], bind="legend") if colour else None
    line = base.mark_line(point=alt.OverlayMarkDef(size=36, filled=True) if points else False)
    line = _coloured(line, colour, names, pick).encode(tooltip=_tooltips(data, [colour, x, y, low, high]))
    marks = [line.add_params(pick) if pick is not None else line]
    if low is not None and high is not None:
        band = base.mark_area(opacity=0.18, line=False).encode(y=alt.Y(f"{_field(low)}:Q"), y2=f"{_field(high)}:Q")
        marks.insert(0, _coloured(band, colour, names, pick, top=0.18))
    if level is not None:
        marks.append(alt.Chart(data).mark_rule(strokeDash=[4, 3], color=theme.MUTED).encode(y=alt.datum(level)))
    return _finish(alt.layer(*marks), data, facet, columns, width, height, title, subtitle)


def bars_with_interval(
    frame: pd.DataFrame,
    x: str,
    y: str,
    *,
    low: str | None = None,
    high: str | None = None,
    colour: str | None = None,
    facet: str | None = None,
    x_title: str = "",
    y_title: str = "",
    title: str = "",
    subtitle: str = "",
    order: Sequence[str] | None = None,
    bars: Sequence[str] | None = None,
    log_y: bool = False,
    columns: int = 3,
    height: int = 260,
    step: int = 34,
) -> alt.Chart:
    """Bars of ``y`` per category ``x``, side by side per ``colour``, with whiskers from ``low`` to ``high``.

    Columns: ``y`` (``low``, ``high``) numbers, the others categories. ``order`` orders colours, ``bars`` the x axis.
    A log axis has no zero, so ``log_y`` draws points instead of bars.
    """
    numbers = (y, *(name for name in (low, high) if name))
    data = frame_for("bars_with_interval", frame, numbers=numbers, columns=tuple(n for n in (x, colour, facet) if n))
    if (low is None) != (high is None):
        raise BadInput("bars_with_interval: give both low and high, or neither")
    names = _order(data, colour, order)
    sort = list(bars) if bars is not None else list(dict.fromkeys(data[x]))
    offset = {"xOffset": alt.XOffset(f"{_field(colour)}:N", sort=names)} if colour and colour != x else {}
    base = alt.Chart(data).encode(
        x=alt.X(f"{_field(x)}:N", title=x_title or None, sort=sort, axis=alt.Axis(labelAngle=0, labelLimit=140)),
        **offset,
    )
    value = alt.Y(f"{_field(y)}:Q", title=y_title or y, scale=_scale(log_y, not log_y), axis=_VALUES)
    mark = base.mark_point(filled=True, size=90) if log_y else base.mark_bar()
    marks = [_coloured(mark, colour, names).encode(y=value, tooltip=_tooltips(data, [x, colour, y, low, high]))]
    if low is not None and high is not None:
        whisker = base.mark_rule(color=theme.INK, strokeWidth=1.3)
        marks.append(whisker.encode(y=alt.Y(f"{_field(low)}:Q", title=y_title or y), y2=f"{_field(high)}:Q"))
    width = alt.Step(step / max(1, len(names) or 1) if offset else step * 1.6, **({"for": "offset"} if offset else {}))
    return _finish(alt.layer(*marks), data, facet, columns, width, height, title, subtitle)


def paper_recorded_live(
    live: pd.DataFrame | None = None,
    reported: pd.DataFrame | None = None,
    recorded: pd.DataFrame | None = None,
    *,
    item: str = "item",
    value: str = "value",
    low: str = "low",
    high: str = "high",
    panel: str | None = None,
    unit: str = "",
    title: str = "",
    subtitle: str = "",
    log: bool = False,
    items: Sequence[str] | None = None,
    row_height: int = 40,
    width: int = 460,
) -> alt.Chart:
    """The same quantity from three sources on one axis: the paper's number, the recorded GPU run, this run.

    Each frame may be None or empty (not all three) and has the columns ``item`` (one row of the picture) and
    ``value``; ``low``/``high`` are optional, drawn as a whisker where present; ``panel`` splits into panels.
    ``reported`` may have a boolean column ``verified``: a number nobody could verify is drawn hollow. Shape and
    colour both tell the source.
    """
    data = _gather({"paper": reported, "recorded": recorded, "live": live}, item, value, low, high, panel)
    present = [source for source in theme.SOURCES if source in set(data["source"])]
    sort = list(items) if items is not None else list(dict.fromkeys(data[item]))
    lanes = {"yOffset": alt.YOffset("source:N", sort=list(theme.SOURCES), scale=alt.Scale(domain=present))}
    inks = alt.Scale(domain=present, range=[theme.SOURCES[source] for source in present])
    base = alt.Chart(data).encode(y=alt.Y(f"{_field(item)}:N", sort=sort, title=None, axis=_row_axis()), **lanes)
    place = alt.X("value:Q", title=unit or value, scale=_scale(log, False), axis=alt.Axis(grid=True, tickCount=6))
    rule = base.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_rule(strokeWidth=2, opacity=0.7)
    shapes = {"paper": "diamond", "recorded": "square", "live": "circle"}
    marks = alt.Scale(domain=present, range=[shapes[source] for source in present])
    dots = base.encode(
        x=place,
        color=alt.Color("source:N", title=None, scale=inks, sort=present),
        shape=alt.Shape("source:N", title=None, scale=marks, sort=present),
        tooltip=_tooltips(data, [item, "source", "value", "low", "high", "verified", "note"]),
    )
    known = dots.transform_filter("datum.verified").mark_point(size=95, filled=True, opacity=1)
    open_ = dots.transform_filter("!datum.verified").mark_point(size=85, strokeWidth=2, fill=theme.PAPER, opacity=1)
    whisker = rule.encode(
        x=alt.X("low:Q"), x2="high:Q", color=alt.Color("source:N", title=None, scale=inks, sort=present)
    )
    chart = alt.layer(whisker, open_, known)
    hollow = "" if data["verified"].all() else "hollow: from memory of the paper, not verified"
    lines = [line for line in (subtitle, hollow) if line]
    height = alt.Step(row_height / len(present), **{"for": "offset"})
    return _finish(chart, data, panel, 3 if width < 240 else 2, width, height, title, lines)


def _gather(frames: dict[str, Any], item: str, value: str, low: str, high: str, panel: str | None) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for source, frame in frames.items():
        if frame is None or len(frame) == 0:
            continue
        columns = (item, *((panel,) if panel else ()))
        data = frame_for(f"paper_recorded_live ({source})", frame, numbers=(value,), columns=columns)
        bounds = [pd.to_numeric(data[n]) if n in data else pd.Series(float("nan"), data.index) for n in (low, high)]
        verified = data["verified"].astype(bool) if "verified" in data else pd.Series(True, data.index)
        note = data["source"].astype(str) if source == "paper" and "source" in data else pd.Series("", data.index)
        kept = {name: data[name] for name in columns} | {"value": data[value], "low": bounds[0], "high": bounds[1]}
        parts.append(pd.DataFrame(kept | {"source": source, "verified": verified, "note": note}))
    if not parts:
        raise BadInput("paper_recorded_live: live, reported and recorded are all empty, so there is nothing to draw")
    data = pd.concat(parts, ignore_index=True)
    return data.dropna(subset=["value"]).reset_index(drop=True)


def _field(name: str | None) -> str:
    """A column name as Vega-Lite reads it: dots, brackets and colons are part of the name."""
    return (
        str(name).replace("\\", "\\\\").replace(".", "\\.").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    )


def _order(data: pd.DataFrame, colour: str | None, order: Sequence[str] | None) -> list[Any]:
    if colour is None:
        return []
    return list(order) if order is not None else list(dict.fromkeys(data[colour]))


def _scale(log: bool, zero: bool) -> alt.Scale:
    return alt.Scale(type="log") if log else alt.Scale(zero=zero)


def _coloured(mark: Any, colour: str | None, names: list[Any], pick: Any = None, top: float = 1.0) -> Any:
    if colour is None:
        return mark.encode(color=alt.value(theme.CATEGORIES[0]))
    mark = mark.encode(
        color=alt.Color(f"{_field(colour)}:N", title=None, sort=names, scale=theme.categories(names), legend=_LEGEND)
    )
    return mark if pick is None else mark.encode(opacity=alt.condition(pick, alt.value(top), alt.value(top * 0.15)))


def _tooltips(data: pd.DataFrame, names: Sequence[str | None]) -> list[alt.Tooltip]:
    import pandas as pd

    shown = [name for name in dict.fromkeys(names) if name and name in data.columns]
    numeric = pd.api.types.is_numeric_dtype
    plain = pd.api.types.is_bool_dtype
    return [
        alt.Tooltip(f"{_field(n)}:Q", title=n, format=".4~g")
        if numeric(data[n]) and not plain(data[n])
        else alt.Tooltip(f"{_field(n)}:N", title=n)
        for n in shown
    ]


def _row_axis() -> alt.Axis:
    return alt.Axis(grid=True, labelLimit=260, labelColor=theme.INK)


def _finish(
    chart: Any, data: pd.DataFrame, facet: str | None, columns: int, width: Any, height: Any, title: str, subtitle: Any
) -> Any:
    chart = chart.properties(width=width, height=height)
    if facet is not None:
        panels = list(dict.fromkeys(data[facet]))
        chart = chart.facet(
            facet=alt.Facet(f"{_field(facet)}:N", title=None, sort=panels), columns=theme.even(len(panels), columns)
        )
    return theme.themed(chart, title, subtitle)
