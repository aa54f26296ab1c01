"""From which length on a memory of fixed size is faster than exact attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for

if TYPE_CHECKING:
    import pandas as pd


def crossover_length(rows: pd.DataFrame) -> float:
    """The shortest measured length from which on ours beats every peer; NaN where it never does.

    Columns ``length``, ``ours``, ``median_ms``: the rows of one rule and pass.
    """
    found = math.nan
    rows = rows.dropna(subset=["median_ms"])
    for length in sorted(rows["length"].unique(), reverse=True):
        group = rows[rows["length"] == length]
        ours, peers = (group.loc[group["ours"] == who, "median_ms"].min() for who in (True, False))
        if not ours < peers:
            break
        found = float(length)
    return found


def crossover_lines(frame: pd.DataFrame, *, title: str = "", subtitle: str = "", width: int = 260) -> alt.HConcatChart:
    """Time by length at one number of tokens, a panel a rule and pass, from the rows of ``workbench bench layers``.

    Columns: ``kind`` (rows of kind "crossover" are drawn), ``what``, ``pass``, ``length``, ``tokens``, ``item``,
    ``ours``, ``median_ms`` (NaN where a contender could not). Both axes are logarithmic; the dashed line stands where
    ours begins to be the fastest. A rule that was measured at one length alone has no line and is left out, unless
    that is true of all.
    """
    columns = ("kind", "what", "pass", "item", "ours")
    data = frame_for("crossover_lines", frame, numbers=("length", "tokens", "median_ms"), columns=columns)
    data = data[data["kind"] == "crossover"].dropna(subset=["median_ms"])
    if data.empty:
        raise BadInput("crossover_lines needs rows of kind 'crossover' with a median_ms; run workbench bench layers")
    lengths = data.groupby("what")["length"].transform("nunique")
    data = data[lengths > 1] if (lengths > 1).any() else data
    colour = theme.categories(sorted(data["item"].unique()))
    panels = [_panel(rows, f"{what}, {which}", colour, width) for (what, which), rows in data.groupby(["what", "pass"])]
    return theme.beside(*panels, title=title, subtitle=subtitle)


def _panel(data: pd.DataFrame, name: str, colour: alt.Scale, width: int) -> alt.LayerChart:
    tokens = int(data["tokens"].max())
    lengths = sorted(map(int, data["length"].unique()))
    base = alt.Chart(data, title=name).encode(
        x=alt.X(
            "length:Q",
            title="length of a row (k = 1,024 tokens)",
            scale=alt.Scale(type="log", base=2),
            axis=alt.Axis(values=lengths, labelExpr="datum.value / 1024 + 'k'", labelOverlap=False),
        ),
        y=alt.Y("median_ms:Q", title=f"ms for {tokens:,} tokens", scale=alt.Scale(type="log")),
        color=alt.Color("item:N", title=None, scale=colour),
        tooltip=["item:N", "length:Q", alt.Tooltip("median_ms:Q", title="ms", format=".3g")],
    )
    layers = [base.mark_line(), base.mark_point(filled=True, size=35)]
    where = crossover_length(data)
    if not math.isnan(where):
        at = alt.Chart(alt.Data(values=[{"length": where}])).encode(x="length:Q")
        layers.append(at.mark_rule(strokeDash=[4, 3], color=theme.MUTED))
    return alt.layer(*layers).properties(width=width, height=220)
