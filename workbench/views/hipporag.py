"""HippoRAG's pictures: mass that spreads over the graph, ranks that change, ablations, and damping by threshold.

``spreading`` and ``rank_change`` read the frames of a retrieval's trace; the others read the study's tidy frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, has_columns, one_of
from workbench.views.graph import node_link

if TYPE_CHECKING:
    import pandas as pd

ROLES = {"query node": "#0072B2", "reached": "#E69F00", "not reached": "#c9d0d8"}
GOLD = "#009E73"
#: Methods in the order of every picture.
METHODS = (
    "BM25", "dense", "HippoRAG", "HippoRAG, ensemble", "HippoRAG 2", "no synonymy edges", "no node specificity",
    "query nodes and neighbours", "query nodes only", "OpenIE by rules", "OpenIE by REBEL", "IRCoT + BM25",
    "IRCoT + dense", "IRCoT + HippoRAG",
)  # fmt: skip
_METRICS = ("R@2", "R@5", "AR@5")
#: Columns of the study that the views read.
_STUDY = ("part", "corpus", "question", "kind", "method", "damping", "tau", "metric", "value")
#: Rows of the study -> panel of the figure.
PANELS: dict[tuple[str, str | None, str], str] = {
    **{("musique", None, metric): f"MuSiQue: {metric}" for metric in _METRICS},
    ("world", "two-hop", "AR@5"): "generated, two hops: AR@5",
    ("world", "path-finding", "R@5"): "generated, path-finding: R@5",
    ("world", "one-hop", "R@5"): "generated, one hop: R@5",
}
#: (table, item) of the reported numbers -> method here. The paper's dense retriever is ColBERTv2.
PAPER: dict[tuple[str, str], str] = {
    ("MuSiQue: single step", "BM25"): "BM25",
    ("MuSiQue: single step", "ColBERTv2"): "dense",
    ("MuSiQue: all recall", "ColBERTv2"): "dense",
    ("MuSiQue: all recall", "HippoRAG"): "HippoRAG",
    ("MuSiQue: ablation", "full"): "HippoRAG",
    ("MuSiQue: several steps", "IRCoT + ColBERTv2"): "IRCoT + dense",
    ("MuSiQue: several steps", "IRCoT + HippoRAG (ColBERTv2)"): "IRCoT + HippoRAG",
    **{("MuSiQue: ablation", name): name for name in METHODS},
}


def spreading(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    *,
    step: float | None = None,
    title: str = "",
    subtitle: str = "",
    **options: Any,
) -> alt.Chart:
    """The walk, step by step (the slider): area is a phrase's mass, colour its role, dashed edges join synonyms.

    ``nodes`` and ``edges`` are ``Trace.frames()``. A click on a phrase keeps its edges.
    """
    return node_link(
        nodes,
        edges,
        groups=list(ROLES),
        colours=list(ROLES.values()),
        step=step,
        step_title="step of the walk",
        size_title="mass",
        weight_title="weight",
        title=title or "Mass spreads from the question's nodes",
        subtitle=subtitle or "area: probability of the walk; dashed: synonyms; slider: steps",
        **options,
    )


def rank_change(
    frame: pd.DataFrame, *, before: str = "flat", after: str = "HippoRAG", title: str = "", subtitle: str = ""
) -> alt.Chart:
    """Slopes from a flat retriever's rank to HippoRAG's; passages that hold the answer are drawn in green.

    Columns: ``id``, ``before``, ``after`` (ranks, 1 is best; ``Trace.changes``), ``title`` and ``gold`` (yes/no).
    Ranks stand on a log scale, so that the first places have room. A click selects a passage (selection ``passage``).
    """
    data = frame_for("rank_change", frame, numbers=("id", "before", "after"), columns=("title", "gold"))
    if (data[["before", "after"]] < 1).any(axis=None):
        raise BadInput("rank_change: ranks start at 1")
    data["gold"] = data["gold"].astype(bool)
    data["kind"] = ["holds the answer" if gold else "other" for gold in data["gold"]]
    long = data.melt(["id", "title", "gold", "kind"], ["before", "after"], "side", "rank")
    long["side"] = long["side"].map({"before": before, "after": after})
    pick = alt.selection_point(name="passage", fields=["id"], on="click")
    base = alt.Chart(long).encode(
        x=alt.X("side:N", sort=[before, after], title=None, axis=_sides(), scale=_SIDES),
        y=alt.Y("rank:Q", title="rank", scale=alt.Scale(type="log", reverse=True, nice=False), axis=_rank_axis(long)),
        detail="id:N",
        color=alt.Color("kind:N", title=None, scale=_kinds(), legend=alt.Legend(orient="bottom")),
        tooltip=["title:N", "side:N", "rank:Q"],
        opacity=alt.condition(pick, alt.value(1.0), alt.value(0.25)),
    )
    line = base.mark_line().encode(strokeWidth=alt.condition("datum.gold", alt.value(3), alt.value(1.2)))
    dots = base.mark_point(filled=True, size=70).add_params(pick)
    names = _slope_names(long, before, after)
    chart = alt.layer(line, dots, *names).properties(width=600, height=360)
    return theme.themed(chart, title or "Who moved", subtitle or "one line a passage; log scale")


#: Room for titles on both sides: the two columns stand at 31 % and 69 % of the width.
_SIDES = alt.Scale(type="point", padding=0.8)


def _kinds() -> alt.Scale:
    return alt.Scale(domain=["holds the answer", "other"], range=[GOLD, "#a3adb8"])


def _sides() -> alt.Axis:
    return alt.Axis(labelAngle=0, orient="top", domain=False, ticks=False, labelFontSize=12, labelColor=theme.INK)


def _rank_axis(long: pd.DataFrame) -> alt.Axis:
    last = int(long["rank"].max())
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000) if tick <= last]
    return alt.Axis(values=ticks, format="d", grid=True)


def _slope_names(long: pd.DataFrame, before: str, after: str) -> list[Any]:
    """Titles beside the first places; those that would run into one above are left to the tooltip."""
    import math

    parts = []
    for side, align, dx in ((before, "right", -10), (after, "left", 10)):
        rows = []
        span = math.log(float(long["rank"].max()) + 1e-9) or 1.0
        here = long[long["side"] == side].sort_values(["gold", "rank"], ascending=[False, True])
        taken: list[float] = []
        for index, rank in zip(here.index, here["rank"]):
            place = 360 * math.log(rank) / span
            if all(abs(place - other) > 13 for other in taken):
                taken.append(place)
                rows.append(index)
        named = here.loc[rows].assign(_name=[_short(text) for text in here.loc[rows, "title"]])
        text = alt.Chart(named).mark_text(align=align, dx=dx, fontSize=10.5)
        parts.append(
            text.encode(
                x=alt.X("side:N", sort=[before, after], scale=_SIDES),
                y=alt.Y("rank:Q", scale=alt.Scale(type="log", reverse=True, nice=False)),
                text="_name:N",
                color=alt.condition("datum.gold", alt.value(GOLD), alt.value(theme.MUTED)),
            )
        )
    return parts


def _short(text: Any) -> str:
    text = str(text)
    return text if len(text) <= 30 else text[:29] + "…"


def robustness(frame: pd.DataFrame, *, metric: str = "R@5", title: str = "", subtitle: str = "") -> alt.Chart:
    """Damping by synonymy threshold: mean ``metric`` of HippoRAG on MuSiQue (the study's grid), the paper's boxed."""
    has_columns("robustness", frame, *_STUDY)
    rows = frame[(frame["part"] == "musique") & (frame["method"] == "HippoRAG") & (frame["metric"] == metric)]
    if not len(rows):
        raise BadInput(f"robustness: the frame has no rows of HippoRAG's {metric} on MuSiQue")
    rows = rows.drop_duplicates(["question", "damping", "tau"])
    table = rows.groupby(["damping", "tau"])["value"].mean().reset_index()
    table["paper"] = (table["damping"] == 0.5) & (table["tau"] == 0.8)
    low, high = float(table["value"].min()), float(table["value"].max())
    base = alt.Chart(table).encode(
        x=alt.X("damping:O", title="damping d (probability of walking on)", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("tau:O", title="synonymy threshold τ", sort="descending"),
    )
    scale = theme.magnitude("viridis", domain=[low, high] if high > low else [low - 0.01, high])
    cells = base.mark_rect(**theme.SEAMLESS).encode(
        color=alt.Color("value:Q", title=metric, scale=scale, legend=alt.Legend(format=".3f")),
        tooltip=["damping:Q", "tau:Q", alt.Tooltip("value:Q", title=metric, format=".3f")],
    )
    boxed = base.transform_filter("datum.paper").mark_rect(fill=None, stroke=theme.PAPER, strokeWidth=3)
    dark = (low + high) / 2
    text = base.mark_text(fontSize=13, fontWeight=600).encode(
        text=alt.Text("value:Q", format=".3f"),
        color=alt.condition(f"datum.value > {dark}", alt.value("#1f2933"), alt.value(theme.PAPER)),
    )
    count = rows["question"].nunique()
    chart = alt.layer(cells, boxed, text).properties(width=alt.Step(92), height=alt.Step(54))
    told = f"mean of {count} questions; boxed: the paper's choice; largest difference {high - low:.3f}"
    return theme.themed(chart, title or "Does the setting matter?", subtitle or told)


# ---------------------------------------------------------------------- paper / recorded / live


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """Ablation bars of all sources: what each method finds among the first 2 or 5 passages.

    The paper's MuSiQue numbers are those of 1,000 development questions over 11,656 passages with ColBERTv2; ours are
    100 training questions over 1,890 passages with another encoder. They are comparable in their differences only.
    """
    found = {"paper": _reported(reported), "recorded": summary(recorded), "live": summary(live)}
    panels = [_panel(name, found) for name in PANELS.values()]
    shown = [panel for panel in panels if panel is not None]
    if not shown:
        raise BadInput("paper_figure: live, reported and recorded hold nothing to draw")
    pairs = [theme.beside(*shown[i : i + 2]) for i in range(0, len(shown), 2)]
    return theme.below(
        *pairs,
        title="What one walk over the phrases finds, and what each part of it is worth",
        subtitle=[
            "Whiskers: bootstrap 95 %. The paper: 1,000 MuSiQue dev questions, 11,656 passages, ColBERTv2.",
            "Here: 100 MuSiQue train questions, 1,890 passages, another encoder: compare differences, not levels.",
        ],
    )


def _panel(name: str, found: dict[str, pd.DataFrame | None]) -> Any:
    """Bars of one panel: a group a method, in it a bar a source."""
    import pandas as pd

    parts = [
        table[table["panel"] == name].assign(source=source, low=table.get("low"), high=table.get("high"))
        for source, table in found.items()
        if table is not None and (table["panel"] == name).any()
    ]
    if not parts:
        return None
    data = pd.concat([part[["method", "source", "value", "low", "high"]] for part in parts], ignore_index=True)
    data[["low", "high"]] = data[["low", "high"]].astype(float)
    methods = [method for method in METHODS if method in set(data["method"])]
    sources = [source for source in theme.SOURCES if source in set(data["source"])]
    base = alt.Chart(data).encode(
        y=alt.Y("method:N", sort=methods, title=None, scale=alt.Scale(paddingInner=0.35), axis=_METHOD_AXIS),
        yOffset=alt.YOffset("source:N", sort=sources, scale=alt.Scale(domain=sources)),
    )
    top = max(0.1, *(float(data[name].max()) for name in ("value", "high") if data[name].notna().any()))
    unit = "share of questions" if "AR" in name else "share of gold passages"
    x = alt.X("value:Q", title=unit, scale=alt.Scale(domain=[0, min(1.0, top * 1.05)]), axis=alt.Axis(tickCount=5))
    inks = alt.Scale(domain=sources, range=[theme.SOURCES[source] for source in sources])
    told = ["method:N", "source:N", *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("value", "low", "high"))]
    bars = base.mark_bar(opacity=0.9).encode(
        x=x, color=alt.Color("source:N", title=None, scale=inks, sort=sources), tooltip=told
    )
    known = base.transform_filter("isValid(datum.low) && isValid(datum.high)")
    whiskers = known.mark_rule(color=theme.INK, strokeWidth=1.1).encode(x=alt.X("low:Q", title=unit), x2="high:Q")
    height = alt.Step(9, **{"for": "offset"})
    return alt.layer(bars, whiskers).properties(width=290, height=height, title=name)


_METHOD_AXIS = alt.Axis(labelLimit=200, labelColor=theme.INK, ticks=False, domain=False)


def summary(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """method, panel, value, low, high, n: means over questions with bootstrap intervals, at the paper's setting."""
    import pandas as pd

    from workbench.statistics import bootstrap

    if frame is None or not len(frame):
        return None
    has_columns("paper_figure", frame, *_STUDY)
    rows = frame[(frame["damping"] == 0.5) & (frame["tau"] == 0.8) & frame["metric"].isin(_METRICS)]
    rows = rows.drop_duplicates(["part", "corpus", "question", "method", "metric"])
    lines = []
    for (part, kind, metric), panel in PANELS.items():
        here = rows[(rows["part"] == part) & (rows["metric"] == metric)]
        here = here if kind is None else here[here["kind"] == kind]
        for method, group in here.groupby("method", sort=False):
            found = bootstrap(group["value"], resamples=1_999) if len(group) > 1 else None
            value = float(group["value"].mean())
            low, high = (found.low, found.high) if found else (float("nan"), float("nan"))
            lines.append((method, panel, value, low, high, len(group)))
    return pd.DataFrame(lines, columns=["method", "panel", "value", "low", "high", "n"])


def _reported(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    keys = list(zip(reported["table"], reported["item"]))
    rows = reported[[key in PAPER and metric in _METRICS for key, metric in zip(keys, reported["metric"])]].copy()
    rows["method"] = [PAPER[key] for key in zip(rows["table"], rows["item"])]
    rows["panel"] = [PANELS["musique", None, metric] for metric in rows["metric"]]
    return rows


def compared(frame: pd.DataFrame, reported: pd.DataFrame, metrics: Sequence[str] = _METRICS) -> pd.DataFrame:
    """Table: one row a method, R@2, R@5 and AR@5 on MuSiQue here and in the paper (share; empty: not reported)."""
    ours, theirs = summary(frame), _reported(reported)
    if ours is None or theirs is None:
        raise BadInput("compared needs rows of the study and the reported numbers")
    columns = {}
    for metric in metrics:
        one_of("compared", "metric", metric, _METRICS)
        panel = PANELS["musique", None, metric]
        columns[f"{metric} here"] = ours[ours["panel"] == panel].set_index("method")["value"]
        paper = theirs[theirs["panel"] == panel].drop_duplicates("method").set_index("method")["value"]
        columns[f"{metric} paper"] = paper
    import pandas as pd

    table = pd.DataFrame(columns)
    return table.reindex([method for method in METHODS if method in table.index]).rename_axis("method")
