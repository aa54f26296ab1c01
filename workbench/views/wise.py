"""Pictures of lifelong editing: three aims at once, who is routed where, what shards hold, what is forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from workbench.checks import number
from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, matrix
from workbench.views.figures import paper_recorded_live

if TYPE_CHECKING:
    import pandas as pd

AIMS = ("Rel", "Gen", "Loc")
METHODS = ("WISE", "FT-L", "FT-EWC", "ROME", "GRACE", "GRACE, radius searched")
KINDS = {"rel": "edit", "gen": "paraphrase", "loc": "untouched fact", "text": "plain text", "said": "statement"}
#: Corners of the triangle, on the unit circle.
_CORNERS = {"Rel": (0.0, 1.0), "Gen": (-0.866, -0.5), "Loc": (0.866, -0.5)}
#: Methods whose forgetting the paper's figure shows (a chart holds 5,000 cells).
_FOLLOWED = ("WISE", "FT-L", "GRACE")
_PAPER = {"ZsRE, T = 1000 (Mistral-7B)": "WISE", "ZsRE, T = 1000 (LLaMA-2-7B)": ""}


def aims(frame: pd.DataFrame) -> pd.DataFrame:
    """method, edits, aim, value, low, high from the study's rows: means over edits with bootstrap intervals."""
    import pandas as pd

    rows = _answered(frame, "aims", "main").assign(aim=lambda part: part["kind"].str.capitalize())
    lines = []
    for (method, edits, aim), group in rows.groupby(["method", "edits", "aim"], sort=False):
        mean, low, high = _share(group["value"])
        lines.append({"method": method, "edits": edits, "aim": aim, "value": mean, "low": low, "high": high})
    return pd.DataFrame(lines, columns=["method", "edits", "aim", "value", "low", "high"])


def _share(values: pd.Series) -> tuple[float, float, float]:
    """The mean with its interval in [0, 1]; a single edit has none."""
    from workbench.statistics import of_differences

    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean, mean
    found = of_differences(values)
    return mean, max(found.low, 0.0), min(found.high, 1.0)


def _answered(frame: pd.DataFrame, view: str, experiment: str) -> pd.DataFrame:
    """The study's rows of one experiment that say which answers were right."""
    absent = [name for name in ("experiment", "metric", "kind", "value") if name not in frame]
    if absent:
        raise BadInput(f"{view}: column {absent[0]!r} is missing; give the rows of the study's frame")
    rows = frame[(frame["experiment"] == experiment) & (frame["metric"] == "right")]
    return rows[rows["kind"].isin(["rel", "gen", "loc"])]


def impossible_triangle(frame: pd.DataFrame, *, title: str = "", subtitle: str = "", columns: int = 3) -> alt.Chart:
    """One triangle a method, corners Rel, Gen, Loc; the slider picks T, the other T are the trail.

    Columns: method, edits (T), aim (``AIMS``), value in [0, 1]; see ``aims``.
    """
    data = frame_for("impossible_triangle", frame, numbers=("edits", "value"), columns=("method", "aim"))
    if len(few := data.groupby(["method", "edits"])["aim"].nunique().loc[lambda count: count < len(AIMS)]):
        method, edits = few.index[0]
        raise BadInput(f"impossible_triangle: {method} after {edits} edits lacks one of {', '.join(AIMS)}")
    lengths = sorted({int(t) for t in data["edits"]})
    shapes = _polygons(data, lengths)
    names = [name for name in METHODS if name in set(data["method"])]
    slider = alt.binding_range(min=0, max=len(lengths) - 1, step=1, name=f"T of {', '.join(map(str, lengths))}: ")
    chosen = alt.param(name="T", value=len(lengths) - 1, bind=slider)
    base = alt.Chart(shapes).encode(
        x=alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-1.35, 1.35])),
        y=alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[-1.0, 1.3])),
        order="order:Q",
    )
    parts = base.transform_filter("datum.part == 'result'")
    trail = parts.mark_line(strokeWidth=1, opacity=0.35).encode(detail="edits:N", color=_ink(names))
    now = parts.transform_filter("datum.place == T").mark_line(strokeWidth=3, filled=False)
    now = now.encode(color=_ink(names), tooltip=["method:N", "edits:Q", "label:N"]).add_params(chosen)
    rim = (
        base.transform_filter("datum.part == 'rim'")
        .mark_line(color=theme.FAINT, strokeWidth=1.5)
        .encode(detail="edits:N")
    )
    corner = (
        base.transform_filter("datum.part == 'corner'").mark_text(fontSize=11, color=theme.MUTED).encode(text="label:N")
    )
    said = base.transform_filter("datum.part == 'said' && datum.place == T").mark_text(fontSize=11, color=theme.INK)
    layers = alt.layer(rim, trail, now, corner, said.encode(text="label:N")).properties(width=190, height=165)
    chart = layers.facet(alt.Facet("method:N", sort=names, title=None), columns=theme.even(len(names), columns))
    note = subtitle or "corner: 1, centre: 0; bold: the chosen number of edits T, thin: the others"
    return theme.themed(chart, title or "Edits stick, carry over, leave the rest alone", note)


def _ink(names: list[str]) -> alt.Color:
    return alt.Color("method:N", sort=names, scale=theme.categories(list(METHODS)), legend=None)


def _polygons(data: pd.DataFrame, lengths: list[int]) -> pd.DataFrame:
    """Corners of every method's triangle at every T, the rim, and the words at its corners."""
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for method, group in data.groupby("method", sort=False):
        common = {"method": method, "edits": 0, "place": -1}
        for order, aim in enumerate((*AIMS, AIMS[0])):
            x, y = _CORNERS[aim]
            lines.append({**common, "part": "rim", "order": order, "x": x, "y": y, "label": ""})
            if order < 3:
                far = {"x": x * 1.22, "y": y * 1.16 + (0.02 if aim == "Rel" else -0.08), "label": aim}
                lines.append({**common, "part": "corner", "order": order, **far})
        for edits, at in group.groupby("edits"):
            value = dict(zip(at["aim"], at["value"]))
            told = ", ".join(f"{aim} {value[aim]:.2f}" for aim in AIMS)
            where = {"method": method, "edits": edits, "place": lengths.index(int(str(edits))), "label": told}
            lines.append({**where, "part": "said", "order": 0, "x": 0.0, "y": -0.95})
            for order, aim in enumerate((*AIMS, AIMS[0])):
                x, y = _CORNERS[aim]
                lines.append({**where, "part": "result", "order": order, "x": x * value[aim], "y": y * value[aim]})
    return pd.DataFrame(lines)


def routing_histogram(frame: pd.DataFrame, eps: float, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Delta of every prompt by kind, a movable threshold, and the table of who would be routed where.

    Columns: kind, delta; prompt, base and edited (answers) are shown when a point is pointed at, if given.
    """
    data = frame_for("routing_histogram", frame, numbers=("delta",), columns=("kind",))
    eps = number("routing_histogram: eps", eps)
    data["kind"] = data["kind"].map(lambda kind: KINDS.get(kind, kind))
    kinds = [kind for kind in KINDS.values() if kind in set(data["kind"])]
    most = float(max(data["delta"].max(), eps)) * 1.05 or 1.0
    slider = alt.binding_range(min=0, max=round(most, 3), step=round(most / 200, 4), name="eps: ")
    level = alt.param(name="eps", value=eps, bind=slider)
    x = alt.X("delta:Q", title="Delta (norm of the difference of the two outputs)", scale=alt.Scale(domain=[0, most]))
    colour = alt.Color("kind:N", title="prompt", sort=kinds, scale=theme.categories(kinds))
    told: list[Any] = [f"{name}:N" for name in ("kind", "prompt", "base", "edited") if name in data]
    told += [alt.Tooltip("delta:Q", format=".2f")]
    points = alt.Chart(data).mark_tick(thickness=1.6, opacity=0.7, height=16)
    points = points.encode(x=x, y=alt.Y("kind:N", title=None, sort=kinds), color=colour, tooltip=told)
    bars = alt.Chart(data).mark_bar(opacity=0.6).encode(
        x=alt.X("delta:Q", bin=alt.Bin(maxbins=40, extent=[0, most]), title=""),
        y=alt.Y("count():Q", stack=None, title="prompts"), color=colour,
    )  # fmt: skip
    rule = (
        alt.Chart()
        .mark_rule(color=theme.INK, strokeDash=[5, 3], strokeWidth=1.5)
        .encode(x=alt.datum(alt.expr("eps"), type="quantitative"))
    )
    top = alt.layer(bars, rule, data=data).add_params(level).properties(width=420, height=150)
    low = alt.layer(points, rule, data=data).properties(width=420, height=24 * len(kinds))
    chart = theme.beside(
        theme.below(top, low, x="shared", color="shared"), _confusion(data, kinds), color="independent"
    )
    note = subtitle or "dashed: the threshold eps (move the slider); the table follows it"
    return theme.themed(theme.bare(chart), title or "Which memory answers", note)


def _confusion(data: pd.DataFrame, kinds: list[str]) -> alt.Chart:
    base = (
        alt.Chart(data[["kind", "delta"]])
        .transform_calculate(side="datum.delta > eps ? 'side' : 'main'")
        .transform_aggregate(n="count()", groupby=["kind", "side"])
        .encode(
            x=alt.X("side:N", title="answered by", sort=["main", "side"], axis=alt.Axis(orient="top", labelAngle=0)),
            y=alt.Y("kind:N", title=None, sort=kinds),
        )
    )
    colour = alt.Color("n:Q", scale=theme.magnitude("cividis", domainMin=0), legend=None)
    words = base.mark_text(fontSize=13, fontWeight=600).encode(text="n:Q")
    return alt.layer(base.mark_rect(opacity=0.35).encode(color=colour), words).properties(
        width=130, height=32 * len(kinds)
    )


def forgetting_triangle(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Whether edit i is still said after j edits: rows of the study with kind "followed", a triangle a method.

    Several seeds are averaged.
    """
    rows = frame[(frame["kind"] == "followed") & (frame["metric"] == "right")] if "kind" in frame else frame
    if {"method", "unit", "after", "value"} <= set(rows) and len(rows):
        rows = rows.assign(edit=rows["unit"].str.rsplit(".", n=1).str[1].astype(int) + 1)
        rows = rows.groupby(["method", "edit", "after"], sort=False)[["value"]].mean().reset_index()
    data = frame_for("forgetting_triangle", rows, numbers=("after", "value"), columns=("method",))
    names = [name for name in METHODS if name in set(data["method"])]
    cells = alt.Chart(data).mark_rect().encode(
        x=alt.X("after:O", title="edits written", axis=alt.Axis(labelOverlap=True)),
        y=alt.Y("edit:O", title="edit", axis=alt.Axis(labelOverlap=True)),
        color=alt.Color("value:Q", title="target tokens said", scale=theme.magnitude("cividis", domain=[0, 1])),
        tooltip=["method:N", "edit:O", "after:O", alt.Tooltip("value:Q", format=".2f")],
    )  # fmt: skip
    chart = cells.properties(width=190, height=190).facet(
        alt.Facet("method:N", sort=names, title=None), columns=theme.even(len(names))
    )
    return theme.themed(chart, title or "What is forgotten", subtitle or "diagonal: just written; to the right: later")


def changes(named: dict[str, Any], cells: tuple[int, int] = (24, 36)) -> pd.DataFrame:
    """shard, row, column, size from matrices W' - W_v by name: root mean square of each tile."""
    import pandas as pd

    lines = []
    for name, values in named.items():
        array = matrix(name, values)
        pooled = np.sqrt(_tiles(array**2, cells))
        for (row, column), size in np.ndenumerate(pooled):
            lines.append({"shard": name, "row": row, "column": column, "size": float(size)})
    return pd.DataFrame(lines)


def _tiles(array: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """Means over tiles; at most so many of them each way."""
    for axis, most in enumerate(cells):
        parts = np.array_split(array, min(most, array.shape[axis]), axis=axis)
        array = np.stack([part.mean(axis=axis) for part in parts], axis=axis)
    return array


def shard_map(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """What every shard changed, tile by tile; columns as ``changes`` gives them (five at the most)."""
    data = frame_for("shard_map", frame, numbers=("row", "column", "size"), columns=("shard",))
    cells = alt.Chart(data).mark_rect(**theme.SEAMLESS).encode(
        x=alt.X("column:O", title="input of the matrix (tiles)", axis=alt.Axis(labels=False, ticks=False)),
        y=alt.Y("row:O", title="output (tiles)", axis=alt.Axis(labels=False, ticks=False)),
        color=alt.Color("size:Q", title="|W' - W| (rms)", scale=theme.magnitude("magma", domainMin=0)),
        tooltip=["shard:N", "row:O", "column:O", alt.Tooltip("size:Q", format=".4f")],
    )  # fmt: skip
    names = list(dict.fromkeys(data["shard"]))
    order = alt.Facet("shard:N", title=None, sort=names)
    chart = cells.properties(width=210, height=140).facet(order, columns=theme.even(len(names)))
    return theme.themed(chart, title or "What the shards changed", subtitle)


def overlaps(masks: dict[str, Any]) -> pd.DataFrame:
    """first, second, share, expected (rho^2 off the diagonal) of the entries that two masks share."""
    import pandas as pd

    held = {name: matrix(name, values) > 0 for name, values in masks.items()}
    if len(shapes := {array.shape for array in held.values()}) > 1:
        raise BadInput(f"overlaps: masks of one matrix have one shape, got {', '.join(map(str, sorted(shapes)))}")
    lines = []
    for first, a in held.items():
        for second, b in held.items():
            expected = a.mean() if first == second else a.mean() * b.mean()
            lines.append(
                {"first": first, "second": second, "share": float((a & b).mean()), "expected": float(expected)}
            )
    return pd.DataFrame(lines)


def overlap_matrix(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Share of all entries that two masks have in common; columns as ``overlaps`` gives them."""
    data = frame_for("overlap_matrix", frame, numbers=("share", "expected"), columns=("first", "second"))
    order = list(dict.fromkeys(data["first"]))
    base = alt.Chart(data).encode(
        x=alt.X("second:N", title=None, sort=order, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("first:N", title=None, sort=order),
        tooltip=["first:N", "second:N", alt.Tooltip("share:Q", format=".4f"), alt.Tooltip("expected:Q", format=".4f")],
    )
    colour = alt.Color("share:Q", title="share of entries", scale=theme.magnitude("cividis", domainMin=0))
    ink = alt.condition("datum.share > 0.1", alt.value("black"), alt.value("white"))
    words = base.mark_text().encode(text=alt.Text("share:Q", format=".3f"), color=ink)
    chart = alt.layer(base.mark_rect().encode(color=colour), words).properties(
        width=60 * len(order), height=40 * len(order)
    )
    return theme.themed(chart, title or "Entries that two masks share", subtitle or "independent masks share rho x rho")


def sweeps(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Rel, Gen and Loc at every point of the sweeps, in the study's rows, with bootstrap intervals over edits."""
    import pandas as pd

    rows = _answered(frame, "sweeps", "sweep")
    lines = []
    for (setting, kind), group in rows.groupby(["setting", "kind"], sort=False):
        name, value = str(setting).split("=")
        mean, low, high = _share(group["value"])
        lines.append({"what": name, "value of it": value, "aim": str(kind).capitalize(), "share": mean, "low": low,
                      "high": high})  # fmt: skip
    lines.sort(key=lambda line: _size(str(line["value of it"])))  # stable: words stay as they came
    data = frame_for("sweeps", pd.DataFrame(lines), numbers=("share",), columns=("what", "aim"))
    base = alt.Chart(data).encode(
        x=alt.X("value of it:N", title=None, sort=None, axis=alt.Axis(labelAngle=0)),
        color=alt.Color("aim:N", sort=list(AIMS), scale=theme.categories(list(AIMS)), title=None),
        xOffset=alt.XOffset("aim:N", sort=list(AIMS)),
    )
    y = alt.Y("low:Q", title="share of prompts", scale=alt.Scale(domain=[0, 1]))
    layers = alt.layer(base.mark_rule().encode(y=y, y2="high:Q"), base.mark_circle(size=60).encode(y="share:Q"))
    chart = layers.properties(width=180, height=150).facet(alt.Facet("what:N", title=None, sort=None), columns=3)
    return theme.themed(chart.resolve_scale(x="independent"), title or "One setting changed at a time", subtitle)


def _size(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """The three aims at the largest T beside the paper's at T = 1000; then what the recorded (else live) run adds."""
    shown = recorded if recorded is not None and len(recorded) else live
    found = [_largest(live), _reported(reported), _largest(recorded)]
    if all(part is None or not len(part) for part in found):
        raise BadInput("nothing to draw: neither a live run, nor recorded rows, nor reported numbers")
    dots = paper_recorded_live(
        *found, item="method", panel="aim", unit="share of prompts", title="After the longest stream of edits",
        items=list(METHODS), row_height=34, width=190,
    )  # fmt: skip
    more = [] if shown is None or not len(shown) else _more(shown)
    note = [
        "The paper: T = 1000 edits of 7 B models, hollow where nobody could check the number. Recorded: T = 200,",
        "live: T = 12, the embedded model's own facts. GRACE twice: its authors' radius, and the best one here.",
    ]
    return theme.below(dots, *more, title="Reliability, generalisation, locality", subtitle=note)


def _more(shown: pd.DataFrame) -> list[alt.Chart]:
    made, table = [], aims(shown)
    if table["edits"].nunique() > 1:
        made.append(_growth(table))
    followed = shown[(shown["kind"] == "followed") & shown["method"].isin(_FOLLOWED)]
    if len(followed):
        made.append(forgetting_triangle(followed))
    if (shown["experiment"] == "sweep").any():
        made.append(sweeps(shown))
    return made


def _growth(table: pd.DataFrame) -> alt.Chart:
    """Each aim over T, with intervals; plain lines, for a chart with selections cannot be faceted inside another."""
    names = [name for name in METHODS if name in set(table["method"])]
    base = alt.Chart(table).encode(
        x=alt.X("edits:Q", title="edits T (log scale)", scale=alt.Scale(type="log")),
        color=alt.Color(
            "method:N",
            title=None,
            sort=names,
            scale=theme.categories(list(METHODS)),
            legend=alt.Legend(symbolOpacity=1),
        ),
        tooltip=["method:N", "aim:N", "edits:Q", alt.Tooltip("value:Q", format=".3f")],
    )
    y = alt.Y("value:Q", title="share of prompts", scale=alt.Scale(domain=[0, 1]))
    band = base.mark_area(opacity=0.12).encode(y=alt.Y("low:Q", title="share of prompts"), y2="high:Q")
    line = base.mark_line(point=True).encode(y=y)
    chart = alt.layer(band, line).properties(width=190, height=170)
    return theme.themed(chart.facet(alt.Facet("aim:N", sort=list(AIMS), title=None), columns=3), "As the edits add up")


def _largest(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    if frame is None or not len(frame):
        return None
    table = aims(frame)
    return table[table["edits"] == table["edits"].max()]


def _reported(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    """The paper's ZsRE rows: WISE on Mistral-7B, the baselines (unverified) on LLaMA-2-7B."""
    if reported is None or not len(reported):
        return None
    first, second = _PAPER
    rows = reported[(reported["table"] == first) | ((reported["table"] == second) & (reported["item"] != "WISE"))]
    return rows.assign(method=rows["item"], aim=rows["metric"])
