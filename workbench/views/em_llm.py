"""EM-LLM's pictures: where the model is surprised, which events a layer fetches, and what that is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, visible
from workbench.views.figures import paper_recorded_live

if TYPE_CHECKING:
    import pandas as pd

    from workbench.statistics import Interval

#: Order (and so colours) of the variants in every picture.
VARIANTS = (
    "S", "SM", "SC", "S+C", "SM+C", "InfLLM (F)", "F+M", "R", "R+M", "random-topk", "StreamingLLM", "full context",
    "fixed, same number", "random, same number",
)  # fmt: skip
PANELS = {
    ("episodes", "correct"): "questions on facts outside the window: share right",
    ("episodes", "fact recall"): "share of the fact's tokens fetched, mean over layers",
    ("episodes", "boundary F1"): "boundaries: F1 against gold (± 2 tokens)",
    ("order", "correct"): "the answer lies in the next episode: share right",
    ("passkey", "correct"): "pass key beyond the trained window: share right",
    ("recency", "correct"): "which event came first: share right",
    ("prose", "boundary F1"): "paragraphs of a real book: F1 (± 2 tokens)",
}
PASSKEY, RETRIEVAL = PANELS["passkey", "correct"], "LongBench retrieval, Mistral v2 4k+2k (paper): share right"
_KINDS = ("surprise", "after refinement", "gold")


def surprise_track(
    frame: pd.DataFrame, marks: pd.DataFrame, *, width: int = 760, title: str = "", subtitle: str = ""
) -> alt.Chart:
    """Surprise (nats) by token with the threshold, and boundaries: surprise dashed, refined solid, gold ticks below.

    Args:
        frame: ``position``, ``token``, ``surprise``, ``threshold`` (NaN: not known yet).
        marks: ``position``, ``kind`` (surprise, after refinement, gold).
    """
    data = frame_for("surprise_track", frame, numbers=("position",), columns=("token", "surprise", "threshold"))
    edges = frame_for("surprise_track", marks, numbers=("position",), columns=("kind",))
    if not set(edges["kind"]) <= set(_KINDS):
        raise BadInput(f"surprise_track: kinds of marks are {', '.join(_KINDS)}, got {sorted(set(edges['kind']))}")
    data["token"] = [visible(token) for token in data["token"]]
    brush = alt.selection_interval(name="stretch", encodings=["x"])
    kinds = list(_KINDS)
    x = alt.X("position:Q", title="position in the stream (tokens)", scale=alt.Scale(nice=False))
    above_zero = alt.Axis(labelExpr="datum.value < 0 ? '' : datum.label")  # below it stand the gold boundaries
    y = alt.Y("surprise:Q", title="surprise (nats)", axis=above_zero)
    key = alt.Legend(orient="top", symbolType="stroke", symbolStrokeWidth=2)
    colour = alt.Color("kind:N", title="boundary", sort=kinds, scale=theme.categories(kinds), legend=key)
    top = float(data["surprise"].max(skipna=True)) if data["surprise"].notna().any() else 1.0
    dashes = alt.Scale(domain=kinds, range=[[4, 3], [1, 0], [1, 0]])
    dash = alt.StrokeDash("kind:N", sort=kinds, legend=None, scale=dashes)
    told = ["position:Q", "token:N", alt.Tooltip("surprise:Q", format=".2f"), alt.Tooltip("threshold:Q", format=".2f")]
    bars = alt.Chart(data).mark_bar(color="#b8c0ca", width=1.5).encode(x=x, y=y, tooltip=told)
    level = alt.Chart(data).mark_line(color=theme.INK, strokeWidth=1).encode(x=x, y="threshold:Q")
    found, gold = edges[edges["kind"] != "gold"], edges[edges["kind"] == "gold"]
    cuts = alt.Chart(found).mark_rule(strokeWidth=1.2)
    cuts = cuts.encode(x=x, y=alt.datum(0), y2=alt.datum(top), color=colour, strokeDash=dash)
    ticks = alt.Chart(gold).mark_tick(thickness=3, height=16, orient="vertical")
    layers = [bars.add_params(brush), level, cuts, ticks.encode(x=x, color=colour, y=alt.datum(-0.6))]
    chart = alt.layer(*layers).properties(width=width, height=220)
    said = subtitle or "line: threshold; dashed: surprise boundary; solid: after refinement; below zero: gold boundary"
    return theme.themed(chart, title or "Where the model is surprised", said)


def retrieval_matrix(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Events (x, in time) by layer (y), coloured by the last score; outlines: fetched by similarity or contiguity.

    Reads ``contents()`` of the memory; a boolean column ``gold`` marks the asked event.
    """
    columns = ("last_score", "buffer", "start", "end", "kind")
    data = frame_for("retrieval_matrix", frame, numbers=("event", "layer"), columns=columns)
    data = data.drop(columns=[n for n in ("token_ids", "representatives", "representative_scores") if n in data])
    data["z"] = data.groupby("layer")["last_score"].transform(lambda s: (s - s.mean()) / (s.std() or 1.0))
    x = alt.X("event:O", title="event (in time)", axis=alt.Axis(labelOverlap=True))
    y = alt.Y("layer:O", title="layer", sort="descending")
    told = ["event:O", "layer:O", "start:Q", "end:Q", "kind:N", "buffer:N", alt.Tooltip("last_score:Q", format=".2f")]
    colour = alt.Color("z:Q", title="score (sd of its layer)", scale=theme.magnitude("viridis"))
    cells = alt.Chart(data).mark_rect().encode(x=x, y=y, tooltip=told, color=colour)
    kinds = ["similarity", "contiguity"]
    scale = alt.Scale(domain=kinds, range=["#d62728", "#ff9f1c"])
    edge = alt.Stroke("buffer:N", title="fetched by", sort=kinds, scale=scale)
    picked = alt.Chart(data[data["buffer"].isin(kinds)]).mark_rect(filled=False, strokeWidth=1.8)
    layers = [cells, picked.encode(x=x, y=y, stroke=edge)]
    if "gold" in data:
        gold = alt.Chart(data[data["gold"].astype(bool)])
        layers.append(gold.mark_point(color="white", shape="diamond").encode(x=x, y=y))
    chart = alt.layer(*layers).properties(width=700, height=180)
    said = "outlined: attended to in the last pass" + "; diamond: holds the asked fact" * ("gold" in data)
    return theme.themed(chart, title or "What every layer fetched", subtitle or said)


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """Panels of the study, recorded and live beside the paper's pass-key and retrieval numbers (other models)."""
    found = {"live": summary(live), "reported": _reported(reported), "recorded": summary(recorded)}
    panels = [panel for name in (*PANELS.values(), RETRIEVAL) if (panel := _panel(name, found)) is not None]
    if not panels:
        raise BadInput("nothing to draw: neither a live run, nor recorded rows, nor reported numbers")
    told = ["Intervals over streams, 95 %: Wilson where each is right or wrong, else bootstrap. The paper's numbers",
            "are of Mistral-7B on LongBench and pass keys; those read off a picture are drawn hollow."]  # fmt: skip
    return theme.below(*panels, title="Events cut at surprise as memory blocks", subtitle=told)


def _panel(name: str, found: dict[str, pd.DataFrame | None]) -> Any:
    parts = {source: table[table["panel"] == name] for source, table in found.items() if table is not None}
    rows = [variant for part in parts.values() for variant in part["variant"]]
    if not rows:
        return None
    order = [*(v for v in VARIANTS if v in rows), *sorted(set(rows) - set(VARIANTS))]
    sources = [parts.get(source) for source in ("live", "reported", "recorded")]
    return paper_recorded_live(*sources, item="variant", title=name, unit="share", items=order, row_height=22)


def summary(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """variant, panel, value, low, high: means over streams with their intervals; pass keys beyond the window only."""
    import pandas as pd

    if frame is None or not len(frame):
        return None
    lines = []
    for (experiment, metric), panel in PANELS.items():
        rows = frame[(frame["experiment"] == experiment) & (frame["metric"] == metric)]
        rows = rows[rows["length"] > rows["window"]] if experiment == "passkey" else rows
        for variant, group in rows.groupby("variant"):
            if len(group) > 1:
                at = _interval(group["value"], metric)
                lines.append({"variant": variant, "panel": panel, "value": at.effect, "low": at.low, "high": at.high})
    return pd.DataFrame(lines, columns=["variant", "panel", "value", "low", "high"])


def _interval(values: pd.Series, metric: str) -> Interval:
    """A bootstrap of streams that are all right (or all wrong) would have no width."""
    from workbench.statistics import bootstrap, wilson

    if metric == "correct" and values.isin([0.0, 1.0]).all():
        return wilson(int(values.sum()), len(values))
    return bootstrap(values, resamples=999)


def _reported(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    where = {
        ("LongBench retrieval (Mistral v2 4k+2k)", "InfLLM"): (RETRIEVAL, "InfLLM (F)"),
        ("LongBench retrieval (Mistral v2 4k+2k)", "EM-LLM SM+C"): (RETRIEVAL, "SM+C"),
        ("pass key beyond the window (Mistral-7B)", "EM-LLM"): (PASSKEY, "SM"),
        ("pass key beyond the window (Mistral-7B)", "full context"): (PASSKEY, "full context"),
    }
    places = [where.get(key) for key in zip(reported["table"], reported["item"])]
    rows = reported[[place is not None for place in places]].copy()
    rows["panel"] = [place[0] for place in places if place]
    rows["variant"] = [place[1] for place in places if place]
    return rows.assign(value=rows["value"] / 100)
