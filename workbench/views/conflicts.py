"""Pictures of knowledge conflicts: which heads decide, who wins when they are pruned, where attention is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.views import theme
from workbench.views._check import frame_for
from workbench.views._study_rows import study_rows
from workbench.views.figures import line_with_band, paper_recorded_live

if TYPE_CHECKING:
    import pandas as pd

WINNERS = ("memory", "context", "other")
INKS = ("#0072B2", "#E69F00", "#999999")
GAINS = {
    "context heads": ("memory", "context heads pruned: memory gains"),
    "memory heads": ("context", "memory heads pruned: context gains"),
}


def head_plane(
    frame: pd.DataFrame, *, title: str = "", subtitle: str = "", label: int = 6, legend: str = "right"
) -> alt.Chart:
    """Every head by layer and by how far it moves the prediction; the ``label`` largest are named.

    Columns: layer, head, balance (negative: a memory head, positive: a context head, in nats), type. ``legend``: its
    side.
    """
    data = frame_for("head_plane", frame, numbers=("layer", "head", "balance"), columns=("type",))
    data["kind"] = data["type"].replace("", "neither")
    data["name"] = [f"{int(layer)}.{int(head)}" for layer, head in zip(data["layer"], data["head"])]
    order = ["memory", "context", "neither"]
    base = alt.Chart(data).encode(
        # A margin on both sides: the names of the outermost heads keep off the axis.
        x=alt.X("balance:Q", title="← needed for memory · needed for context → (nats)", scale=alt.Scale(padding=24)),
        y=alt.Y("layer:O", title="layer", sort="descending"),
    )
    inks, key = alt.Scale(domain=order, range=list(INKS)), alt.Legend(orient=legend)
    ink = alt.Color("kind:N", title="head", sort=order, scale=inks, legend=key)
    told = ["name:N", "kind:N", alt.Tooltip("balance:Q", format=".2f")]
    dots = base.mark_circle(size=60, opacity=0.75).encode(color=ink, tooltip=told)
    far = data.assign(size=data["balance"].abs()).nlargest(label, "size")
    names = alt.Chart(far).mark_text(dy=-10, fontSize=10, color=theme.INK)
    names = names.encode(x="balance:Q", y=alt.Y("layer:O", sort="descending"), text="name:N")
    return theme.layered(dots, names, title=title, subtitle=subtitle).properties(width=330, height=190)


def rate_bars(
    frame: pd.DataFrame, *, title: str = "", subtitle: str = "", width: int = 320, legend: str = "right"
) -> alt.Chart:
    """Shares of prompts that memory, context or something else wins, one bar a way of pruning.

    Reads the study's rows (pruned, metric, value) of the metrics "memory", "context", "other". ``legend``: its side.
    """
    rows = study_rows("rate_bars", frame, metrics=WINNERS)
    data = rows.groupby(["pruned", "metric"], sort=False)["value"].mean().reset_index()
    data["order"] = data["metric"].map({name: place for place, name in enumerate(WINNERS)})
    base = alt.Chart(data).encode(
        y=alt.Y("pruned:N", title="pruned", sort=list(dict.fromkeys(data["pruned"])), axis=alt.Axis(labelLimit=220)),
        x=alt.X("value:Q", title="share of conflicts won", stack="zero", scale=alt.Scale(domain=[0, 1])),
        order=alt.Order("order:Q"),
        tooltip=["pruned:N", "metric:N", alt.Tooltip("value:Q", format=".3f")],
    )
    inks = alt.Scale(domain=list(WINNERS), range=list(INKS))
    key = alt.Legend(orient=legend)
    ink = alt.Color("metric:N", title="won by", scale=inks, sort=list(WINNERS), legend=key)
    bars = base.mark_bar(height=18).encode(color=ink)
    return theme.themed(bars.properties(width=width, height=alt.Step(28)), title, subtitle)


def knockout_curves(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Probability of both answers when the last position cannot see a group of tokens in one layer and the next.

    Reads the rows of the experiment "knockout"; step -1 is the model untouched (drawn at its own place). Means and
    bands (95 %) over people, each by the mean of their prompts in all models.
    """
    rows = study_rows("knockout_curves", frame, experiments=["knockout"])
    people = rows.groupby(["pruned", "metric", "step", "person"])["value"].mean()
    found = people.groupby(level=["pruned", "metric", "step"]).agg(["mean", "sem"]).reset_index()
    found = found.assign(low=found["mean"] - 1.96 * found["sem"], high=found["mean"] + 1.96 * found["sem"])
    found["answer"] = found["metric"].map({"p_memory": "memory", "p_context": "context"})
    return line_with_band(
        found, "step", "mean", low="low", high="high", colour="answer", facet="pruned", x_title="first layer blocked",
        y_title="probability", order=["memory", "context"], title=title, subtitle=subtitle, width=210, height=170,
        zero=True,
    )  # fmt: skip


def transfer_map(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Rates after pruning heads found on one relation (rows), tested on another (columns)."""
    rows = study_rows("transfer_map", frame, experiments=["transfer"])
    cell = rows.groupby(["pruned", "form", "relation"])
    data = cell.agg(value=("value", "mean"), people=("person", "nunique")).reset_index()
    cells = (
        alt.Chart(data)
        .mark_rect()
        .encode(
            x=alt.X("relation:N", title="tested on"),
            y=alt.Y("form:N", title="found on"),
            color=alt.Color("value:Q", title="rate of the other side", scale=theme.magnitude(domain=[0, 1])),
            tooltip=["form:N", "relation:N", alt.Tooltip("value:Q", format=".2f"), "people:Q"],
        )
    )
    return theme.themed(cells.properties(width=200, height=180).facet("pruned:N", columns=2), title, subtitle)


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """Who wins with which heads pruned (live, else recorded), and the rates gained beside the paper's means."""
    shown, whose = (live, "live run") if live is not None and len(live) else (recorded, "recorded run")
    top: list[Any] = []
    if shown is not None and (shown["experiment"] == "control").any():
        control = shown[shown["experiment"] == "control"]
        first = control["model"].iloc[0]
        control = control[control["model"] == first]
        top = [rate_bars(control, title=f"Who wins ({whose}, {first})", legend="bottom"),
               head_plane(scores(control), title="Heads (same run)", legend="bottom")]  # fmt: skip
    dots = paper_recorded_live(
        gains(live), _reported(reported), gains(recorded), item="item", unit="rate gained (share of conflicts)",
        panel="panel", title="What pruning gains", width=300, row_height=44,
    )  # fmt: skip
    note = (
        "The paper: means of eight large models on capitals and the like. Here: 7 million weights, a generated world."
    )
    return theme.below(*([theme.beside(*top)] if top else []), dots, title="A few heads decide", subtitle=note)


def scores(frame: pd.DataFrame) -> pd.DataFrame:
    """layer, head, balance, type of each head from the study's rows, means over seeds."""
    rows = study_rows("scores", frame, metrics=["s_memory", "s_context"])
    wide = rows.pivot_table(index="unit", columns="metric", values="value").reset_index()
    wide[["layer", "head"]] = wide["unit"].astype(str).str.split(".", expand=True).astype(int)
    wide["balance"] = wide["s_memory"] - wide["s_context"]
    far = wide["balance"].abs() > 2 * wide["balance"].std(ddof=0)
    wide["type"] = [("memory" if b < 0 else "context") if out else "" for b, out in zip(wide["balance"], far)]
    return wide[["layer", "head", "balance", "type"]]


def gains(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """item, panel, value, low, high: rate gained by pruning, by model and direction; bootstrap over people."""
    import pandas as pd

    from workbench.statistics import group_means, of_differences

    if frame is None or not len(frame):
        return None
    lines = []
    for model, group in frame[frame["experiment"] == "control"].groupby("model"):
        for pruned, (metric, panel) in GAINS.items():
            rows = group[(group["metric"] == metric) & group["pruned"].isin([pruned, "nothing"])]
            keys = [key for key in ("seed", "person", "unit") if key in rows]
            wide = rows.pivot_table(index=keys, columns="pruned", values="value").dropna()
            if not {pruned, "nothing"} <= set(wide):
                continue
            shift, people = wide[pruned] - wide["nothing"], wide.index.get_level_values("person")
            found = of_differences(group_means(shift, people))
            lines.append({"item": model, "panel": panel, "value": found.effect, "low": found.low, "high": found.high})
    return pd.DataFrame(lines)


def _reported(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    first = reported["item"].str.startswith("context")
    panels = first.map({True: GAINS["context heads"][1], False: GAINS["memory heads"][1]})
    return reported.assign(item="mean of 8 language models", panel=panels)
