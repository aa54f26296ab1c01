"""A-MEM's pictures: the graph of notes, what evolution did to one, where embeddings went, and the paper's figure.

Frames come from ``AMem.graph()``, ``AMem.history(id)`` and the study; the retrieval trace is
``workbench.views.retrieval.retrieval_trace``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, has_columns, matrix, one_of
from workbench.views.figures import line_with_band, paper_recorded_live

if TYPE_CHECKING:
    import pandas as pd

FLAT, LINKS, FULL = "FLAT", "LINKS-ONLY", "FULL"
ABLATION = {"w/o LG & ME": FLAT, "w/o ME": LINKS, "full": FULL}
CATEGORIES = ("multi-hop", "temporal", "open-domain", "single-hop", "adversarial")
ACCOUNTINGS = ("equal hits", "equal notes")
#: Columns of the study that the views read.
_STUDY = ("experiment", "encoder", "method", "accounting", "budget", "unit", "kind", "metric", "value")
_FOUND, _OTHER = "given back", "other note"


def note_graph(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    *,
    found: Collection[int] | None = None,
    step: float | None = None,
    groups: int = 7,
    width: int = 640,
    height: int = 420,
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """Notes (area: links that lead to them) and links (width: words in common); the slider replays the insertion.

    ``nodes`` and ``edges`` as ``AMem.graph()`` gives them. Colour is a note's first tag (the ``groups`` commonest;
    the others are "other"), or, with the ids ``found``, whether a reading gave it back. A click on a note dims all
    links but its own; hovering over one tells its context and keywords.
    """
    from workbench.views.graph import node_link

    data = frame_for("note_graph", nodes, numbers=("id", "size", "step"), columns=("label", "group"))
    if found is not None:
        data["group"] = [_FOUND if id in set(found) else _OTHER for id in data["id"]]
        order = [_FOUND, _OTHER]
    else:
        common = data["group"].value_counts().index[:groups].tolist()
        data["group"] = data["group"].where(data["group"].isin(common), "other")
        order = [*(name for name in common if name != "other"), "other"]
    lines = edges.drop(columns=["why"], errors="ignore")
    told = subtitle or f"{len(data)} notes, {len(lines)} links; area: links that lead here; the slider replays writing"
    return node_link(
        data, lines, groups=[name for name in order if name in set(data["group"])], labels=10, step=step,
        size_title="links that lead here", group_title="", weight_title="words in common", step_title="notes written",
        width=width, height=height, title=title or "Notes and their links", subtitle=told,
    )  # fmt: skip


def evolution_diff(history: pd.DataFrame, *, top: int = 12, title: str = "", subtitle: str = "") -> alt.Chart:
    """How a note's context, keywords and tags changed: what went (orange) and what came (green), a line a change.

    Columns (``AMem.history(id)``): ``step``, ``why``, ``field``, ``old``, ``new``; the last ``top`` changes are shown.
    """
    import pandas as pd

    data = frame_for("evolution_diff", history, numbers=("step",), columns=("why", "field", "old", "new")).tail(top)
    lines = []
    for row, (_, change) in enumerate(data.iterrows()):
        gone, came = _words_changed(str(change["old"]), str(change["new"]))
        lines.append({"row": row, "what": f"{change['field']}, {change['why']}", "gone": gone, "came": came,
                      "old": change["old"], "new": change["new"]})  # fmt: skip
    table = pd.DataFrame(lines)
    columns = (("what", "change", 210, theme.INK), ("gone", "went", 190, theme.CHANGES["left"]),
               ("came", "came", 330, theme.CHANGES["entered"]))  # fmt: skip
    parts = [_text_column(table, *column) for column in columns]
    chart = alt.hconcat(*parts, spacing=8)
    return theme.themed(chart, title or "What later notes did to this one", subtitle or "hover for the whole text")


def _words_changed(old: str, new: str) -> tuple[str, str]:
    """Words only in the old text, and only in the new one, in order."""
    before, after = old.replace(",", " ").split(), new.replace(",", " ").split()
    gone = [word for word in before if word not in set(after)]
    came = [word for word in after if word not in set(before)]
    return " ".join(gone), " ".join(came)


def _text_column(table: pd.DataFrame, field: str, head: str, width: int, ink: str) -> Any:
    mark = alt.Chart(table).mark_text(align="left", x=2, fontSize=11, limit=width - 6, color=ink)
    told = [alt.Tooltip("old:N", title="before"), alt.Tooltip("new:N", title="after")]
    rows = alt.Y("row:O", axis=None)
    title = alt.TitleParams(head, fontSize=11, fontWeight="normal", color=theme.MUTED, anchor="start", offset=4)
    chart = mark.encode(y=rows, text=f"{field}:N", tooltip=told)
    return chart.properties(width=width, height=20 * len(table), title=title)


def embedding_map(
    before: Any,
    after: Any,
    groups: Sequence[Any],
    *,
    labels: Sequence[str] | None = None,
    top: int = 8,
    width: int = 520,
    height: int = 400,
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """Where embeddings lay before evolution and went with it (the paper's Figure 4, with arrows).

    ``before`` and ``after`` are (n, dim), row for row the same notes; ``groups`` (n) colours them (the ``top``
    commonest; others grey), ``labels`` (n) is shown on hover. Both are projected onto the first two principal
    components of ``after``; the share of variance that the picture shows stands in the subtitle.
    """
    import pandas as pd

    old, new = matrix("before", before), matrix("after", after)
    if old.shape != new.shape or len(groups) != len(new):
        raise BadInput(f"embedding_map: shapes {old.shape} and {new.shape} and {len(groups)} groups must fit together")
    if len(new) < 3:
        raise BadInput(f"embedding_map needs at least three notes, got {len(new)}")
    centre = new.mean(axis=0)
    _, spread, axes = np.linalg.svd(new - centre, full_matrices=False)
    share = float((spread[:2] ** 2).sum() / max((spread**2).sum(), 1e-12))
    start, end = (old - centre) @ axes[:2].T, (new - centre) @ axes[:2].T
    names = pd.Series([str(group) for group in groups])
    common = names.value_counts().index[:top].tolist()
    table = pd.DataFrame({
        "x": start[:, 0], "y": start[:, 1], "x2": end[:, 0], "y2": end[:, 1],
        "group": names.where(names.isin(common), "other"), "label": list(labels) if labels is not None else names,
        "moved": np.linalg.norm(new - old, axis=1),
    })  # fmt: skip
    table = frame_for("embedding_map", table, numbers=("x", "y"))
    order = [*common, *(["other"] if (table["group"] == "other").any() else [])]
    inks = [theme.CATEGORIES[i % len(theme.CATEGORIES)] for i in range(len(common))] + ["#b8c0ca"]
    colour = alt.Color("group:N", title=None, sort=order, scale=alt.Scale(domain=order, range=inks[: len(order)]))
    base = alt.Chart(table).encode(color=colour, tooltip=["label:N", "group:N", alt.Tooltip("moved:Q", format=".2f")])
    axis = alt.Axis(labels=False, ticks=False, grid=False)
    across, up = alt.X("x2:Q", title="first component", axis=axis), alt.Y("y2:Q", title="second component", axis=axis)
    moved = base.transform_filter("datum.moved > 0.02").mark_rule(opacity=0.45)
    chart = alt.layer(
        moved.encode(x=alt.X("x:Q", axis=axis), y=alt.Y("y:Q", axis=axis), x2="x2:Q", y2="y2:Q"),
        base.transform_filter("datum.moved > 0.02").mark_point(size=14, opacity=0.5).encode(x="x:Q", y="y:Q"),
        base.mark_circle(size=34, opacity=0.9).encode(x=across, y=up),
    ).properties(width=width, height=height)
    count = int((table["moved"] > 0.02).sum())
    told = f"ring: before, disc: after; {count} of {len(table)} notes moved; {share:.0%} of the variance is shown"
    return theme.themed(chart, title or "Embeddings before and after evolution", subtitle or told)


# ---------------------------------------------------------------------- the study's figures


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """The paper's Table 3, Figure 3 and token counts beside the recorded and the live run."""
    live, recorded = (frame if frame is not None and len(frame) else None for frame in (live, recorded))
    sources: dict[str, pd.DataFrame | None] = {"live": live, "recorded": recorded}
    found = {name: summary(frame) for name, frame in sources.items() if frame is not None}
    parts = [_ablation(found, reported)]
    curves = next((frame for frame in (recorded, live) if frame is not None and _has_locomo(frame)), None)
    if curves is not None:
        parts.append(score_over_k(curves, reported))
    tokens = _tokens(sources, reported)
    drawn = [part for part in (*parts, tokens) if part is not None]
    if not drawn:
        raise BadInput("paper_figure: live, reported and recorded are all empty, so there is nothing to draw")
    return theme.below(
        *drawn,
        title="Do links and evolution find what plain retrieval misses?",
        subtitle=["The paper gives the F1 of GPT-4o-mini's answers; here it is the share of evidence that comes back,",
                  "with no model in between. Compare orders and shapes, not levels."],
    )  # fmt: skip


def _has_locomo(frame: pd.DataFrame) -> bool:
    return bool((frame["experiment"] == "locomo").any())


BRIDGE10, BRIDGE20 = "Bridge world, two-hop, 10 notes", "Bridge world, two-hop, 20 notes"
HITS10, NOTES10 = "LoCoMo, multi-hop, 10 hits + links", "LoCoMo, multi-hop, 10 notes"
#: Order of the rows.
METHODS = (FLAT, LINKS, "EVOLVE-ONLY", FULL, "FULL, linked notes by sum", "WINDOW", "RECENT-N")


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """panel, method, value, low, high of a study's frame: Wilson over questions, bootstrap over dialogues."""
    import pandas as pd

    from workbench.statistics import bootstrap, wilson

    has_columns("paper_figure", frame, *_STUDY)

    lines: list[tuple[Any, ...]] = []
    bridge = frame[(frame["metric"] == "all evidence") & (frame["experiment"] == "bridge") & (frame["kind"] == "2-hop")]
    bridge = bridge[bridge["encoder"] == "words"]
    for (budget, method), part in bridge.groupby(["budget", "method"]):
        panel = BRIDGE10 if budget == 10 else BRIDGE20 if budget == 20 else None
        lines += [(panel, method, *wilson(int(part["value"].sum()), len(part))[:3])] if panel else []
    locomo = _recall(frame)
    locomo = locomo[locomo["kind"] == "multi-hop"]
    for panel, accounting in ((HITS10, "equal hits"), (NOTES10, "equal notes")):
        rows = locomo[(locomo["accounting"] == accounting) & (locomo["budget"] == 10)]
        for method, part in rows.groupby("method"):
            lines += [(panel, method, *bootstrap(part["value"])[:3])] if len(part) > 1 else []
    return pd.DataFrame(lines, columns=["panel", "method", "value", "low", "high"])


def _recall(frame: pd.DataFrame) -> pd.DataFrame:
    """Evidence recall on LoCoMo, each dialogue once: they are the same dialogues for every seed of the study."""
    rows = frame[(frame["experiment"] == "locomo") & (frame["metric"] == "recall")]
    return rows.drop_duplicates(["method", "accounting", "budget", "unit", "kind"])


def _ablation(found: dict[str, pd.DataFrame], reported: pd.DataFrame | None) -> Any:
    """One panel a measurement: every method, with the paper's multi-hop F1 of the three that it has."""
    paper = _table3(reported)
    charts = []
    for panel in (BRIDGE10, BRIDGE20, HITS10, NOTES10):
        parts = {name: frame[frame["panel"] == panel] for name, frame in found.items()}
        rows = {method for part in parts.values() for method in part["method"]}
        if rows:
            items = [method for method in METHODS if method in rows]
            sources = [parts.get("live"), paper, parts.get("recorded")]
            told: dict[str, Any] = {
                "item": "method",
                "items": items,
                "title": panel,
                "unit": "share of evidence; paper: F1",
            }
            charts.append(paper_recorded_live(*sources, width=320, row_height=30, **told))
    if charts:
        return theme.below(*(theme.beside(*charts[i : i + 2]) for i in range(0, len(charts), 2)))
    alone: dict[str, Any] = {"item": "method", "title": "Table 3, multi-hop", "unit": "F1"}
    return None if paper is None else paper_recorded_live(None, paper, None, **alone)


def _table3(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    rows = reported[reported["table"].str.startswith("Table 3") & (reported["metric"] == "multi-hop F1")]
    return rows.assign(method=rows["item"].map(ABLATION), value=rows["value"] / 100) if len(rows) else None


def score_over_k(
    frame: pd.DataFrame, reported: pd.DataFrame | None = None, *, accounting: str = "equal hits", title: str = ""
) -> alt.Chart:
    """Score over k, a panel a category: LoCoMo's evidence recall by method, and the paper's F1 (Figure 3).

    ``accounting``: "equal hits" (linked notes come on top; k is the number of hits) or "equal notes" (k is all).
    """
    import pandas as pd

    one_of("score_over_k", "accounting", accounting, ACCOUNTINGS)
    has_columns("score_over_k", frame, *_STUDY)
    rows = _recall(frame)
    rows = rows[(rows["accounting"] == accounting) & rows["method"].isin([FLAT, LINKS, FULL])].dropna(subset=["value"])
    if rows.empty:
        raise BadInput("score_over_k: the frame holds no recall on LoCoMo; run the study at scale full")
    table = _over_dialogues(rows)
    names = [f"{method}, recall" for method in (FLAT, LINKS, FULL)]
    table["line"] = table["method"] + ", recall"
    paper = _figure3(reported) if accounting == "equal hits" else None
    if paper is not None:
        table, names = pd.concat([table, paper], ignore_index=True), [*names, "A-MEM in the paper, F1"]
    panels = [
        _curve(table[table["kind"] == kind].sort_values("k"), kind, names)
        for kind in CATEGORIES
        if (table["kind"] == kind).any()
    ]
    lanes = [theme.beside(*panels[i : i + 3], color="shared") for i in range(0, len(panels), 3)]
    told = "bands: bootstrap over ten dialogues; the paper gives no spread"
    return theme.below(*lanes, color="shared", title=title or f"LoCoMo: score over k, {accounting}", subtitle=told)


def _curve(table: pd.DataFrame, kind: str, names: list[str]) -> Any:
    place: dict[str, Any] = {
        "x_title": "k",
        "y_title": "score",
        "zero": True,
        "width": 190,
        "height": 140,
        "title": kind,
    }
    return line_with_band(table, "k", "value", low="low", high="high", colour="line", order=names, **place)


def _over_dialogues(rows: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    from workbench.statistics import bootstrap

    lines = []
    for (kind, method, k), part in rows.groupby(["kind", "method", "budget"]):
        found = bootstrap(part["value"], resamples=1_999) if len(part) > 1 else (part["value"].mean(),) * 3
        lines.append((kind, method, k, *found[:3]))
    return pd.DataFrame(lines, columns=["kind", "method", "k", "value", "low", "high"])


def _figure3(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    rows = reported[reported["table"].str.startswith("Figure 3")]
    kinds = rows["metric"].str.removesuffix(" F1").replace({"open": "open-domain"})
    values = rows["value"] / 100
    ks = rows["item"].str.removeprefix("k=").astype(float)
    return rows.assign(kind=kinds, k=ks, value=values, low=values, high=values, line="A-MEM in the paper, F1")[
        ["kind", "k", "value", "low", "high", "line"]
    ]


def _tokens(sources: dict[str, pd.DataFrame | None], reported: pd.DataFrame | None) -> Any:
    """Prompt tokens of A-MEM (here: ten hits and their links), of plain retrieval and of the whole history."""
    found = {name: _token_rows(frame) for name, frame in sources.items() if frame is not None and _has_locomo(frame)}
    paper = None
    if reported is not None and len(reported):
        rows = reported[reported["metric"] == "prompt tokens"]
        paper = rows[rows["table"].str.contains("(GPT-4o-mini)", regex=False)]
    if not found and (paper is None or paper.empty):
        return None
    return paper_recorded_live(
        found.get("live"), paper, found.get("recorded"), item="item", title="Tokens in the prompt (LoCoMo)",
        unit="tokens, log scale", log=True, row_height=26, width=420,
    )  # fmt: skip


def _token_rows(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = frame[(frame["experiment"] == "locomo") & (frame["metric"] == "tokens")]
    ten = rows[(rows["accounting"] == "equal hits") & (rows["budget"] == 10)]
    history = rows[rows["method"] == "FULL-HISTORY"]
    parts = {"A-MEM": ten[ten["method"] == FULL], "FLAT, 10 hits": ten[ten["method"] == FLAT]}
    parts["LoCoMo (full history)"] = history
    return pd.DataFrame([{"item": name, "value": part["value"].mean()} for name, part in parts.items() if len(part)])
