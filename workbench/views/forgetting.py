"""Forgetting, drawn: retention curves with the memories on them, the lives of memories, and the blocks of a prompt.

Shared by every memory that fades. Retention is R = exp(-t / (λ S)) (MemoryBank, section 2.3): t days since the last
recall, S strength, λ days per unit of strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, one_of

if TYPE_CHECKING:
    import pandas as pd

#: What the formula switch offers.
FORMULAS = ("paper", "as published (bug)", "daily sweeps")
_FORMULA_TEXT = {
    "paper": "R = exp(-t / λS)", "as published (bug)": "R = exp(-t / λ * S), as the released code computes it",
    "daily sweeps": "R(t) applied once a day: exp(-n(n + 1) / 2λS)",
}  # fmt: skip
#: R of ``datum.t`` and ``datum.S`` under the parameters λ (``scale``) and ``formula``, in the browser's language.
_RETENTION = (
    "formula == 'paper' ? exp(-datum.t / (scale * datum.S)) : "
    "formula == 'as published (bug)' ? exp(-datum.t * datum.S / scale) : "
    "exp(-floor(datum.t) * (floor(datum.t) + 1) / (2 * scale * datum.S))"
)


def forgetting_curves(
    items: pd.DataFrame | None = None,
    *,
    strengths: Sequence[float] = (1, 2, 3, 4, 5, 6, 7, 8),
    time_scale: float = 1.0,
    threshold: float = 0.3,
    formula: str = "paper",
    days: float = 30.0,
    ahead: float = 0.0,
    width: int = 560,
    height: int = 300,
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """R over days, one line per strength; dots are memories where they stand ``ahead`` days from now, if unrecalled.

    ``items`` has the columns ``t`` (days since the last recall), ``S`` and ``text``. Sliders (λ as ``scale``, θ as
    ``theta``, ``ahead``) and the choice of ``formula`` are computed in the browser; a click on a dot writes its text
    below. Dots under the dashed line are what the threshold rule would forget.
    """
    one_of("forgetting_curves", "formula", formula, FORMULAS)
    if time_scale <= 0 or not 0 < threshold <= 1 or days <= 0 or ahead < 0:
        raise BadInput(
            f"forgetting_curves: time_scale={time_scale} and days={days} must be above 0, threshold={threshold} in "
            f"(0, 1], ahead={ahead} at least 0"
        )
    if not len(strengths) or min(strengths) <= 0:
        raise BadInput(f"forgetting_curves: strengths must be numbers above 0, got {list(strengths)}")
    params = _params(time_scale, threshold, formula, ahead, days)
    marks = [_lines(strengths, days), _threshold(threshold)]
    if items is not None and len(items):
        marks.append(_dots(frame_for("forgetting_curves", items, numbers=("t", "S"), columns=("text",)), days))
    chart: Any = alt.layer(*marks).add_params(*params).properties(width=width, height=height)
    if len(marks) == 3:
        chart = alt.vconcat(chart, _reading(items, width), spacing=6)
    told = subtitle or f"{_FORMULA_TEXT[formula]}; dashed: θ = {threshold:g}"
    return theme.themed(chart, title or "How memories fade", told)


def _params(scale: float, theta: float, formula: str, ahead: float, days: float) -> list[Any]:
    def slider(name: str, value: float, low: float, high: float, step: float, shown: str) -> Any:
        bind = alt.binding_range(min=min(low, value), max=max(high, value), step=step, name=f"{shown} ")
        return alt.param(name=name, value=value, bind=bind)

    return [
        slider("scale", scale, 0.5, 15, 0.5, "λ (days)"),
        slider("theta", theta, 0.05, 1, 0.05, "θ"),
        slider("ahead", ahead, 0, days, 1, "days from now"),
        alt.param(
            name="formula", value=formula, bind=alt.binding_select(options=list(FORMULAS), name="formula ")
        ),
    ]  # fmt: skip


def _y() -> alt.Y:
    return alt.Y("R:Q", title="retention R", scale=alt.Scale(domain=[0, 1.02], nice=False), axis=alt.Axis(tickCount=5))


def _strength_colour(strengths: Sequence[float]) -> alt.Color:
    known = sorted({float(s) for s in strengths})
    scale = theme.magnitude("viridis", domain=[0.0, known[-1] * 1.15], clamp=True, reverse=True)
    legend = alt.Legend(values=known if len(known) <= 8 else known[:: -(-len(known) // 8)], symbolType="circle")
    return alt.Color("S:Q", title="strength S", scale=scale, legend=legend)


def _lines(strengths: Sequence[float], days: float) -> alt.Chart:
    import numpy as np

    grid = np.linspace(0, days, 121)
    data = alt.Data(values=[{"S": float(s), "t": float(t)} for s in strengths for t in grid])
    colour = _strength_colour(strengths)
    return (
        alt.Chart(data)
        .mark_line(strokeWidth=1.8)
        .transform_calculate(R=_RETENTION)
        .encode(x=alt.X("t:Q", title="days since the last recall", scale=alt.Scale(domain=[0, days], nice=False)),
                y=_y(), color=colour, detail="S:Q",
                tooltip=[alt.Tooltip("S:Q"), alt.Tooltip("t:Q", format=".1f"), alt.Tooltip("R:Q", format=".3f")])
    )  # fmt: skip


def _threshold(theta: float) -> alt.Chart:
    rule = alt.Chart(alt.Data(values=[{}])).mark_rule(strokeDash=[5, 4], color=theme.MUTED)
    return rule.transform_calculate(R="theta").encode(y=_y())


def _dots(data: pd.DataFrame, days: float) -> alt.Chart:
    pick = alt.selection_point(name="memory", fields=["row"], on="click", empty=False)
    shown = data[["t", "S", "text"]].assign(text=[_short(text, 140) for text in data["text"]], row=range(len(data)))
    told = ["text:N", alt.Tooltip("S:Q"), alt.Tooltip("t:Q", title="days", format=".1f"),
            alt.Tooltip("R:Q", format=".3f")]  # fmt: skip
    return (
        alt.Chart(shown)
        .mark_circle(stroke=theme.INK, strokeWidth=0.8, opacity=0.95)
        .transform_calculate(t=f"min(datum.t + ahead, {days})")
        .transform_calculate(R=_RETENTION)
        .encode(x="t:Q", y=_y(), color="S:Q", tooltip=told,
                size=alt.condition(pick, alt.value(190), alt.value(70)),
                fillOpacity=alt.condition("datum.R < theta", alt.value(0.25), alt.value(0.95)))
        .add_params(pick)
    )  # fmt: skip


def _reading(items: Any, width: int) -> alt.Chart:
    shown = items[["text"]].assign(text=[_short(text, 110) for text in items["text"]], row=range(len(items)))
    return (
        alt.Chart(shown)
        .transform_filter({"param": "memory", "empty": False})
        .mark_text(align="left", fontSize=11, color=theme.INK)
        .encode(x=alt.value(4), text="text:N")
        .properties(width=width, height=18)
    )


def life_chart(
    lives: pd.DataFrame,
    *,
    colour: str = "importance",
    top: int = 40,
    width: int = 620,
    x_title: str = "day",
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """One row per memory: a bar while it is held, ticks where it was recalled, a cross where it was forgotten.

    Columns: ``id``, ``text``, ``born``, ``ended`` (days), ``alive``, ``recalls`` (list of days) and ``colour``, a
    number (latent importance, strength). The ``top`` rows with the most of it are drawn, in order of birth. A click
    selects a row (selection ``item``, field ``id``), which links it to a table.
    """
    import pandas as pd

    data = frame_for("life_chart", lives, numbers=("born", "ended", colour), columns=("id", "text", "alive", "recalls"))
    if top < 1:
        raise BadInput(f"life_chart: top={top} must be at least 1")
    data = data.nlargest(top, colour, keep="first").sort_values(["born", "id"], kind="stable").reset_index(drop=True)
    data["text"] = [_short(text, 90) for text in data["text"]]
    data["n"] = [len(days) for days in data["recalls"]]
    ticks = [(id, day) for id, days in zip(data["id"], data["recalls"]) for day in days]
    recalls = pd.DataFrame(ticks, columns=["id", "day"])
    order = data["id"].tolist()
    y = alt.Y("id:N", sort=order, title=None, axis=alt.Axis(labels=len(order) <= 45, ticks=False, domain=False))
    pick = alt.selection_point(name="item", fields=["id"], on="click")
    # Importances are heavy-tailed: a linear scale would show one bright memory and nothing else.
    scale = theme.magnitude("viridis", type="log" if data[colour].min() > 0 else "linear")
    told = ["id:N", "text:N", alt.Tooltip(f"{colour}:Q", format=".3g"), alt.Tooltip("born:Q", format=".1f"),
            alt.Tooltip("ended:Q", format=".1f"), alt.Tooltip("n:Q", title="recalls")]  # fmt: skip
    place = {"x": alt.X("born:Q", title=x_title), "x2": "ended:Q", "y": y, "tooltip": told}
    bars = (
        alt.Chart(data.drop(columns="recalls"))
        .mark_bar(height={"band": 0.62}, cornerRadius=2)
        .encode(**place, color=alt.Color(f"{colour}:Q", title=colour, scale=scale, legend=alt.Legend(tickCount=4)),
                opacity=alt.condition(pick, alt.value(1.0), alt.value(0.35)))
        .add_params(pick)
    )  # fmt: skip
    rules = (
        alt.Chart(recalls)
        .mark_tick(color=theme.INK, thickness=1.3, height=13)
        .encode(x="day:Q", y=y, tooltip=["id:N", alt.Tooltip("day:Q", title="recalled on day", format=".1f")])
    )
    ends = (
        alt.Chart(data[~data["alive"].astype(bool)].drop(columns="recalls"))
        .mark_point(shape="cross", angle=45, filled=True, size=46, color="#D55E00", opacity=1)
        .encode(x="ended:Q", y=y, tooltip=told)
    )
    height = max(80, min(13 * len(order), 620))
    chart = alt.layer(bars, rules, ends).properties(width=width, height=height)
    note = "bar: held; tick: recalled; cross: forgotten"
    more = f"; the {len(order)} of {len(lives)} with the largest {colour}" if len(order) < len(lives) else ""
    return theme.themed(chart, title or "The lives of memories", subtitle or note + more)


#: Colours of a prompt's blocks, in the order in which they stand.
BLOCKS = {"role": "#8a94a0", "portrait": "#CC79A7", "global summary": "#56B4E9", "memory": "#0072B2",
          "recent": "#009E73", "user": "#E69F00"}  # fmt: skip


def prompt_blocks(
    blocks: pd.DataFrame, *, budget: int | None = None, width: int = 620, title: str = "", subtitle: str = ""
) -> alt.Chart:
    """A prompt as one bar of blocks, as long as their tokens; what the budget dropped stands on a second bar.

    Columns: ``position``, ``kind``, ``tokens``, ``kept``, ``text`` and, shown on hover where present, ``score`` and
    ``items``. ``budget`` draws a line at its end.
    """
    data = frame_for(
        "prompt_blocks", blocks, numbers=("position", "tokens"), columns=("kind", "kept", "text")
    ).sort_values("position", kind="stable")  # fmt: skip
    data["row"] = ["in the prompt" if kept else "dropped" for kept in data["kept"]]
    data["end"] = data.groupby("row")["tokens"].cumsum()
    data["start"] = data["end"] - data["tokens"]
    data["shown"] = [_short(text, 200) for text in data["text"]]
    data["from"] = [str(value) for value in data["items"]] if "items" in data else ""
    known = [*BLOCKS, *sorted(set(data["kind"]) - set(BLOCKS))]
    present = [kind for kind in known if kind in set(data["kind"])]
    scale = alt.Scale(domain=present, range=[BLOCKS.get(kind, theme.MUTED) for kind in present])
    y = alt.Y("row:N", title=None, sort=["in the prompt", "dropped"], axis=alt.Axis(labelColor=theme.INK))
    told = ["kind:N", "tokens:Q", *([alt.Tooltip("score:Q", format=".3f")] if "score" in data else []), "from:N",
            alt.Tooltip("shown:N", title="text")]  # fmt: skip
    columns = ["row", "kind", "tokens", "start", "end", "shown", "from", *(["score"] if "score" in data else [])]
    base = alt.Chart(data[columns])
    bars = base.mark_bar(stroke=theme.PAPER, strokeWidth=1.5, height=34, cornerRadius=3).encode(
        x=alt.X("start:Q", title="tokens", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=8)),
        x2="end:Q", y=y, tooltip=told,
        color=alt.Color("kind:N", title=None, sort=present, scale=scale),
        fillOpacity=alt.condition("datum.row == 'dropped'", alt.value(0.35), alt.value(1.0)),
    )  # fmt: skip
    wide = f"datum.tokens > {float(data['end'].max()) * 0.035}"
    middle = base.transform_filter(wide).transform_calculate(at="(datum.start + datum.end) / 2")
    numbers = middle.mark_text(fontSize=10, color=theme.PAPER, fontWeight=600).encode(
        x="at:Q", y=y, text="tokens:Q", color=alt.condition("datum.row == 'dropped'", alt.value(theme.INK),
                                                            alt.value(theme.PAPER)),
    )  # fmt: skip
    marks = [bars, numbers]
    if budget is not None:
        line = alt.Chart(alt.Data(values=[{"at": budget}])).mark_rule(color="#D55E00", strokeDash=[5, 3])
        marks.append(line.encode(x="at:Q"))
    chart = alt.layer(*marks).properties(width=width, height=alt.Step(52))
    limit = f"; line: budget of {budget} tokens" if budget is not None else ""
    return theme.themed(chart, title or "What the model reads", subtitle or f"numbers: tokens of each block{limit}")


def _short(text: object, longest: int) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
