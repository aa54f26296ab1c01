"""FlashAttention-2's pictures: programs on multiprocessors, warps on a tile, the split of a tile's time, the race.

Frames come from ``workbench.systems.sm_schedule`` and from the study's run; every function is pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, has_columns, one_of
from workbench.views._flash_race import end_to_end, share_of_ceiling, speeds, training

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "end_to_end",
    "occupancy",
    "operation_split",
    "orders",
    "paper_figure",
    "share_of_ceiling",
    "shared_memory",
    "sm_timeline",
    "speeds",
    "training",
    "warp_partition",
]

VERSIONS = {"v1": "#E69F00", "v2": "#0072B2"}
GRIDS = {"heads": "#E69F00", "rows": "#0072B2"}


# -- programs on multiprocessors --------------------------------------------------------------------------------------


def sm_timeline(frame: pd.DataFrame, *, sms: int, title: str = "Programs on multiprocessors") -> alt.Chart:
    """Gantt chart: time in tile times, one line a multiprocessor, colour = head; the share of time that computes.

    Columns: sm, start, end, head, row, tiles (``Schedule.frame()``). At most 5,000 programs.
    """
    data = frame_for("sm_timeline", frame, numbers=("sm", "start", "end", "head", "row", "tiles"))
    busy = float(data.tiles.sum() / (sms * data.end.max()))
    tips = ["sm:Q", "head:Q", "row:Q", alt.Tooltip("tiles:Q", title="tiles"), "start:Q", "end:Q"]
    bars = (
        alt.Chart(data.assign(below=data.sm + 0.92))
        .mark_rect(stroke=theme.PAPER, strokeWidth=0.3)
        .encode(
            x=alt.X("start:Q", title="time (tile times)", scale=alt.Scale(domain=[0, float(data.end.max())])),
            x2="end:Q",
            y=alt.Y("sm:Q", title="multiprocessor", scale=alt.Scale(domain=[0, sms], reverse=True, nice=False)),
            y2="below:Q",
            color=alt.Color("head:O", title="head", scale=_head_colours(data), legend=None),
            tooltip=tips,
        )
        .properties(width=520, height=240)
    )
    words = f"{len(data)} programs on {sms} multiprocessors, {busy:.0%} of the time computing; colour = head"
    return theme.themed(bars, title, words)


def _head_colours(data: pd.DataFrame) -> alt.Scale:
    return theme.categories(sorted(data["head"].unique().tolist()))


def occupancy(frame: pd.DataFrame) -> alt.Chart:
    """E2: share of the multiprocessors that each grid keeps busy over batch x heads; a panel a card size."""
    rows = _rows("occupancy", frame, "E2", "utilisation")[["item", "sms", "heads", "value"]]
    base = alt.Chart(rows).encode(
        x=alt.X("heads:Q", title="batch x heads", scale=alt.Scale(type="log", base=2), axis=alt.Axis(values=_POWERS)),
        y=alt.Y("value:Q", title="multiprocessors busy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("item:N", title="one program a", scale=_named(GRIDS), legend=alt.Legend(labelExpr=_GRID_NAMES)),
        tooltip=["item:N", "sms:Q", "heads:Q", alt.Tooltip("value:Q", format=".0%")],
    )
    panel = alt.layer(base.mark_line(), base.mark_point(filled=True, size=35, opacity=1)).properties(
        width=240, height=190
    )
    chart = panel.facet(column=alt.Column("sms:O", title="multiprocessors"))
    return theme.themed(chart, "Who keeps the card busy", "equal programs of 16 x 16 tiles, by the wave model")


_POWERS = [1, 4, 16, 64, 256]
_GRID_NAMES = "datum.label == 'heads' ? 'head' : 'row block of a head'"


def _named(colours: dict[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def orders(frame: pd.DataFrame) -> alt.Chart:
    """E3: time of a causal launch relative to longest first, one dot a shape; columns item, sms, heads, n, value."""
    rows = _rows("orders", frame, "E3", "makespan")[["item", "sms", "heads", "n", "load", "value"]]
    best = rows[rows["item"] == "longest-first"].set_index(["sms", "heads", "n"]).value
    place = list(zip(rows.sms, rows.heads, rows.n))
    rows = rows.assign(relative=rows.value / best.groupby(level=[0, 1, 2]).first().reindex(place).to_numpy())
    names = ["launch", "reversed", "persistent", "longest-first"]
    chart = (
        alt.Chart(rows)
        .mark_point(filled=True, size=60, opacity=0.75)
        .encode(
            x=alt.X("relative:Q", title="time / time of longest first", scale=alt.Scale(domainMin=0.95)),
            y=alt.Y("item:N", title=None, sort=names, axis=alt.Axis(labelColor=theme.INK, labelLimit=160)),
            color=alt.Color("sms:N", title="multiprocessors", scale=alt.Scale(range=["#E69F00", "#0072B2"])),
            tooltip=["item:N", "sms:Q", "heads:Q", "n:Q", alt.Tooltip("load:Q", format=".1f"), "relative:Q"],
        )
        .properties(width=320, height=alt.Step(34))
    )
    return theme.themed(chart, "The order of starting", "causal, between one and four programs a multiprocessor")


# -- warps on a tile --------------------------------------------------------------------------------------------------


def warp_partition(split: str = "split-Q", *, warps: int = 4) -> alt.Chart:
    """The tile, Q_i at its left, K_j above it, coloured by the warp that computes it; grey = read by every warp."""
    one_of("warp_partition", "split", split, ("split-K", "split-Q"))
    if not 1 <= warps <= 8:
        raise BadInput(f"warp_partition: warps must lie in 1..8, got {warps}")
    by_rows = split == "split-Q"
    step, cells = 1.0 / warps, []
    for warp in range(warps):
        low, high = warp * step, (warp + 1) * step
        rows, cols = ((low, high), (0.0, 1.0)) if by_rows else ((0.0, 1.0), (low, high))
        name = f"warp {warp}"
        cells.append({"x": cols[0], "x2": cols[1], "y": rows[0], "y2": rows[1], "who": name, "what": "S = Q K"})
        side = {"x": -0.2, "x2": -0.04, "y": rows[0], "y2": rows[1], "who": name if by_rows else "all", "what": "Q"}
        top = {"x": cols[0], "x2": cols[1], "y": -0.2, "y2": -0.04, "who": "all" if by_rows else name, "what": "K"}
        cells += [side, top]
    names = [*(f"warp {i}" for i in range(warps)), "all"]
    colours = alt.Scale(domain=names, range=[*theme.CATEGORIES[:warps], "#b8c0ca"])
    hidden = alt.Axis(labels=False, ticks=False, domain=False, grid=False)
    base = alt.Chart(alt.InlineData(cells)).encode(
        x=alt.X("x:Q", title="keys", scale=alt.Scale(domain=[-0.25, 1.05]), axis=hidden),
        x2="x2:Q",
        y=alt.Y("y:Q", title="queries", scale=alt.Scale(domain=[-0.25, 1.05], reverse=True), axis=hidden),
        y2="y2:Q",
    )
    boxes = base.mark_rect(stroke=theme.PAPER, strokeWidth=1.5).encode(
        color=alt.Color("who:N", title="read or computed by", scale=colours, sort=names), tooltip=["who:N", "what:N"]
    )
    words = {
        "split-Q": "every warp owns queries: it needs all keys, and nobody else's results",
        "split-K": "every warp owns keys: partial outputs are summed through shared memory",
    }
    return theme.themed(boxes.properties(width=210, height=210), split, words[split])


def shared_memory(frame: pd.DataFrame, *, rows: int = 128, cols: int = 128, d: int = 64, warps: int = 4) -> alt.Chart:
    """E4: counted bytes through shared memory of one tile by what they are for, split-K against split-Q."""
    data = _rows("shared_memory", frame, "E4", "counted")
    data = data[(data.rows == rows) & (data.cols == cols) & (data.d == d) & (data.warps == warps)]
    if data.empty:
        raise BadInput(f"shared_memory: no tile {rows} x {cols}, d = {d}, {warps} warps in the frame")
    names = {"exchange": "partial outputs", "statistics": "row statistics", "keys": "K and V", "queries": "Q"}
    data = data.drop_duplicates(["item", "part"]).assign(
        part=lambda t: t.part.map(names), kilo=lambda t: t.value / 1024
    )
    chart = (
        alt.Chart(data[["item", "part", "kilo"]])
        .mark_bar()
        .encode(
            x=alt.X("sum(kilo):Q", title="shared memory read and written (KiB a tile)", axis=alt.Axis(grid=True)),
            y=alt.Y("item:N", title=None, sort=["split-K", "split-Q"], axis=alt.Axis(labelColor=theme.INK)),
            color=alt.Color("part:N", title=None, sort=list(names.values()), scale=theme.categories([*names.values()])),
            tooltip=["item:N", "part:N", alt.Tooltip("kilo:Q", title="KiB", format=".1f")],
        )
        .properties(width=220, height=alt.Step(34))
    )
    return theme.themed(chart, "What crosses shared memory", f"tile {rows} x {cols}, d = {d}, {warps} warps")


# -- the split of a tile's time ---------------------------------------------------------------------------------------


def operation_split(frame: pd.DataFrame, *, card: str = "A100", rows: int = 128) -> alt.Chart:
    """Modelled time of a tile, matrix products and everything else, v1 against v2; relative to v2 in all."""
    data = _rows("operation_split", frame, "arithmetic", None)
    data = data[(data.card == card) & data.metric.isin(["matmul", "other"]) & (data.rows == rows)]
    if data.empty:
        cards = ", ".join(sorted(frame.card.dropna().unique())) if "card" in frame else "none"
        raise BadInput(f"operation_split: no rows for card {card!r} and B_r = {rows}; cards: {cards}")
    data = data.drop_duplicates(["item", "rows", "cols", "d", "metric"])
    tile = data.rows.map("{:g}".format) + " x " + data.cols.map("{:g}".format) + ", d = " + data.d.map("{:g}".format)
    data = data.assign(tile=tile)
    whole = data[data["item"] == "v2"].groupby("tile").value.sum()
    data = data.assign(relative=data.value / data.tile.map(whole), part=data.metric.map(_PARTS))
    chart = (
        alt.Chart(data[["item", "tile", "part", "relative"]])
        .mark_bar()
        .encode(
            x=alt.X("sum(relative):Q", title="time of a tile / time of a v2 tile", axis=alt.Axis(grid=True)),
            y=alt.Y("item:N", title=None, axis=alt.Axis(labelColor=theme.INK)),
            color=alt.Color("part:N", title=None, sort=list(_PARTS.values()), scale=_named(_PART_COLOURS)),
            row=alt.Row("tile:N", title=None, header=alt.Header(labelAngle=0, labelAlign="left", labelFontWeight=500)),
            tooltip=["tile:N", "item:N", "part:N", alt.Tooltip("relative:Q", format=".3f")],
        )
        .properties(width=280, height=alt.Step(15))
    )
    return theme.themed(chart, "Operations that are not products", f"by the throughputs of an {card}")


_PARTS = {"matmul": "matrix products", "other": "everything else"}
_PART_COLOURS = {"matrix products": "#0072B2", "everything else": "#D55E00"}


def _rows(view: str, frame: pd.DataFrame, experiment: str, metric: str | None) -> pd.DataFrame:
    """The rows of one experiment of a study frame; BadInput where there are none."""
    columns = ("experiment", "item", "metric")
    has_columns(view, frame, *columns)
    if len(frame) > 5_000:
        frame = frame[frame.experiment == experiment]
    data = frame_for(view, frame, numbers=("value",), columns=columns)
    data = data[(data.experiment == experiment) & (True if metric is None else data.metric == metric)]
    if data.empty:
        raise BadInput(f"{view}: no rows of experiment {experiment!r}, so there is nothing to draw")
    return data


# -- the figure -------------------------------------------------------------------------------------------------------


def paper_figure(
    live: pd.DataFrame | None, reported: pd.DataFrame | None = None, recorded: pd.DataFrame | None = None
) -> alt.Chart:
    """Figs. 4 to 7 and Table 1: the race, training speeds beside the paper's, the models; the missing is left out."""
    models = live if live is not None and len(live) else recorded
    rows = [[_drawn(speeds, live, reported, recorded, stage=stage)] for stage in ("forward", "backward")] + [
        [_drawn(training, live, reported, recorded)],
        [_drawn(occupancy, models)],
        [_drawn(orders, models)],
        [_drawn(operation_split, models), _drawn(shared_memory, models)],
    ]
    lines = [[theme.bare(part) for part in row if part is not None] for row in rows]
    drawn = [alt.hconcat(*line, spacing=40) for line in lines if line]
    if not drawn:
        raise BadInput("paper_figure: live, reported and recorded are all empty, so there is nothing to draw")
    apart = dict.fromkeys(("color", "shape", "strokeDash", "opacity"), "independent")
    chart = alt.vconcat(*(line.resolve_scale(**apart) for line in drawn), spacing=34).resolve_scale(**apart)
    return theme.themed(chart, "FlashAttention-2 (Dao 2023): measured, modelled, and in the paper")


def _drawn(view: Any, *frames: pd.DataFrame | None, **words: Any) -> alt.Chart | None:
    try:
        return view(*frames, **words) if any(frame is not None and len(frame) for frame in frames) else None
    except BadInput:
        return None
