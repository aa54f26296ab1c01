"""vAttention's pictures: virtual addresses and the pages under them, waste over time, batch by page size, step times.

The first reads ``address_map()`` of an allocator, one moment or many; the others read the study's tidy frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, has_columns
from workbench.views.figures import paper_recorded_live

if TYPE_CHECKING:
    import pandas as pd

STATES = {"used": "#0072B2", "cached": "#E69F00", "unmapped": "#eceff2"}
#: What memory holds, from the bottom of a stack: tokens, the rest of their blocks, pages kept for reuse, nothing.
PARTS = {"used": "#0072B2", "waste": "#D55E00", "cached": "#E69F00", "free": "#e4e7eb"}
MODES = {"no allocation": "#4D4D4D", "async": "#009E73", "sync": "#0072B2", "sync, not deferred": "#D55E00"}
POLICIES = ("static", "2 MB groups", "2 MB groups, mega-cache", "64 KB groups", "paged-256", "paged-16")


# -- 1: the address space ---------------------------------------------------------------------------------------------


def address_space(
    frame: pd.DataFrame, paged: pd.DataFrame | None = None, *, width: int = 760, title: str = "", subtitle: str = ""
) -> alt.Chart:
    """A buffer's virtual addresses above, the physical pages below, a line from each mapped page group to its page.

    Args:
        frame: ``VirtualKV.address_map()``, or several of them one below the other: the slider is the step then.
        paged: the same for a ``PagedKV`` in the same state: its table, whose entries are pages, is drawn beneath.

    Click a page group to keep its line alone. Columns: step, slot, block, page (-1: none), state, source.
    """
    chart = _addresses(_placed("address_space", frame), width, slider=frame["step"].nunique() > 1)
    charts = [
        theme.themed(chart, "Contiguous virtual memory", "each band is a slot; blue: in use, orange: kept mapped")
    ]
    if paged is not None:
        table = frame_for("address_space (paged)", paged, numbers=("step", "slot", "block", "page"))
        charts.append(
            theme.themed(_table(table, width), "The same requests behind a block table", "entries are block ids")
        )
    return theme.below(*charts, title=title or "Where the tokens are", subtitle=subtitle)


def _placed(view: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Every page group with its place on the two lanes, in shares of the width."""
    data = frame_for(view, frame, numbers=("step", "slot", "block", "page"), columns=("state", "source"))
    blocks = int(data["block"].max()) + 1
    whole = (int(data["slot"].max()) + 1) * blocks
    at = data["slot"] * blocks + data["block"]
    gap = 0.08
    data["left"], data["right"] = (at + gap) / whole, (at + 1 - gap) / whole
    pages = sorted(set(data.loc[data["page"] >= 0, "page"]))
    order = {page: index for index, page in enumerate(pages)}
    place = data["page"].map(order)
    data["from"], data["to"] = (place + gap) / max(len(pages), 1), (place + 1 - gap) / max(len(pages), 1)
    data["middle"], data["below"] = (data["left"] + data["right"]) / 2, (data["from"] + data["to"]) / 2
    return data


def _addresses(data: pd.DataFrame, width: int, *, slider: bool) -> Any:
    pick = alt.selection_point(name="page", fields=["page"], on="click", empty=True)
    told = [alt.Tooltip(f"{name}:N") for name in ("slot", "block", "page", "state", "source", "step")]
    scale = alt.Scale(domain=list(STATES), range=list(STATES.values()))
    colour = alt.Color("state:N", title=None, scale=scale, sort=list(STATES))
    x_axis = alt.Axis(
        title="virtual address, slot after slot (above) · physical page (below)", labels=False, ticks=False
    )
    y_axis = alt.Axis(values=[0.1, 0.9], labelExpr="datum.value > 0.5 ? 'virtual' : 'physical'", grid=False)
    x = alt.X("left:Q", scale=alt.Scale(domain=[0, 1], nice=False), axis=x_axis)
    y_scale = alt.Scale(domain=[0, 1], nice=False)
    base = alt.Chart(data)
    mapped = "datum.page >= 0"
    if slider:
        steps = sorted(set(data["step"]))
        bound = alt.binding_range(min=int(steps[0]), max=int(steps[-1]), step=1, name="step ")
        moment = alt.param(name="moment", bind=bound, value=int(steps[-1]))
        base = base.transform_filter("datum.step == moment")
    top = base.mark_rect().encode(
        x=x, x2="right:Q", y=alt.Y("high:Q", scale=y_scale, axis=y_axis, title=None), y2="low:Q", color=colour,
        opacity=alt.condition(pick, alt.value(1), alt.value(0.35)), tooltip=told,
    ).transform_calculate(high="1", low="0.82").add_params(pick)  # fmt: skip
    pool = base.transform_filter(mapped).transform_calculate(high="0.18", low="0").mark_rect().encode(
        x=alt.X("from:Q"), x2="to:Q", y=alt.Y("high:Q", scale=y_scale, axis=y_axis, title=None), y2="low:Q",
        color=colour,
        opacity=alt.condition(pick, alt.value(1), alt.value(0.35)), tooltip=told,
    )  # fmt: skip
    lines = base.transform_filter(mapped).transform_filter(pick).transform_calculate(high="0.82", low="0.18")
    links = lines.mark_rule(strokeWidth=1, opacity=0.6, color="#7b8794").encode(
        x="middle:Q", x2="below:Q", y=alt.Y("high:Q", scale=y_scale, axis=y_axis, title=None), y2="low:Q"
    )
    chart = alt.layer(links, top, pool).properties(width=width, height=230)
    return chart.add_params(moment) if slider else chart


def _table(table: pd.DataFrame, width: int) -> Any:
    """The block table at the last step: a row a request, a number an entry."""
    last = table[(table["step"] == table["step"].max()) & (table["page"] >= 0)]
    if last.empty:
        raise BadInput("address_space (paged): nothing is mapped, so the table is empty")
    base = alt.Chart(last).encode(
        x=alt.X("block:O", title="entry of the block table", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("slot:O", title="request"),
    )
    cells = base.mark_rect(color="#cfe3f1", stroke=theme.PAPER).encode(tooltip=["slot:O", "block:O", "page:O"])
    rows, columns = last["slot"].nunique(), int(last["block"].max()) + 1
    marks = [cells] if columns > 40 else [cells, base.mark_text(fontSize=9).encode(text="page:O")]
    return alt.layer(*marks).properties(width=width, height=max(60, 18 * rows))


def _rows_of(view: str, frame: pd.DataFrame, experiment: str, metrics: Iterable[str]) -> pd.DataFrame:
    """The rows that a view draws, of one run: those of several seeds are neither a stack nor a mean."""
    has_columns(view, frame, "experiment", "item", "metric", "trace", "step", "value")
    rows = frame[(frame["experiment"] == experiment) & frame["metric"].isin(list(metrics))]
    return rows[rows["seed"] == rows["seed"].iloc[0]] if "seed" in rows and len(rows) else rows


# -- 2: waste over time -----------------------------------------------------------------------------------------------


def waste_over_time(frame: pd.DataFrame, *, trace: str | None = None, width: int = 230, height: int = 120) -> alt.Chart:
    """Memory used by tokens, wasted inside blocks, kept for reuse, and free, stacked over time; a panel a policy.

    ``frame``: the study's rows of E2 with ``metric`` used, waste, cached, free. ``trace``: one of those in it (by
    default the first). Of several seeds the first is drawn. Drag over a panel to shade the same seconds in all.
    """
    rows = _rows_of("waste_over_time", frame, "E2", PARTS)
    traces = list(dict.fromkeys(rows["trace"]))
    if trace is not None and trace not in traces:
        raise BadInput(f"waste_over_time: trace={trace!r} is not in the frame; given: {', '.join(traces) or 'none'}")
    rows = rows[rows["trace"].isin([trace] if trace else traces[:1])]
    data = frame_for("waste_over_time", rows, numbers=("step", "value"), columns=("item", "metric"))
    data["order"] = data["metric"].map({name: place for place, name in enumerate(PARTS)})
    data = data.sort_values(["item", "step", "order"])  # stacked here: each policy has times of its own
    data["top"] = data.groupby(["item", "step"])["value"].cumsum()
    data["bottom"] = data["top"] - data["value"]
    brush = alt.selection_interval(name="seconds", encodings=["x"])
    scale = alt.Scale(domain=list(PARTS), range=list(PARTS.values()))
    area = (
        alt.Chart(data)
        .mark_area()
        .encode(
            x=alt.X("step:Q", title="time (s)", axis=alt.Axis(tickCount=4)),
            y=alt.Y("top:Q", title="memory (GB)", axis=alt.Axis(tickCount=4)),
            y2="bottom:Q",
            color=alt.Color("metric:N", title=None, scale=scale, sort=list(PARTS)),
            tooltip=["item:N", "metric:N", alt.Tooltip("step:Q", format=".0f"), alt.Tooltip("value:Q", format=".2f")],
        )
        .add_params(brush)
        .properties(width=width, height=height)
    )
    order = [name for name in POLICIES if name in set(data["item"])]
    chart = area.facet(facet=alt.Facet("item:N", title=None, sort=order), columns=3)
    return theme.themed(chart, "What memory holds", "simulated server, 60 GB for keys and values")


# -- 3: batch by page size --------------------------------------------------------------------------------------------


def batch_by_page(
    frame: pd.DataFrame, reported: pd.DataFrame | None = None, *, width: int = 460, height: int = 260
) -> alt.Chart:
    """Largest batch over the page-group size, a line a model; the slider is the mean context (as a power of two).

    ``frame``: ``workbench.systems.serving.batch_by_page(...)``, contexts powers of two. Diamonds: the paper's numbers.
    """
    import numpy as np

    data = frame_for("batch_by_page", frame, numbers=("group_kib", "context", "batch"), columns=("model",))
    data["log2"] = np.log2(data["context"]).round().astype(int)
    steps = sorted(set(data["log2"]))
    middle = min(steps, key=lambda value: abs(value - 12))
    bound = alt.binding_range(min=steps[0], max=steps[-1], step=1, name="log2 of the mean context ")
    context = alt.selection_point(name="context", fields=["log2"], bind=bound, value=middle)
    names = list(dict.fromkeys(data["model"]))
    colour = alt.Color("model:N", title=None, scale=theme.categories(names), sort=names)
    x = alt.X("group_kib:Q", title="page group (KB)", scale=alt.Scale(type="log", base=2), axis=alt.Axis(tickCount=6))
    y = alt.Y(
        "batch:Q", title="largest batch (requests)", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(tickCount=5)
    )
    told = ["model:N", "group_kib:Q", "context:Q", alt.Tooltip("batch:Q", format=".0f")]
    lines = alt.Chart(data).mark_line(point=True).encode(x=x, y=y, color=colour, tooltip=told)
    marks = [lines.add_params(context).transform_filter(context)]
    paper = _paper_batches(reported)
    if paper is not None:
        marks.append(alt.Chart(paper).mark_point(shape="diamond", size=110, filled=True).encode(x=x, y=y, color=colour))
    chart = alt.layer(*marks).properties(width=width, height=height)
    note = "closed form; diamonds: the paper's, on its own trace and memory"
    return theme.themed(chart, "Smaller page groups, larger batches", note)


def _paper_batches(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    import pandas as pd

    if reported is None or reported.empty:
        return None
    rows = reported[(reported["table"] == "Fig. 15") & (reported["metric"] == "max batch")]
    parts = rows["item"].str.extract(r"(?P<model>\S+) (?P<size>\d+) (?P<unit>KB|MB)")
    kib = pd.to_numeric(parts["size"]) * parts["unit"].map({"KB": 1, "MB": 1024})
    return pd.DataFrame({"model": parts["model"], "group_kib": kib, "batch": rows["value"]}).reset_index(drop=True)


# -- 4: step times ----------------------------------------------------------------------------------------------------


def step_times(frame: pd.DataFrame, *, width: int = 620, height: int = 110) -> alt.Chart:
    """Milliseconds of every step, a panel a mode; a dot where pages were mapped while the step waited.

    ``frame``: the study's rows of E3; of several seeds the first is drawn. Hovering tells how many groups were mapped
    in the step.
    """
    rows = _rows_of("step_times", frame, "E3", ("step time", "maps in the step"))
    data = frame_for("step_times", rows, numbers=("step", "value"), columns=("item", "metric"))
    wide = data.pivot_table(index=["item", "step"], columns="metric", values="value").reset_index()
    wide = wide.rename(columns={"step time": "ms", "maps in the step": "maps"})
    names = [name for name in MODES if name in set(wide["item"])]
    scale = alt.Scale(domain=names, range=[MODES[name] for name in names])
    told = [
        "item:N",
        "step:Q",
        alt.Tooltip("ms:Q", format=".3f", title="ms"),
        alt.Tooltip("maps:Q", title="groups mapped"),
    ]
    base = alt.Chart(wide).encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("ms:Q", title="time (ms)", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=4)),
        color=alt.Color("item:N", scale=scale, sort=names, legend=None),
        tooltip=told,
    )
    dots = base.transform_filter("datum.maps > 0").mark_point(filled=True, size=26)
    panel = alt.layer(base.mark_line(strokeWidth=1.2), dots, data=wide).properties(width=width, height=height)
    chart = panel.facet(
        row=alt.Row("item:N", title=None, sort=names, header=alt.Header(labelAngle=0, labelAlign="left"))
    )
    return theme.themed(
        chart, "Allocation in the way of a step, and ahead of it", "dots: pages were mapped inside the step"
    )


# -- paper, recorded, live --------------------------------------------------------------------------------------------


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """The paper's numbers beside the recorded run and this one: batch by page size, mapping calls, a table's price."""
    frames = {"live": live, "recorded": recorded}
    panels = []
    for title, unit, paper, found in (
        (
            "Largest batch, Yi-6B, about 4k tokens a request",
            "requests",
            _paper_of(reported, "Fig. 15", "Yi-6B "),
            _batches,
        ),
        ("Calls of mapping one 2 MB page group", "µs", _paper_of(reported, "Latency of calls at 2 MB"), _calls),
        ("Time over a contiguous cache, one kernel source", "ratio", _penalty(reported), _ratios),
    ):
        ours: Mapping[str, Any] = {name: found(frame) for name, frame in frames.items()}
        if any(part is not None and len(part) for part in (paper, *ours.values())):
            named = _names(paper, *ours.values())
            panels.append(
                paper_recorded_live(ours["live"], paper, ours["recorded"], unit=unit, title=title, items=named)
            )
    if not panels:
        raise BadInput("paper_figure: live, reported and recorded are all empty, so there is nothing to draw")
    return theme.below(*panels, title="vAttention: paper, recorded, live")


#: Order of the rows in the figure; what is not named here comes last.
_ROWS = ("64 KB groups", "2 MB groups", "create", "map", "driver map", "driver set access", "unmap", "release")


def _names(*frames: Any) -> list[str]:
    there = list(dict.fromkeys(item for frame in frames if frame is not None for item in frame["item"]))
    return sorted(there, key=lambda item: _ROWS.index(item) if item in _ROWS else len(_ROWS))


def _paper_of(reported: pd.DataFrame | None, table: str, prefix: str = "") -> pd.DataFrame | None:
    if reported is None or reported.empty:
        return None
    rows = reported[(reported["table"] == table) & reported["item"].str.startswith(prefix)]
    return rows.assign(item=rows["item"].str.removeprefix(prefix)) if len(rows) else None


def _penalty(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    rows = _paper_of(reported, "Prefill penalty of a block table")
    return None if rows is None else rows.assign(item="prefill, " + rows["item"] + " paged (at most)")


def _summary(rows: pd.DataFrame, by: str = "item") -> pd.DataFrame | None:
    """Mean, least and most of each item."""
    if rows.empty:
        return None
    found = rows.groupby(by, sort=False)["value"].agg(["mean", "min", "max"]).reset_index()
    return found.rename(columns={by: "item", "mean": "value", "min": "low", "max": "high"})


def _batches(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    if frame is None or frame.empty:
        return None
    rows = frame[(frame["experiment"] == "E2") & (frame["metric"] == "max batch") & (frame["trace"] == "four-thousand")]
    return _summary(rows[rows["item"] != "static"])


def _calls(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """The driver's calls where there is a GPU, else those of the memfd stand-in."""
    if frame is None or frame.empty:
        return None
    rows = frame[(frame["experiment"] == "E4") & frame["item"].isin(["cuda", "mapped"]) & (frame["group_kib"] == 2048)]
    rows = rows[rows["metric"].isin(_ROWS)]
    rows = rows[rows["item"] == ("cuda" if (rows["item"] == "cuda").any() else "mapped")]
    return _summary(rows, "metric")


def _ratios(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    import pandas as pd

    if frame is None or frame.empty:
        return None
    rows = frame[(frame["experiment"] == "E5") & (frame["metric"] == "time")].dropna(subset=["value"])
    if rows.empty:
        return None
    wide = rows.pivot_table(index=["stage", "batch", "context"], columns="item", values="value")
    parts = []
    for item in ("vAttention", "paged-16", "paged-256"):
        if item in wide and "contiguous" in wide:
            ratio = (wide[item] / wide["contiguous"]).dropna().reset_index(name="value")
            parts.append(ratio.assign(item=ratio["stage"] + f", {item}"))
    return _summary(pd.concat(parts, ignore_index=True)) if parts else None
