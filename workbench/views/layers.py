"""Pictures of sequence memories: what each state holds, how alike states are, every token's write, recall by bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import MAX_ROWS, frame_for
from workbench.views.similarity import similarity_map

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a contents table that say which matrix a line is of, the coarsest first.
PLACES = ("layer", "mixer", "memory", "part", "head")


def state_table(contents: pd.DataFrame, *, title: str = "", subtitle: str = "", width: int = 250) -> alt.Chart:
    """Norm and effective rank of every matrix that a memory holds, one line each (selection ``matrix``).

    Columns: ``norm``, ``effective_rank`` (NaN where there is none), and of ``layer``, ``mixer``, ``memory``, ``part``,
    ``head`` those that there are (``MixerCache.contents()``, or a layer's own). Effective rank: exp of the entropy of
    the singular values, from 1 to the smaller side of the matrix.
    """
    data = frame_for("state_table", contents, numbers=("norm", "effective_rank"))
    data["matrix"] = named(data)
    data["of"] = _first_of(data, ("mixer", "part"))
    pick = alt.selection_point(name="matrix", fields=["matrix"], on="click")
    base = alt.Chart(data).encode(
        y=alt.Y("matrix:N", sort=list(data["matrix"]), title=None, axis=alt.Axis(labelLimit=260, ticks=False)),
        color=alt.Color("of:N", title=None, scale=theme.categories(list(dict.fromkeys(data["of"])))),
        opacity=alt.condition(pick, alt.value(0.9), alt.value(0.25)),
        tooltip=[name for name in (*PLACES, "shape", "norm", "effective_rank", "bytes") if name in data],
    )
    bars = base.mark_bar().encode(x=alt.X("norm:Q", title="Frobenius norm"))
    ranks = base.mark_point(filled=True, size=60).encode(
        x=alt.X("effective_rank:Q", title="effective rank (directions in use)", scale=alt.Scale(zero=True)),
        y=alt.Y("matrix:N", sort=list(data["matrix"]), title=None, axis=alt.Axis(labels=False, ticks=False, grid=True)),
    )
    step = alt.Step(max(9, min(20, 700 // len(data))))
    left, right = (part.properties(width=width, height=step) for part in (bars.add_params(pick), ranks))
    return theme.themed(alt.hconcat(left, right, spacing=14), title, subtitle)


def named(contents: pd.DataFrame) -> list[str]:
    """A short name for every line of a contents table: the places that tell lines apart."""
    several = [name for name in PLACES if name in contents and contents[name].nunique(dropna=False) > 1]
    said = [name for name in several if name != "mixer" or "layer" not in several] or ["part"]
    lines = contents[said].to_dict("records") if set(said) <= set(contents) else [{}] * len(contents)
    names = [" · ".join(_word(str(key), value) for key, value in line.items() if value == value) for line in lines]
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _word(key: str, value: Any) -> str:
    if key in ("mixer", "part"):
        return str(value)
    number = isinstance(value, int | float | np.number)
    return f"{key} {int(value) if number else value}"


def _first_of(data: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    found = next((data[name] for name in names if name in data), None)
    return data["matrix"] if found is None else found.astype(str)


def state_similarity(matrices: Any, names: Sequence[str], *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Cosine between states, each taken as one long vector: ``matrices`` (n, ...) of one shape, ``names`` (n,).

    Near 1: two memories hold the same; near 0: they hold different things.
    """
    import pandas as pd

    flat = np.asarray(matrices.detach().cpu() if hasattr(matrices, "detach") else matrices, dtype=np.float64)
    if flat.ndim < 2 or len(flat) != len(names):
        raise BadInput(f"matrices must be (n, ...) with one name each, got {flat.shape} and {len(names)} names")
    if len(flat) ** 2 > MAX_ROWS:
        raise BadInput(f"{len(flat)} states give {len(flat) ** 2:,} pairs, more than {MAX_ROWS:,}; choose fewer")
    flat = flat.reshape(len(flat), -1)
    unit = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
    row, col = (index.ravel() for index in np.indices((len(flat), len(flat))))
    frame = pd.DataFrame({"row": row, "col": col, "value": (unit @ unit.T).ravel()})
    frame = frame.assign(row_token=[names[int(i)] for i in row], col_token=[names[int(i)] for i in col])
    return similarity_map(frame, units="cosine", limit=1.0, title=title, subtitle=subtitle)


def token_scalars(
    scalars: pd.DataFrame, tokens: Sequence[str] | None = None, *, title: str = "", subtitle: str = "", width: int = 640
) -> alt.Chart:
    """What each layer's memory did at each token: one panel a number, one line a layer (selection ``layers``).

    Columns: ``position``, ``layer``, ``name``, ``value`` (``MixerCache.scalars()``). ``tokens``: their texts, for the
    tooltip. A long stream is drawn by its last tokens, as many as fit into a chart.
    """
    data = frame_for("token_scalars", _tail(scalars), numbers=("position", "layer", "value"), columns=("name",))
    words = list(tokens or ())
    data["token"] = [str(words[int(at)]) if int(at) < len(words) else "" for at in data["position"]]
    data["layer"] = data["layer"].astype(str)
    names = list(dict.fromkeys(data["layer"]))
    pick = alt.selection_point(name="layers", fields=["layer"], bind="legend")
    line = (
        alt.Chart(data)
        .mark_line(point=alt.OverlayMarkDef(size=16, filled=True))
        .encode(
            x=alt.X("position:Q", title="token, position in the stream", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=3)),
            color=alt.Color("layer:N", title="layer", sort=names, scale=theme.categories(names)),
            opacity=alt.condition(pick, alt.value(0.9), alt.value(0.1)),
            tooltip=["token:N", "position:Q", "layer:N", "name:N", alt.Tooltip("value:Q", format=".4~g")],
        )
        .properties(width=width, height=70)
        .add_params(pick)
    )
    header = alt.Header(title=None, labelAngle=0, labelAlign="left", labelAnchor="start", labelOrient="top")
    panels = line.facet(row=alt.Row("name:N", sort=list(dict.fromkeys(data["name"])), header=header), spacing=8)
    return theme.themed(panels.resolve_scale(y="independent"), title, subtitle)


def _tail(scalars: pd.DataFrame) -> pd.DataFrame:
    """The last positions whose lines fit into a chart together."""
    if len(scalars) <= MAX_ROWS or "position" not in scalars:
        return scalars
    counts = scalars.groupby("position").size().sort_index(ascending=False).cumsum()
    return scalars[scalars["position"] >= counts[counts <= MAX_ROWS].index.min()]


def recall_by_state(frame: pd.DataFrame, *, title: str = "", subtitle: str = "", columns: int = 4) -> alt.Chart:
    """Recall against bytes of state, one panel a line with all others behind it in grey.

    Columns: ``line``, ``bytes``, ``accuracy``, ``low``, ``high`` (NaN: no interval), ``chance``, ``dim``
    (``workbench.compare.layers.compare``).
    """
    import pandas as pd

    numbers = ("bytes", "accuracy", "low", "high", "chance", "dim")
    data = frame_for("recall_by_state", frame, numbers=numbers, columns=("line",))
    names = list(dict.fromkeys(data["line"]))
    everywhere = pd.concat([data.assign(panel=name) for name in names], ignore_index=True)
    if len(everywhere) > MAX_ROWS:
        raise BadInput(f"recall_by_state: {len(names)} lines are too many for one chart; choose some")
    mine = "datum.line === datum.panel"
    base = alt.Chart(everywhere).encode(
        x=alt.X("bytes:Q", title="state of one stream, bytes", scale=alt.Scale(type="log"), axis=_bytes_axis()),
        y=alt.Y("accuracy:Q", title="questions right", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=3)),
        detail="line:N",
    )
    others = base.transform_filter(f"!({mine})").mark_line(color="#c4ccd6", strokeWidth=1)
    own = base.transform_filter(mine)
    told = [
        alt.Tooltip("line:N", title="memory"),
        alt.Tooltip("dim:Q", title="width"),
        alt.Tooltip("bytes:Q", format=","),
        *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("accuracy", "low", "high")),
    ]
    ink = theme.CATEGORIES[0]
    line = own.mark_line(color=ink, strokeWidth=2, point=alt.OverlayMarkDef(size=46, filled=True, color=ink))
    whisker = own.transform_filter("isValid(datum.low)").mark_rule(color=ink, strokeWidth=1.5)
    whisker = whisker.encode(y=alt.Y("low:Q"), y2="high:Q")
    chance = own.mark_line(color=theme.MUTED, strokeDash=[3, 3], strokeWidth=1).encode(y="chance:Q")
    panel = alt.layer(others, chance, whisker, line.encode(tooltip=told)).properties(width=150, height=110)
    name = "split(replace(datum.label, ')', ''), ' (')"  # the settings on a line of their own
    header = alt.Header(labelFontSize=11, labelColor=theme.INK, labelLimit=180, labelExpr=name)
    facet = panel.facet(alt.Facet("panel:N", title=None, sort=names, header=header), columns=columns)
    return theme.themed(facet, title, subtitle)


def _bytes_axis() -> alt.Axis:
    """Powers of four with their units."""
    label = "datum.value >= 1024 ? datum.value / 1024 + ' K' : datum.value"
    return alt.Axis(values=[4**power for power in range(2, 13)], labelExpr=label, labelOverlap=True, grid=False)
