"""FlashAttention's pictures: the tile walker, Fig. 2 (middle and right), scaling, and the trace of a partial softmax.

Frames come from ``workbench.systems.flash_walk`` and from the study's run; every function is pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, has_columns
from workbench.views._flash_card import losses, time_by_block
from workbench.views._flash_walk import partial_softmax, tile_walker, within

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "arithmetic",
    "errors",
    "losses",
    "paper_figure",
    "partial_softmax",
    "scaling",
    "sparse_model",
    "tile_walker",
    "time_by_block",
    "time_by_sparsity",
    "traffic_by_block",
]

KERNELS = {
    "standard": "#4D4D4D",
    "standard + mask and dropout": "#8A6D00",
    "flash": "#0072B2",
    "triton-v1": "#E69F00",
    "triton": "#56B4E9",
    "hopper": "#0072B2",
    "SDPA flash": "#009E73",
    "SDPA cuDNN": "#CC79A7",
}


# -- Fig. 2 -----------------------------------------------------------------------------------------------------------


def traffic_by_block(
    live: pd.DataFrame | None, reported: pd.DataFrame | None = None, recorded: pd.DataFrame | None = None
) -> alt.Chart:
    """Fig. 2 (middle): counted HBM gigabytes, forward and backward, over the column block size.

    ``live`` and ``recorded`` are study frames (rows with experiment "Fig2"); ``reported`` is the paper's table.
    """
    counted = _counted({"recorded": recorded, "live": live})
    layers: list[Any] = []
    if len(counted):
        layers += _counted_layers(counted)
    paper = _paper_traffic(reported)
    if paper is not None:
        layers += _paper_layers(paper)
    if not layers:
        raise BadInput("traffic_by_block: all three frames are empty, so there is nothing to draw")
    chart = alt.layer(*layers).resolve_scale(color="shared").properties(width=360, height=260)
    return theme.themed(chart, "HBM traffic over block size", "GPT-2 medium's shape, half precision, counted")


def _counted(frames: dict[str, pd.DataFrame | None]) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for source, frame in frames.items():
        if frame is not None and len(frame) and "experiment" in frame:
            rows = frame[(frame.experiment == "Fig2") & (frame.metric == "hbm")]
            rows = rows.drop_duplicates(["item", "stage", "block"])
            total = rows.groupby(["item", "block"], dropna=False).value.sum().reset_index()
            parts.append(total.assign(source=source))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["item", "block", "value", "source"])


_BLOCK = alt.X(
    "block:Q",
    title="column block size B_c",
    scale=alt.Scale(type="log", base=2, domain=[28, 600]),
    axis=alt.Axis(values=[32, 64, 128, 256, 512]),
)
_GB = alt.Y("value:Q", title="HBM read and written (GB)", scale=alt.Scale(zero=True))


def _kernel_colour(names: list[str]) -> alt.Color:
    scale = alt.Scale(domain=names, range=[KERNELS.get(name, "#4D4D4D") for name in names])
    return alt.Color("item:N", title=None, scale=scale, sort=names)


def _counted_layers(counted: pd.DataFrame) -> list[alt.Chart]:
    names = [name for name in KERNELS if name in set(counted["item"])]
    tips = ["item:N", "block:Q", alt.Tooltip("value:Q", title="GB", format=".2f"), "source:N"]
    by_block = counted.dropna(subset=["block"])
    flat = counted[counted.block.isna()].drop_duplicates("item")
    sources = alt.Shape(
        "source:N", title=None, scale=alt.Scale(domain=["recorded", "live"], range=["square", "circle"])
    )
    line = alt.Chart(by_block).mark_line().encode(x=_BLOCK, y=_GB, color=_kernel_colour(names), detail="source:N")
    dots = (
        alt.Chart(by_block)
        .mark_point(filled=True, size=70, opacity=1)
        .encode(x=_BLOCK, y=_GB, color=_kernel_colour(names), shape=sources, tooltip=tips)
    )
    rules = alt.Chart(flat).mark_rule(strokeWidth=2).encode(y=_GB, color=_kernel_colour(names), tooltip=tips)
    return [line, dots, rules]


def _paper_traffic(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or reported.empty:
        return None
    rows = reported[(reported.table == "Fig. 2 left") & (reported.metric == "hbm")]
    if rows.empty:
        return None
    label = rows["item"] + " in the paper: " + rows.value.map("{:g} GB".format)
    return rows.assign(label=label)[["item", "value", "label", "verified", "source"]].rename(
        columns={"source": "where"}
    )


def _paper_layers(paper: pd.DataFrame) -> list[alt.Chart]:
    base = alt.Chart(paper).encode(y=_GB, tooltip=["label:N", "where:N"])
    rule = base.mark_rule(strokeDash=[2, 4], strokeWidth=1.5, color=theme.SOURCES["paper"])
    text = base.mark_text(align="left", baseline="bottom", dy=-3, color=theme.MUTED).encode(
        x=alt.value(4), text="label:N"
    )
    return [rule, text]


def time_by_sparsity(live: pd.DataFrame | None, recorded: pd.DataFrame | None = None) -> alt.Chart:
    """Fig. 2 (right): time over the share of live tiles, relative to the dense run of the same kernel.

    Processor time on a CPU (experiment "E4"), and forward + backward on a card (experiment "E4 GPU").
    """
    frame = _sparsity({"recorded": recorded, "live": live})
    if frame.empty:
        raise BadInput("time_by_sparsity: no rows of experiment E4 with a time, so there is nothing to draw")
    x = alt.X("s:Q", title="share of live tiles s", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1.02]))
    y = alt.Y("relative:Q", title="time / dense time", scale=alt.Scale(domainMin=0))
    sources = list(dict.fromkeys(frame.source))
    tones = ["#0072B2" if name.startswith("live") else tone for name, tone in zip(sources, _RECORDED)]
    colour = alt.Color("source:N", title=None, sort=sources, scale=alt.Scale(domain=sources, range=tones))
    tips = ["item:N", "source:N", "n:Q", alt.Tooltip("s:Q", format=".1%"), alt.Tooltip("relative:Q", format=".3f")]
    whisker = alt.Chart(frame).mark_rule(strokeWidth=1.5).encode(x=x, y="low:Q", y2="high:Q", color=colour)
    dots = (
        alt.Chart(frame)
        .mark_point(filled=True, size=70, opacity=1)
        .encode(
            x=x,
            y=y,
            color=colour,
            shape=alt.Shape("pattern:N", title="pattern"),
            tooltip=tips,
        )
    )
    ideal = alt.Chart(alt.InlineData([{"s": 0, "relative": 0}, {"s": 1, "relative": 1}]))
    line = ideal.mark_line(strokeDash=[5, 3], color=theme.MUTED, strokeWidth=1.2).encode(x="s:Q", y="relative:Q")
    chart = alt.layer(line, whisker, dots).properties(width=300, height=260)
    return theme.themed(chart, "Block-sparse time", "dashed: time in proportion to s")


_RECORDED = ("#E69F00", "#D55E00", "#CC79A7", "#009E73", "#56B4E9", "#8A6D00")


def _sparsity(frames: dict[str, pd.DataFrame | None]) -> pd.DataFrame:
    import pandas as pd

    parts = []
    for source, frame in frames.items():
        if frame is None or frame.empty or "experiment" not in frame:
            continue
        rows = frame[frame.experiment.isin(["E4", "E4 GPU"]) & (frame.metric == "time")]
        rows = rows[(rows.experiment == "E4") | (rows.stage == "forward+backward")]
        for key, group in rows.groupby(["experiment", "n"]):
            place, n = str(key[0]), float(group.n.iloc[0])
            by_item = group.groupby(["item", "s"]).value
            found = by_item.median().rename("value").reset_index()
            dense = found.sort_values("s").value.iloc[-1]
            found = found.assign(low=by_item.quantile(0.25).to_numpy(), high=by_item.quantile(0.75).to_numpy())
            found[["relative", "low", "high"]] = found[["value", "low", "high"]] / dense
            pattern = found["item"].str.replace(r" [\d.]+$", "", regex=True)
            where = f"{source}, GPU, N = {n / 1024:g}k" if place == "E4 GPU" else f"{source}, CPU"
            parts.append(found.assign(pattern=pattern, source=where, n=n))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def arithmetic(live: pd.DataFrame | None, reported: pd.DataFrame | None = None) -> alt.Chart:
    """Traffic, operations and time of flash relative to standard, ours beside the paper's Fig. 2 (left)."""
    rows = [*_paper_ratios(reported), *_live_ratios(live)]
    if not rows:
        raise BadInput("arithmetic: neither frame holds the rows of Fig. 2, so there is nothing to draw")
    order = ["FLOPs", "HBM traffic", "time on an A100"]
    sources = ["paper", "live, B_c = 256", "live, B_c = 512"]
    base = alt.Chart(alt.InlineData(rows)).encode(
        y=alt.Y("what:N", sort=order, title=None, axis=alt.Axis(labelColor=theme.INK)),
        yOffset=alt.YOffset("source:N", sort=sources),
        x=alt.X(
            "ratio:Q", title="flash / standard", scale=alt.Scale(zero=True, domainMax=1.35), axis=alt.Axis(grid=True)
        ),
    )
    colour = alt.Scale(domain=sources, range=[theme.SOURCES["paper"], "#0072B2", "#56B4E9"])
    bars = base.mark_bar().encode(
        color=alt.Color("source:N", title=None, sort=sources, scale=colour), tooltip=["source:N", "ratio:Q"]
    )
    text = base.mark_text(align="left", dx=4).encode(text=alt.Text("ratio:Q", format=".2f"))
    chart = alt.layer(bars, text).properties(width=300, height=alt.Step(16, **{"for": "offset"}))
    return theme.themed(chart, "More arithmetic, less traffic")


def _paper_ratios(reported: pd.DataFrame | None) -> list[dict[str, Any]]:
    if reported is None or reported.empty:
        return []
    rows = reported[reported.table == "Fig. 2 left"].pivot_table(index="metric", columns="item", values="value")
    names = {"flops": "FLOPs", "hbm": "HBM traffic", "time": "time on an A100"}
    return [
        {"what": names[str(metric)], "source": "paper", "ratio": float(row["FlashAttention"] / row["standard"])}
        for metric, row in rows.iterrows()
    ]


def _live_ratios(live: pd.DataFrame | None) -> list[dict[str, Any]]:
    if live is None or live.empty or "experiment" not in live:
        return []
    rows = live[live.experiment == "Fig2"].drop_duplicates(["item", "stage", "block", "metric"])
    flops = rows[rows.metric == "flops"].groupby("item").value.sum()
    traffic = rows[rows.metric == "hbm"].groupby(["item", "block"], dropna=False).value.sum()
    standard = float(traffic["standard + mask and dropout"].iloc[0])
    found = [
        {"what": "HBM traffic", "source": f"live, B_c = {b}", "ratio": float(traffic["flash"][b]) / standard}
        for b in (256, 512)
    ]
    ratio = float(flops["flash"] / flops["standard"])
    return [*found, {"what": "FLOPs", "source": "live, B_c = 256", "ratio": ratio}]


# -- scaling and exactness --------------------------------------------------------------------------------------------


def scaling(frame: pd.DataFrame, *, metric: str = "peak", stage: str = "forward+backward") -> alt.Chart:
    """Peak bytes or time over the sequence length, log-log, one line a kernel; a cross marks what ran out of memory.

    Columns: item, n, metric, stage, value (study rows of E3 or GPU). Brush to select lengths, as ``lengths_<metric>``.
    """
    data = frame_for("scaling", frame, numbers=("n", "value"), columns=("item", "metric", "stage"))
    rows = data[(data.metric == metric) & (data.stage == stage)]
    if rows.empty:
        raise BadInput(f"scaling: no rows with metric {metric!r} and stage {stage!r}")
    rows = rows.groupby(["item", "n"])["value"].median().reset_index()
    failed = data[(data.metric == "out of memory") & (data.stage == stage)].drop_duplicates(["item", "n"])
    names = sorted(set(rows["item"]), key=lambda name: list(KERNELS).index(name) if name in KERNELS else 99)
    title = {"peak": "most bytes held at once", "time": "time (ms)"}.get(metric, metric)
    form = "~g" if metric == "time" else "~s"
    ticks = sorted(set(rows.n) | set(failed.n))
    powers = [10.0**p for p in range(-3, 13)]
    x = alt.X("n:Q", title="sequence length N", scale=alt.Scale(type="log", base=2), axis=alt.Axis(values=ticks))
    y = alt.Y("value:Q", title=title, scale=alt.Scale(type="log"), axis=alt.Axis(format=form, grid=True, values=powers))
    brush = alt.selection_interval(name=f"lengths_{metric}", encodings=["x"])  # two of these may share a page
    tips = ["item:N", "n:Q", alt.Tooltip("value:Q", format=".4~s")]
    line = alt.Chart(rows).mark_line().encode(x=x, y=y, color=_kernel_colour(names))
    dots = (
        alt.Chart(rows)
        .mark_point(filled=True, size=60, opacity=1)
        .encode(x=x, y=y, color=_kernel_colour(names), tooltip=tips)
    )
    layers = [line, dots.add_params(brush)]
    if len(failed):
        marks = failed.assign(value=rows.value.max())
        cross = alt.Chart(marks).mark_point(shape="cross", angle=45, size=110, filled=True)
        layers.append(cross.encode(x=x, y=y, color=_kernel_colour(names), tooltip=["item:N", "n:Q", "metric:N"]))
    return theme.themed(alt.layer(*layers).properties(width=340, height=260), "Scaling with the sequence length")


def errors(frame: pd.DataFrame) -> alt.Chart:
    """C1: largest error against float64, one tick a draw, of our kernel and of the plain computation."""
    has_columns("errors", frame, "experiment", "item", "metric", "value")
    rows = frame[(frame.experiment == "E2") & (frame.metric == "max error") & (frame.tensor == "out")]
    if rows.empty:
        raise BadInput("errors: no rows of experiment E2 with a max error")
    data = rows[["item", "dtype", "input", "value"]]
    within("errors", data)
    names = ["standard", "flash"]
    chart = (
        alt.Chart(data)
        .mark_tick(thickness=2, size=12, opacity=0.7)
        .encode(
            x=alt.X(
                "value:Q",
                title="largest error against float64",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format="~e", tickCount=4),
            ),
            y=alt.Y("item:N", title=None, sort=names),
            color=_kernel_colour(names).legend(None),
            row=alt.Row(
                "dtype:N",
                title=None,
                sort=["float16", "bfloat16", "float32"],
                header=alt.Header(labelAngle=0, labelAlign="left"),
            ),
            column=alt.Column("input:N", title=None, sort=["normal", "outliers", "sharp"]),
            tooltip=["item:N", "dtype:N", "input:N", alt.Tooltip("value:Q", format=".2e")],
        )
        .properties(width=170, height=44)
    )
    return theme.themed(chart, "Error of the tiled and of the plain computation")


def sparse_model(frame: pd.DataFrame) -> alt.Chart:
    """E5: mean surprise of held-out text over the share of (causal) tiles that stay live; a point a pattern."""
    has_columns("sparse_model", frame, "experiment", "item", "metric", "value")
    rows = frame[(frame.experiment == "E5") & (frame.metric == "surprise")]
    if rows.empty:
        raise BadInput("sparse_model: no rows of experiment E5; the language model is not here")
    data = rows.groupby("item", as_index=False).agg(s=("s", "first"), value=("value", "mean"))
    data["label"] = data["item"].where(data["item"] != "eager", "")
    base = alt.Chart(data).encode(
        x=alt.X(
            "s:Q",
            title="share of live tiles below the diagonal",
            axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1.0]),
            scale=alt.Scale(domain=[0, 1.2]),
        ),
        y=alt.Y("value:Q", title="surprise (nats a token)", scale=alt.Scale(zero=False, padding=12)),
        tooltip=["item:N", "s:Q", alt.Tooltip("value:Q", format=".4f")],
    )
    dots = base.mark_point(filled=True, size=80, color="#0072B2", opacity=1)
    text = base.mark_text(align="left", dx=8, dy=-6, color=theme.MUTED).encode(text="label:N")
    return theme.themed(
        alt.layer(dots, text).properties(width=340, height=220), "What a block-sparse mask costs the model"
    )


def paper_figure(
    live: pd.DataFrame | None, reported: pd.DataFrame | None = None, recorded: pd.DataFrame | None = None
) -> alt.Chart:
    """Fig. 2 as this study reproduces it; parts without data are left out."""
    parts = [
        _or_none(traffic_by_block, live, reported, recorded),
        _or_none(time_by_sparsity, live, recorded),
        _or_none(arithmetic, live, reported),
    ]
    whole = live if live is not None and len(live) else recorded
    if whole is not None and len(whole) and "experiment" in whole:
        memory = whole[whole.experiment == "E3"]
        parts.append(_or_none(scaling, memory) if len(memory) else None)
    card = next((frame for frame in (recorded, live) if _on_a_card(frame)), None)
    if card is not None:
        half = card[(card.experiment == "GPU") & (card.dtype == "bfloat16") & (card.d == 64) & (card.input == "full")]
        parts += [_or_none(_times, half), _or_none(time_by_block, card), _or_none(losses, card)]
    drawn = [theme.bare(part) for part in parts if part is not None]
    if not drawn:
        raise BadInput("paper_figure: live, reported and recorded are all empty, so there is nothing to draw")
    apart = dict.fromkeys(("color", "shape", "strokeDash"), "independent")
    rows = [alt.hconcat(*drawn[i : i + 2], spacing=44).resolve_scale(**apart) for i in range(0, len(drawn), 2)]
    chart = alt.vconcat(*rows, spacing=40).resolve_scale(**apart)
    return theme.themed(chart, "FlashAttention (Dao et al. 2022), Fig. 2, counted and measured here")


def _on_a_card(frame: pd.DataFrame | None) -> bool:
    return frame is not None and len(frame) > 0 and "experiment" in frame and bool((frame.experiment == "GPU").any())


def _times(frame: pd.DataFrame) -> alt.Chart:
    chart = scaling(frame, metric="time")
    return theme.themed(theme.bare(chart), "Time on the card, forward and backward", "bf16, d = 64, full, 16k tokens")


def _or_none(view: Any, *frames: pd.DataFrame | None) -> alt.Chart | None:
    try:
        return view(*frames)
    except BadInput:
        return None
