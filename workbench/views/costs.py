"""What an action was predicted to cost and what it did cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from workbench.views import theme
from workbench.views._check import frame_for

if TYPE_CHECKING:
    import pandas as pd

_PARTS = {"predicted": "#b8c0ca", "spent": "#0072B2"}


def cost_bars(frame: pd.DataFrame, *, title: str = "", subtitle: str = "", width: int = 300) -> alt.Chart:
    """Predicted beside spent, one panel per unit.

    Columns: ``action``, ``unit`` (``"s"``, ``"bytes"``, anything), ``predicted``, ``spent`` (NaN before it ran).
    """
    data = frame_for("cost_bars", frame, numbers=("predicted", "spent"), columns=("action", "unit"))
    long = data.melt(["action", "unit"], ["predicted", "spent"], "part", "amount").dropna(subset=["amount"])
    panels = [_panel(long[long["unit"] == unit], str(unit), width) for unit in dict.fromkeys(data["unit"])]
    whole = alt.hconcat(*panels).resolve_scale(color="shared")
    return theme.themed(whole, title, subtitle)


def _panel(data: pd.DataFrame, unit: str, width: int) -> alt.Chart:
    form = {"bytes": ".3~s", "s": ".3~g"}.get(unit, ".3~s")
    name = {"s": "seconds"}.get(unit, unit)
    base = alt.Chart(data).encode(
        y=alt.Y(
            "action:N",
            sort=list(dict.fromkeys(data["action"])),
            title=None,
            axis=alt.Axis(labelColor=theme.INK, labelLimit=200),
        ),
        yOffset=alt.YOffset("part:N", sort=list(_PARTS)),
        x=alt.X("amount:Q", title=name, axis=alt.Axis(format=form, tickCount=4, grid=True)),
    )
    colour = alt.Color(
        "part:N", title=None, sort=list(_PARTS), scale=alt.Scale(domain=list(_PARTS), range=list(_PARTS.values()))
    )
    bars = base.mark_bar().encode(
        color=colour, tooltip=["action:N", "part:N", alt.Tooltip("amount:Q", title=name, format=form)]
    )
    text = base.mark_text(align="left", dx=4, fontSize=10, color=theme.MUTED).encode(
        text=alt.Text("amount:Q", format=form)
    )
    return alt.layer(bars, text).properties(width=width, height=alt.Step(17, **{"for": "offset"}))
