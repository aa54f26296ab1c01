"""What a memory holds, what happened to it, and who attends to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, visible

if TYPE_CHECKING:
    import pandas as pd

#: Kinds of events with their colours, in the order in which a log shows them.
COLOURS = {
    "write": "#009E73",
    "restore": "#7BC8A4",
    "update": "#D55E00",
    "link": "#882255",
    "read": "#56B4E9",
    "merge": "#CC79A7",
    "evict": "#E69F00",
    "decay": "#8A6D00",
    "rerank": "#0072B2",
    "reset": "#4D4D4D",
}
KINDS = tuple(COLOURS)


def memory_table(
    contents: pd.DataFrame,
    *,
    bars: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    sort: str | None = None,
    top: int = 40,
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """A memory's ``contents()`` as a table; number columns named in ``bars`` are drawn as bars beside their value.

    Columns: whatever the memory has. ``bars`` defaults to its float columns, ``columns`` to the others in order;
    ``sort`` (a number column, largest first) and ``top`` choose the rows. A click selects a row (selection ``item``,
    field ``_row``).
    """
    import pandas as pd

    data = frame_for("memory_table", contents)
    floats = [str(name) for name in data if pd.api.types.is_float_dtype(data[name])]
    bars = list(floats if bars is None else bars)
    plain = [str(name) for name in data if name not in bars] if columns is None else list(columns)
    frame_for("memory_table", data, numbers=tuple(bars), columns=tuple(plain))
    total = len(data)
    if sort is not None:
        frame_for("memory_table", data, numbers=(sort,))
        data = data.sort_values(sort, ascending=False, kind="stable")
    data = data.head(top).reset_index(drop=True)
    data["_row"] = data.index
    pick = alt.selection_point(name="item", fields=["_row"], on="click")
    parts = [_text_column(data, name) for name in plain] + [_bar_column(data, name, n) for n, name in enumerate(bars)]
    if not parts:
        raise BadInput("memory_table: no columns are left to show; name some in columns or bars")
    parts[0] = parts[0].add_params(pick)
    note = f"{len(data):,} of {total:,} items" + (f", largest {sort} first" if sort else "")
    table = alt.hconcat(*parts, spacing=0)
    lines = [line for line in (subtitle, note) if line]
    return theme.themed(table.resolve_scale(color="independent"), title or "memory contents", lines)


def _text_column(data: pd.DataFrame, name: str) -> Any:
    words = [_brief(value) for value in data[name]]
    numeric = bool(len(data)) and all(isinstance(v, int) and not isinstance(v, bool) for v in data[name].tolist())
    width = max(26, min(230, int(6.6 * max([len(name), *map(len, words)])) + 12))
    rows = data[["_row"]].assign(_text=words, _full=[str(v) for v in data[name]])
    at = {"align": "right", "x": width - 8} if numeric else {"align": "left", "x": 4}
    text = (
        alt.Chart(rows)
        .mark_text(fontSize=11, limit=width - 6, **at)
        .encode(text="_text:N", tooltip=alt.Tooltip("_full:N", title=name))
    )
    return _lined(rows, text, name, width, "right" if numeric else "left")


def _bar_column(data: pd.DataFrame, name: str, index: int) -> Any:
    width, colour = 150, theme.CATEGORIES[index % len(theme.CATEGORIES)]
    rows = data[["_row"]].assign(_value=data[name].astype(float))
    low, high = min(0.0, float(rows["_value"].min())), max(0.0, float(rows["_value"].max()))
    room = alt.Scale(domain=[low, (high - low) * 1.45 + low if high > low else 1.0], nice=False)
    bar = (
        alt.Chart(rows)
        .mark_bar(height=11, color=colour, opacity=0.75, cornerRadiusEnd=2)
        .encode(x=alt.X("_value:Q", axis=None, scale=room), tooltip=alt.Tooltip("_value:Q", title=name, format=".5~g"))
    )
    number = (
        alt.Chart(rows)
        .mark_text(align="left", dx=4, fontSize=10, color=theme.MUTED)
        .encode(x=alt.X("_value:Q", axis=None, scale=room), text=alt.Text("_value:Q", format=".3~g"))
    )
    return _lined(rows, alt.layer(bar, number), name, width, "left")


def _lined(rows: pd.DataFrame, marks: Any, name: str, width: int, anchor: str) -> Any:
    """One column with its name on top and rows striped."""
    y = alt.Y("_row:O", axis=None, scale=alt.Scale(paddingInner=0, paddingOuter=0))
    lit = alt.condition({"param": "item", "empty": False}, alt.value("#fde0bd"), alt.value(None))
    stripe = (
        alt.Chart(rows)
        .mark_rect(height=20)
        .encode(y=y, color=alt.condition("datum._row % 2 == 0", alt.value("#f4f6f8"), alt.value(theme.PAPER)))
    )
    glow = alt.Chart(rows).mark_rect(height=20, opacity=0.6).encode(y=y, color=lit)
    layered = alt.layer(stripe, glow, marks.encode(y=y)).properties(width=width, height=alt.Step(20))
    head = alt.TitleParams(
        name,
        fontSize=11,
        color=theme.MUTED,
        fontWeight=500,
        anchor="start" if anchor == "left" else "end",
        offset=4,
        dx=4,
    )
    return layered.properties(title=head)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = visible(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 36 else text[:35] + "…"


def memory_timeline(
    spans: pd.DataFrame,
    *,
    title: str = "",
    subtitle: str = "",
    width: int = 640,
    x_title: str = "event",
    before: int | None = None,
    after: int | None = None,
) -> alt.Chart:
    """Who was in the memory when: one bar per stay, and the difference between two moments on sliders.

    Columns: ``item``, ``token``, ``entered``, ``left`` (steps), ``why_in``, ``why_out`` (``frames.spans``). The
    sliders (parameters ``before`` and ``after``) colour each bar: stayed, entered or left between the two, or
    elsewhere; counts of the three stand above.
    """
    data = frame_for(
        "memory_timeline", spans, numbers=("item", "entered", "left"), columns=("token", "why_in", "why_out")
    )
    last = int(data["left"].max()) - 1
    starts = (0 if before is None else before, last if after is None else after)
    params = [
        alt.param(name=name, value=value, bind=alt.binding_range(min=0, max=max(last, 1), step=1, name=f"{name} "))
        for name, value in zip(("before", "after"), starts)
    ]
    was, now = (f"(datum.entered <= {p} && datum.left > {p})" for p in ("before", "after"))
    change = f"{was} && {now} ? 'stayed' : {now} ? 'entered' : {was} ? 'left' : 'elsewhere'"
    colour = alt.Color(
        "change:N", title=None, scale=alt.Scale(domain=list(theme.CHANGES), range=list(theme.CHANGES.values()))
    )
    base = alt.Chart(data).transform_calculate(change=change)
    span = alt.Scale(domain=[0, last + 1], nice=False)
    count = data["item"].nunique()
    step = max(3, min(16, 560 // count))
    axis = alt.Axis(labels=False, ticks=False, domain=False) if count > 40 else _item_axis(data)
    y = alt.Y("item:O", title="item, oldest on top", axis=axis)
    told = [
        "item:Q",
        "token:N",
        "entered:Q",
        "left:Q",
        "why_in:N",
        "why_out:N",
        alt.Tooltip("change:N", title="between the moments"),
    ]
    whole_events = alt.Axis(tickMinStep=1, format="d")
    bars = base.mark_bar(cornerRadius=2 if step > 8 else 0).encode(
        x=alt.X("entered:Q", title=x_title, scale=span, axis=whole_events), x2="left:Q", y=y, color=colour, tooltip=told
    )
    rules = [_moment(name, dash, span) for name, dash in (("before", [4, 3]), ("after", [1, 0]))]
    chart = alt.layer(bars, *rules).properties(width=width, height=alt.Step(step))
    tally = _tally(base, width)
    whole = alt.vconcat(tally, chart, spacing=8).add_params(*params).resolve_scale(color="shared")
    return theme.themed(whole, title, subtitle)


def _moment(name: str, dash: list[int], span: alt.Scale) -> alt.Chart:
    """A vertical line at the moment that the slider ``name`` points to (the middle of that event)."""
    one = alt.Chart(alt.Data(values=[{}])).transform_calculate(at=f"{name} + 0.5")
    return one.mark_rule(color=theme.INK, strokeWidth=1.5, strokeDash=dash).encode(x=alt.X("at:Q", scale=span))


def _item_axis(data: pd.DataFrame) -> alt.Axis:
    import json

    names = {str(int(i)): f"{int(i)}  {t}"[:18] for i, t in zip(data["item"], data["token"])}
    return alt.Axis(
        labelExpr=f"{json.dumps(names)}[datum.label]", ticks=False, domain=False, labelLimit=120, labelColor=theme.INK
    )


def _tally(base: alt.Chart, width: int) -> alt.Chart:
    """How many stayed, entered, left: one stacked bar with its numbers."""
    domain = [name for name in theme.CHANGES if name != "elsewhere"]
    counted = base.transform_filter("datum.change != 'elsewhere'").transform_aggregate(n="count()", groupby=["change"])
    colour = alt.Color("change:N", scale=alt.Scale(domain=list(theme.CHANGES), range=list(theme.CHANGES.values())))
    bars = counted.mark_bar(height=14).encode(
        y=alt.Y("change:N", sort=domain, title=None), x=alt.X("n:Q", title=None, axis=None), color=colour
    )
    text = counted.mark_text(align="left", dx=4).encode(
        y=alt.Y("change:N", sort=domain, title=None), x="n:Q", text="n:Q"
    )
    return alt.layer(bars, text).properties(width=width * 0.6, height=alt.Step(18))


def event_log(events: pd.DataFrame, *, title: str = "", subtitle: str = "", width: int = 640) -> alt.Chart:
    """The log itself: one mark per event; row and colour tell its kind, size how many items; a drag brushes a stretch.

    Columns: ``step``, ``kind``, ``n``, ``why`` (``frames.events``). Interval selection ``stretch`` on ``step``.
    """
    data = frame_for("event_log", events, numbers=("step", "n"), columns=("kind", "why"))
    data = data[["step", "kind", "n", "why"]]
    present = [kind for kind in KINDS if kind in set(data["kind"])]
    unknown = set(data["kind"]) - set(KINDS)
    if unknown:
        raise BadInput(f"event_log: kind {sorted(unknown)[0]!r} is not one of {', '.join(KINDS)}")
    brush = alt.selection_interval(name="stretch", encodings=["x"])
    colours = alt.Scale(domain=list(KINDS), range=list(COLOURS.values()))
    ticks = (
        alt.Chart(data)
        .mark_point(filled=True, shape="circle", opacity=0.75)
        .encode(
            x=alt.X("step:Q", title="event", axis=alt.Axis(tickMinStep=1), scale=alt.Scale(padding=14)),
            y=alt.Y("kind:N", sort=present, title=None, axis=alt.Axis(grid=True, labelColor=theme.INK)),
            color=alt.Color("kind:N", scale=colours, legend=None),
            size=alt.Size(
                "n:Q", title="items", scale=alt.Scale(range=[24, 320], zero=False), legend=alt.Legend(tickCount=3)
            ),
            opacity=alt.condition(brush, alt.value(0.85), alt.value(0.2)),
            tooltip=["step:Q", "kind:N", alt.Tooltip("n:Q", title="items"), "why:N"],
        )
    )
    return theme.themed(ticks.add_params(brush).properties(width=width, height=alt.Step(32)), title, subtitle)


def slot_attention(
    frame: pd.DataFrame,
    *,
    by: str = "head",
    units: str = "attention mass",
    title: str = "",
    subtitle: str = "",
    scheme: str = "viridis",
    width: int = 640,
) -> alt.Chart:
    """Attention to a memory's slots: a row per head (or query), a column per slot, the totals as bars above.

    Columns: ``slot``, ``by``, ``mass``; ``token`` and ``position`` optional, shown on hover and as labels when few.
    """
    data = frame_for("slot_attention", frame, numbers=("slot", "mass", by))
    slots = data["slot"].nunique()
    step = max(2, min(26, width // slots))
    labels = (
        _slot_axis(data)
        if "token" in data and step >= 11
        else alt.Axis(labels=step >= 16, ticks=False, domain=False, labelAngle=0)
    )
    told = [alt.Tooltip(f"{n}:N") for n in ("slot", "token", "position", by) if n in data]
    pick = alt.selection_point(name="slot", fields=["slot"], on="click")
    x = alt.X("slot:O", title="memory slot", axis=labels)
    cells = (
        alt.Chart(data)
        .mark_rect(**theme.SEAMLESS)
        .encode(
            x=x,
            y=alt.Y(f"{by}:O", title=by),
            color=alt.Color("mass:Q", title=units, scale=theme.magnitude(scheme)),
            stroke=alt.condition({"param": "slot", "empty": False}, alt.value("#E69F00"), alt.value(None)),
            tooltip=[*told, alt.Tooltip("mass:Q", title=units, format=".4~g")],
        )
        .add_params(pick)
        .properties(width=alt.Step(step), height=alt.Step(18))
    )
    total = (
        alt.Chart(data)
        .mark_bar(color=theme.CATEGORIES[0], opacity=0.8)
        .encode(
            x=alt.X("slot:O", axis=None),
            y=alt.Y("mean(mass):Q", title="mean", axis=alt.Axis(tickCount=2)),
            tooltip=[*told[:-1], alt.Tooltip("mean(mass):Q", format=".4~g")],
        )
        .properties(width=alt.Step(step), height=60)
    )
    return theme.themed(alt.vconcat(total, cells, spacing=6).resolve_scale(x="shared"), title, subtitle)


def _slot_axis(data: pd.DataFrame) -> alt.Axis:
    import json

    names = {str(int(s)): str(t) for s, t in zip(data["slot"], data["token"])}
    return alt.Axis(
        labelExpr=f"{json.dumps(names)}[datum.label]",
        labelAngle=-90,
        ticks=False,
        domain=False,
        labelLimit=90,
        labelOverlap=False,
    )
