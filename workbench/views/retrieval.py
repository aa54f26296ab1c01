"""What a read gave back and why: ranked bars, how each item was found, which of them are evidence.

Any memory over a store can be drawn: the frame is ``Reading.frame()`` of ``workbench.memory.stores.base``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for

if TYPE_CHECKING:
    import pandas as pd

#: Ways an item is found that every memory shares, in the order of their colours; others get the colours after them.
WAYS = ("direct", "link", "graph", "summary")
_NAMES = {"direct": "direct hit", "link": "via a link", "graph": "over the graph", "summary": "summary"}
EVIDENCE = "#009E73"
#: Okabe-Ito without the green that marks evidence.
_INKS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#5f6b7a")
_ARROWS = 70


def retrieval_trace(
    frame: pd.DataFrame,
    *,
    gold: Collection[int] | None = None,
    score_title: str = "score",
    width: int = 300,
    row_height: int = 22,
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """Items of one read as ranked bars: colour says how each was found, a star that it is evidence.

    Columns (``Reading.frame()``): ``rank`` (1 is best), ``id``, ``how`` ("direct", "link", ...), ``via`` (id of the
    item that led to it, or empty), ``score`` (any scale, larger is better), ``text``; optional ``evidence`` (yes/no),
    which ``gold`` (ids of the evidence) replaces. An arrow leads to an item from the one that it was found through;
    a parent that was not returned itself is named at the arrow's place. A click selects an item (selection ``item``,
    field ``id``).

    Raises BadInput for a missing column, no rows, or a rank that stands twice.
    """
    data = frame_for("retrieval_trace", frame, numbers=("rank", "id", "score"), columns=("how", "via", "text"))
    if data["rank"].duplicated().any():
        raise BadInput("retrieval_trace: column 'rank' holds a rank twice; give the frame of one read")
    data = _prepared(data, gold)
    ways = [way for way in (*WAYS, *sorted(set(data["how"]) - set(WAYS))) if way in set(data["how"])]
    rows = alt.Y("rank:O", title=None, axis=None, scale=alt.Scale(paddingInner=0.18))
    pick = alt.selection_point(name="item", fields=["id"], on="click")
    parts = [_names(data, rows), _bars(data, rows, ways, score_title, width, pick), _texts(data, rows)]
    linked = data[data["via"].notna()]
    if len(linked):
        parts.insert(0, _arrows(data, linked, row_height))
    height = row_height * len(data)
    chart = alt.hconcat(*(part.properties(height=height) for part in parts), spacing=4)
    return theme.themed(chart.resolve_scale(y="independent"), title or "What was given back", subtitle or _told(data))


def _prepared(data: pd.DataFrame, gold: Collection[int] | None) -> pd.DataFrame:
    import pandas as pd

    data = data.sort_values("rank").reset_index(drop=True)
    data["via"] = pd.to_numeric(data["via"])
    known = gold is not None or "evidence" in data
    data["evidence"] = data["id"].isin(list(gold)) if gold is not None else data.get("evidence", False)
    data["evidence"] = data["evidence"].astype(bool)
    data["mark"] = ["★" if found else "" for found in data["evidence"]]
    data["words"] = [" ".join(str(text).split()) for text in data["text"]]
    data["found"] = [_NAMES.get(way, way) for way in data["how"]]
    data.attrs["gold"] = (len(set(gold)) if gold is not None else None) if known else 0
    return data


def _told(data: pd.DataFrame) -> str:
    total, found = data.attrs["gold"], int(data["evidence"].sum())
    if total == 0:
        return f"{len(data)} items, best first"
    share = f"{found} of {total}" if total is not None else f"{found}"
    return f"{len(data)} items, best first; green: evidence, {share} found"


def _bars(data: pd.DataFrame, rows: Any, ways: list[str], score_title: str, width: int, pick: Any) -> Any:
    inks = [_INKS[(WAYS.index(way) if way in WAYS else len(WAYS) + n) % len(_INKS)] for n, way in enumerate(ways)]
    found = [_NAMES.get(way, way) for way in ways]
    told = [
        *("rank:Q", "id:Q"),
        alt.Tooltip("found:N", title="how"),
        alt.Tooltip("via:Q", title="found through"),
        alt.Tooltip("score:Q", format=".4~g", title=score_title),
        "evidence:N",
        alt.Tooltip("words:N", title="text"),
    ]
    low = min(0.0, float(data["score"].min()))
    high = max(0.0, float(data["score"].max())) or 1.0
    x = alt.X(
        "score:Q",
        title=score_title,
        scale=alt.Scale(domain=[low, high + 0.06 * (high - low)], nice=False),
        axis=alt.Axis(tickCount=4, orient="bottom"),
    )
    base = alt.Chart(data).encode(y=rows)
    bar = base.mark_bar(height={"band": 0.86}).encode(
        x=x,
        color=alt.Color(
            "found:N",
            title=None,
            scale=alt.Scale(domain=found, range=inks),
            legend=alt.Legend(orient="top", direction="horizontal"),
        ),
        opacity=alt.condition(pick, alt.value(1.0), alt.value(0.35)),
        tooltip=told,
    )
    star = base.mark_text(color=EVIDENCE, fontSize=15, align="left", dx=3, baseline="middle", fontWeight="bold")
    return alt.layer(bar.add_params(pick), star.encode(x=x, text="mark:N")).properties(width=width)


def _names(data: pd.DataFrame, rows: Any) -> Any:
    labels = data.assign(label=[f"#{item}" for item in data["id"]])
    mark = alt.Chart(labels).mark_text(align="right", x=44, fontSize=11)
    ink = alt.condition("datum.evidence", alt.value(EVIDENCE), alt.value(theme.INK))
    return mark.encode(y=rows, text="label:N", color=ink).properties(width=46)


def _texts(data: pd.DataFrame, rows: Any) -> Any:
    mark = alt.Chart(data).mark_text(align="left", x=4, fontSize=11, limit=430)
    ink = alt.condition("datum.evidence", alt.value(EVIDENCE), alt.value(theme.INK))
    told = alt.Tooltip("words:N", title="text")
    return mark.encode(y=rows, text="words:N", color=ink, tooltip=told).properties(width=440)


def _arrows(data: pd.DataFrame, linked: pd.DataFrame, row_height: int) -> Any:
    """Elbows from the row of the parent to the row of the item; a parent outside the picture is named instead."""
    import pandas as pd

    place = dict(zip(data["id"], data["rank"]))
    lines, heads, strangers = [], [], []
    lanes = {parent: n for n, parent in enumerate(dict.fromkeys(linked["via"]))}
    for _, row in linked.iterrows():
        parent, here = row["via"], float(row["rank"])
        if parent not in place:
            strangers.append({"rank": here, "label": f"#{int(parent)} →"})
            continue
        lane = _ARROWS - 14 - 9 * (lanes[parent] % 6)
        corners = [(_ARROWS - 6, float(place[parent])), (lane, float(place[parent])), (lane, here), (_ARROWS - 6, here)]
        lines += [{"x": x, "at": y, "line": int(row["id"]), "n": n} for n, (x, y) in enumerate(corners)]
        heads.append({"x": _ARROWS - 6, "at": here})
    ranks = [float(data["rank"].min()) - 0.5, float(data["rank"].max()) + 0.5]
    y = alt.Y("at:Q", axis=None, scale=alt.Scale(domain=ranks, reverse=True, nice=False, zero=False))
    x = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[0, _ARROWS], nice=False))
    ink = _INKS[1]
    marks: list[Any] = []
    if lines:
        path = alt.Chart(pd.DataFrame(lines)).mark_line(color=ink, strokeWidth=1.2, opacity=0.75, strokeJoin="round")
        marks.append(path.encode(x=x, y=y, detail="line:N", order="n:Q"))
        head = alt.Chart(pd.DataFrame(heads)).mark_point(shape="triangle-right", filled=True, size=36, color=ink)
        marks.append(head.encode(x=x, y=y))
    if strangers:
        text = alt.Chart(pd.DataFrame(strangers).rename(columns={"rank": "at"}))
        marks.append(
            text.mark_text(align="right", x=_ARROWS - 2, fontSize=10, color=theme.MUTED).encode(y=y, text="label:N")
        )
    return alt.layer(*marks).properties(width=_ARROWS)
