"""Sparsey's pictures: one draw taken apart, similarity of codes, filling up, and the figure of the study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.views import theme
from workbench.views._check import MAX_ROWS, frame_for
from workbench.views._study_rows import study_rows
from workbench.views.figures import line_with_band, paper_recorded_live

if TYPE_CHECKING:
    import pandas as pd

NAMES = {"csa": "CSA", "random": "random codes", "max": "largest V"}
METRICS = {
    "class units": "class units",
    "nearest code": "nearest code",
    "nearest image": "raw-pixel 1-NN",
    "code similarity": "rank corr. image, code",
}


def draw_bars(frame: pd.DataFrame, *, title: str = "", subtitle: str = "", columns: int = 6) -> alt.Chart:
    """One draw: per CM the familiarity V of each cell (outline) and its probability rho (filled); the winner is marked.

    Columns: cm, cell, V, rho (in [0, 1]) and won (bool).
    """
    data = frame_for("draw_bars", frame, numbers=("cm", "cell", "V", "rho"), columns=("won",))
    base = alt.Chart(data).encode(x=alt.X("cell:O", title="cell", axis=alt.Axis(labels=False, ticks=False)))
    axis = alt.Scale(domain=[0, 1])
    told = [
        alt.Tooltip("cm:O", title="CM"),
        "cell:O",
        alt.Tooltip("V:Q", format=".3f"),
        alt.Tooltip("rho:Q", format=".3f"),
    ]
    seen = base.mark_bar(filled=False, stroke=theme.INK, strokeWidth=1, opacity=0.55).encode(
        y=alt.Y("V:Q", scale=axis, title="V (outline), ρ (filled)"), tooltip=told
    )
    inks = alt.Color("won:N", title="drawn", scale=alt.Scale(domain=[False, True], range=["#56B4E9", "#D55E00"]))
    chance = base.mark_bar(opacity=0.85).encode(y=alt.Y("rho:Q", scale=axis), color=inks, tooltip=told)
    panel = alt.layer(chance, seen).properties(width=92, height=84)
    return theme.themed(panel.facet(alt.Facet("cm:O", title="competitive module"), columns=columns), title, subtitle)


def draw_frame(v: Any, rho: Any, winners: Any) -> pd.DataFrame:
    """The frame of ``draw_bars`` from familiarities and probabilities (Q, K) and the winner of each CM (Q,)."""
    import numpy as np
    import pandas as pd

    v, rho, winners = np.asarray(v), np.asarray(rho), np.asarray(winners)
    cm, cell = (index.ravel() for index in np.indices(v.shape))
    return pd.DataFrame({"cm": cm, "cell": cell, "V": v.ravel(), "rho": rho.ravel(), "won": winners[cm] == cell})


def similarity_curves(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Mean code intersection over shared inputs, one line a way of choosing codes and number of items stored.

    Reads the study's rows of the experiment "similarity".
    """
    rows = _curve(frame, "similarity", "intersection")
    rows["line"] = rows["selection"].map(NAMES) + ", " + rows["setting"].str.replace("stored=", "") + " stored"
    return line_with_band(
        rows, "x", "value", low="low", high="high", colour="line", zero=True,
        x_title="active inputs shared with a stored item (of 12)",
        y_title="share of CMs with the same winner", title=title, subtitle=subtitle, width=290,
    )  # fmt: skip


def capacity_curves(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Recall of everything stored against how much is stored, CSA and random codes."""
    rows = _curve(frame, "capacity", "recall")
    rows["codes"] = rows["selection"].map(NAMES)
    return line_with_band(
        rows, "x", "value", low="low", high="high", colour="codes", x_title="images stored in one mac",
        y_title="share of CMs right", zero=True, title=title, subtitle=subtitle, width=290,
    )  # fmt: skip


def similarity_scatter(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Pairs of stored items: similarity of the images against intersection of the codes.

    Columns: image, code (numbers in [0, 1]), same (bool: of one class), first, second (item numbers).
    """
    data = frame_for("similarity_scatter", frame, numbers=("image", "code", "first", "second"), columns=("same",))
    brush = alt.selection_interval(name="pairs")
    names = alt.Scale(domain=[False, True], range=[theme.CATEGORIES[0], theme.CATEGORIES[1]])
    colour = alt.condition(brush, alt.Color("same:N", title="same class", scale=names), alt.value("#c5ccd3"))
    chart = alt.Chart(data.head(MAX_ROWS)).mark_circle(size=18, opacity=0.5).add_params(brush)
    chart = chart.encode(
        x=alt.X("image:Q", title="cosine of the two images"),
        y=alt.Y("code:Q", title="intersection of their codes"),
        color=colour,
        tooltip=["first:Q", "second:Q", alt.Tooltip("image:Q", format=".2f"), alt.Tooltip("code:Q", format=".2f")],
    )
    return theme.themed(chart.properties(width=380, height=300), title, subtitle)


def filling_up(
    frame: pd.DataFrame, *, frozen_at: float | None = None, title: str = "", subtitle: str = ""
) -> alt.Chart:
    """What happens as items are stored; ``frozen_at`` draws the item from which on nothing is learnt.

    Columns: item (number), measure (text), value.
    """
    data = frame_for("filling_up", frame, numbers=("item", "value"), columns=("measure",))
    lines = line_with_band(
        data,
        "item",
        "value",
        colour="measure",
        points=False,
        zero=True,
        x_title="items stored",
        y_title="share",
        width=460,
    )
    if frozen_at is None:
        return theme.themed(lines, title, subtitle)
    rule = alt.Chart(alt.Data(values=[{"at": frozen_at}])).mark_rule(strokeDash=[4, 3], color=theme.INK)
    return theme.layered(lines, rule.encode(x="at:Q"), title=title, subtitle=subtitle)


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """Similarity and capacity curves of the live run (else the recorded one), and accuracy from all sources."""
    shown, whose = (live, "live run") if live is not None and len(live) else (recorded, "recorded run")
    curves: list[Any] = []
    if shown is not None and (shown["experiment"] == "similarity").any():
        curves.append(similarity_curves(shown, title=f"Similar inputs, similar codes ({whose})"))
    if shown is not None and (shown["experiment"] == "capacity").any():
        curves.append(capacity_curves(shown, title=f"The price: capacity ({whose})"))
    found = {"live": _accuracies(live), "recorded": _accuracies(recorded)}
    dots = paper_recorded_live(
        found["live"], _reported(reported), found["recorded"], item="item", unit="share, rank correlation",
        title="Digits", width=420, row_height=34,
    )  # fmt: skip
    title = "Superposed codes: similarity without comparison, and what it costs"
    note = [
        "The page's 91 % is MNIST with an unpublished layout of macs; ours are scikit-learn's 8 × 8 digits,",
        "thinned the same way: compare CSA with random codes and with raw pixels, not with that number.",
    ]
    top = [theme.beside(*curves)] if curves else []
    return theme.below(*top, dots, title=title, subtitle=note)


def _curve(frame: pd.DataFrame, experiment: str, metric: str) -> pd.DataFrame:
    """Mean and 95 % normal interval of a metric at every x, by selection and setting."""
    rows = study_rows(f"{experiment}_curves", frame, experiments=[experiment], metrics=[metric])
    rows = rows.fillna({"setting": ""})
    found = rows.groupby(["selection", "setting", "x"])["value"].agg(["mean", "sem"]).reset_index()
    half = 1.96 * found["sem"].fillna(0.0)
    return found.assign(value=found["mean"], low=found["mean"] - half, high=found["mean"] + half)


def _accuracies(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    import pandas as pd

    from workbench.statistics import bootstrap

    if frame is None or not len(frame):
        return None
    lines: list[dict[str, Any]] = []
    rows = frame[(frame["experiment"] == "digits") & frame["metric"].isin(METRICS)]
    for (metric, train, select), group in rows.groupby(["metric", "x", "selection"]):
        if metric == "nearest image" and select != "csa":
            continue
        name = METRICS[str(metric)] + ("" if metric == "nearest image" else f", {NAMES[str(select)]}")
        lines.append({"item": f"{name} ({train:.0f} stored)"} | bootstrap(group["value"])._asdict())
    table = pd.DataFrame(lines)
    return table.rename(columns={"effect": "value"}).sort_values("item") if len(table) else None


def _reported(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    rows = reported[reported["unit"] == "share"].copy()
    rows["item"] = [f"{table.split(' (')[0]}, {item.split(',')[0]}" for table, item in zip(rows["table"], rows["item"])]
    return rows
