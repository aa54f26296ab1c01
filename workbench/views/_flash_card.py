"""What the recorded run on a card adds to FlashAttention's pictures: block sizes and the training comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import has_columns

if TYPE_CHECKING:
    import pandas as pd

LOSSES = {"standard": "#4D4D4D", "triton": "#56B4E9", "hopper": "#0072B2"}


def time_by_block(frame: pd.DataFrame) -> alt.Chart:
    """Fig. 2 (middle) on the card: forward time and counted bytes of the v1 loop order over the column block size.

    ``frame`` is a study frame (experiment "Fig2 GPU", metrics time, hbm and bandwidth).
    """
    has_columns("time_by_block", frame, "experiment", "metric", "value")
    rows = frame[(frame.experiment == "Fig2 GPU") & frame.metric.isin(["time", "hbm"])]
    if rows.empty:
        raise BadInput("time_by_block: no rows of experiment 'Fig2 GPU'; they need a CUDA device")
    table = rows.groupby(["block", "metric"]).value.median().unstack("metric").reset_index()
    table = table.assign(speed=table.hbm / table.time * 1e3)
    blocks = sorted(table.block)
    base = alt.Chart(table).encode(
        x=alt.X(
            "block:Q",
            title="column block size B_c",
            scale=alt.Scale(type="log", base=2),
            axis=alt.Axis(values=blocks, format="d"),
        ),
        tooltip=["block:Q", "time:Q", "hbm:Q", alt.Tooltip("speed:Q", title="GB/s", format=".0f")],
    )
    panels = [
        alt.layer(*(mark.encode(y=alt.Y(f"{name}:Q", title=title)) for mark in _marks(base, colour))).properties(
            width=300, height=105
        )
        for name, title, colour in (("time", "time (ms)", "#E69F00"), ("hbm", "counted HBM (GB)", "#4D4D4D"))
    ]
    words = f"v1 loop order, forward; counted bytes / time = {table.speed.min():.0f} to {table.speed.max():.0f} GB/s"
    return theme.themed(alt.vconcat(*panels, spacing=12), "Block size on the card", words)


def _marks(base: alt.Chart, colour: str) -> tuple[alt.Chart, alt.Chart]:
    return base.mark_line(color=colour), base.mark_point(filled=True, size=60, opacity=1, color=colour)


def losses(frame: pd.DataFrame) -> alt.Chart:
    """Table 2 in small: training loss over steps, a line a kernel (and seed), from the same seed and batches."""
    has_columns("losses", frame, "experiment", "item", "metric", "value")
    rows = frame[(frame.experiment == "training") & (frame.metric == "loss")]
    if rows.empty:
        raise BadInput("losses: no rows of experiment 'training'; they need a CUDA device")
    data = rows[["item", "repeat", "value"]].assign(seed=rows.seed if "seed" in rows else 0)
    names = [name for name in LOSSES if name in set(data["item"])]
    wide = data.pivot_table(index=["seed", "repeat"], columns="item", values="value")
    others = [name for name in wide if name != "standard"]
    gap = wide[others].sub(wide["standard"], axis=0).abs().max().max() if "standard" in wide else float("nan")
    chart = (
        alt.Chart(data)
        .mark_line(opacity=0.8)
        .encode(
            x=alt.X("repeat:Q", title="training step"),
            y=alt.Y("value:Q", title="loss (nats a byte)", scale=alt.Scale(zero=False)),
            color=alt.Color("item:N", title=None, scale=alt.Scale(domain=names, range=[LOSSES[n] for n in names])),
            strokeDash=alt.StrokeDash("item:N", title=None, scale=alt.Scale(domain=names, range=_DASHES[: len(names)])),
            detail="seed:N",
            tooltip=["item:N", "seed:N", "repeat:Q", alt.Tooltip("value:Q", format=".3f")],
        )
        .properties(width=320, height=230)
    )
    return theme.themed(chart, "The same training with every kernel", f"largest difference of two losses: {gap:.3f}")


_DASHES = [[1, 0], [6, 3], [2, 3]]
