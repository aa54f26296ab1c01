"""The FlashAttention loop drawn: the tile walker, and the softmax of one query as it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import MAX_ROWS, frame_for

if TYPE_CHECKING:
    import pandas as pd


class _Tiling(Protocol):
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...


class Walk(Protocol):
    """What the walker draws: the frames of ``workbench.systems.flash_walk.walk``, keyed by ``step``."""

    @property
    def tiles(self) -> pd.DataFrame: ...
    @property
    def counters(self) -> pd.DataFrame: ...
    @property
    def contents(self) -> pd.DataFrame: ...
    @property
    def strips(self) -> pd.DataFrame: ...
    @property
    def tiling(self) -> _Tiling: ...
    @property
    def n(self) -> int: ...
    @property
    def d(self) -> int: ...
    @property
    def sram_bytes(self) -> int: ...
    @property
    def standard(self) -> int: ...
    @property
    def steps(self) -> int: ...


STATES = {"now": "#D55E00", "done": "#56B4E9", "to come": "#e4e7eb", "skipped": "#ffffff"}


def tile_walker(walk: Walk, *, step: int | None = None, title: str = "") -> alt.Chart:
    """The grid of tiles, what sits in SRAM, HBM traffic so far and the running row statistics.

    With ``step=None`` the chart carries a slider; with a number it stands still (for a page without JavaScript).
    """
    last = walk.steps - 1
    if step is not None and not 0 <= step <= last:
        raise BadInput(f"step must lie in 0..{last}, got {step}")
    bind = None if step is not None else alt.binding_range(min=0, max=last, step=1, name="step ")
    now = alt.param(name="step", value=0 if step is None else step, **({"bind": bind} if bind else {}))
    top, bottom = (
        alt.hconcat(*pair, spacing=36).resolve_scale(color="independent")
        for pair in ((_grid(walk), _residents(walk)), (_traffic(walk), _strips(walk)))
    )
    heading = title or f"One head, N = {walk.n}, d = {walk.d}, tiles of {walk.tiling.rows} x {walk.tiling.cols}"
    chart = alt.vconcat(top, bottom, spacing=30).add_params(now).resolve_scale(color="independent")
    return theme.themed(chart, heading, "One step is one tile: load, multiply, fold into m, l and O.")


def _grid(walk: Walk) -> alt.Chart:
    state = "datum.step < 0 ? 'skipped' : datum.step == step ? 'now' : datum.step < step ? 'done' : 'to come'"
    size = max(12, min(34, 240 // max(walk.tiles.i.max() + 1, walk.tiles.j.max() + 1)))
    colour = alt.Scale(domain=list(STATES), range=list(STATES.values()))
    return (
        alt.Chart(walk.tiles)
        .transform_calculate(state=state)
        .mark_rect(stroke="#b8c0ca", strokeWidth=0.7)
        .encode(
            x=alt.X("j:O", title="key block j", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("i:O", title="query block i"),
            color=alt.Color("state:N", title="tile", scale=colour, sort=list(STATES)),
            tooltip=["i:O", "j:O", alt.Tooltip("step:Q", title="visited at step"), "state:N"],
        )
        .properties(width=alt.Step(size), height=alt.Step(size), title="tiles")
    )


def _residents(walk: Walk) -> alt.Chart:
    """Bytes of every tensor that is in SRAM or registers at this step."""
    frame = walk.contents[walk.contents.tier != "HBM"].rename(
        columns={"live from step": "first", "live to step": "last"}
    )
    within("tile_walker", frame)
    return (
        alt.Chart(frame)
        .transform_filter("datum.first <= step && step <= datum.last")
        .mark_bar()
        .encode(
            y=alt.Y("tensor:N", title=None, sort=["Q", "K", "V", "O", "S", "m", "l"]),
            x=alt.X("bytes:Q", title="bytes on the chip", axis=alt.Axis(grid=True, tickCount=5)),
            color=alt.Color("tier:N", title="tier", scale=theme.categories(["SRAM", "register"])),
            tooltip=["tensor:N", "block:N", "shape:N", "bytes:Q", "tier:N"],
        )
        .properties(width=240, height=150, title=f"on the chip (SRAM: at most {walk.sram_bytes:,} B)")
    )


def _traffic(walk: Walk) -> alt.Chart:
    """Elements moved so far against the total of the standard algorithm."""
    frame = walk.counters.melt("step", ["reads", "writes"], "moved", "elements")
    bars = (
        alt.Chart(frame)
        .transform_filter("datum.step == step")
        .mark_bar(size=22)
        .encode(
            x=alt.X(
                "sum(elements):Q",
                title="HBM elements so far",
                scale=alt.Scale(domain=[0, 1.04 * max(walk.standard, int(frame.groupby("step").elements.sum().max()))]),
                axis=alt.Axis(grid=True, tickCount=5, format="~s"),
            ),
            color=alt.Color("moved:N", title="HBM", scale=theme.categories(["reads", "writes"])),
            tooltip=["moved:N", "elements:Q"],
        )
    )
    whole = alt.Chart(alt.InlineData([{"x": walk.standard, "text": "standard, in all"}]))
    rule = whole.mark_rule(strokeWidth=2, strokeDash=[5, 3], color=theme.INK).encode(x="x:Q")
    label = whole.mark_text(align="right", dx=-5, dy=-26, color=theme.MUTED).encode(x="x:Q", text="text:N")
    return alt.layer(bars, rule, label).properties(width=300, height=80, title="traffic")


def _strips(walk: Walk) -> alt.Chart:
    """Running maximum, row sum and output norm of some rows."""
    frame = walk.strips.melt(["step", "row"], ["m", "l", "out"], "what", "value").dropna()
    frame = frame[frame.value.abs() < float("inf")].replace({"what": {"out": "|O|"}})
    within("tile_walker", frame)
    panels = [
        alt.Chart(frame[frame.what == what])
        .transform_filter("datum.step == step")
        .mark_bar(color=colour)
        .encode(
            y=alt.Y("row:O", title="row" if what == "m" else None, axis=alt.Axis(labels=what == "m")),
            x=alt.X(
                "value:Q",
                title=what,
                scale=alt.Scale(domain=_span(frame[frame.what == what].value)),
                axis=alt.Axis(tickCount=3),
            ),
            tooltip=["row:O", alt.Tooltip("value:Q", title=what, format=".3f")],
        )
        .properties(width=70, height=150)
        for what, colour in (("m", "#0072B2"), ("l", "#009E73"), ("|O|", "#CC79A7"))
    ]
    return alt.hconcat(*panels, spacing=10, title="running row statistics")


def _span(values: Any) -> list[float]:
    return [min(0.0, float(values.min())), float(values.max())]


def within(view: str, frame: pd.DataFrame) -> None:
    if len(frame) > MAX_ROWS:
        raise BadInput(f"{view}: {len(frame):,} rows are more than the {MAX_ROWS:,} a chart can hold; use a shorter N")


def partial_softmax(frame: pd.DataFrame) -> alt.Chart:
    """Running m, l and norm of O of one query over the keys seen; the gap to exact attention on the prefix on hover.

    Columns: keys, m, l, out, gap.
    """
    data = frame_for("partial_softmax", frame, numbers=("keys", "m", "l", "out", "gap"))
    names = {"m": "running maximum m", "l": "running sum l", "out": "norm of the output O"}
    over = alt.selection_point(name="moment", fields=["keys"], nearest=True, on="pointerover", empty=False)
    tips = [alt.Tooltip(f"{c}:Q", format=".4~g") for c in names]
    tips = ["keys:Q", *tips, alt.Tooltip("gap:Q", title="distance from exact attention on these keys", format=".1e")]
    panels = []
    for (column, label), colour in zip(names.items(), ("#0072B2", "#009E73", "#CC79A7")):
        base = alt.Chart(data).encode(
            x=alt.X("keys:Q", title="keys seen" if column == "out" else None),
            y=alt.Y(f"{column}:Q", title=label.split(" ")[-1], axis=alt.Axis(tickCount=3)),
            tooltip=tips,
        )
        dots = base.mark_point(filled=True, color=colour, opacity=1).encode(
            size=alt.condition(over, alt.value(140), alt.value(40))
        )
        line = base.mark_line(interpolate="step-after", color=colour)
        panels.append(
            alt.layer(line, dots.add_params(over) if column == "m" else dots).properties(
                width=420, height=80, title=label
            )
        )
    worst = f"largest distance from exact attention on the prefix: {data.gap.max():.1e}"
    return theme.themed(alt.vconcat(*panels, spacing=14), "A softmax that is never finished, yet always exact", worst)
