"""Pictures of small language models: perplexity of held-out text, by position, and answers from what was just read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.views import theme
from workbench.views._check import frame_for
from workbench.views.figures import line_with_band

if TYPE_CHECKING:
    import pandas as pd

#: Parts of a study's frame and what they are called.
TEXTS = {"LM books": "held-out books", "LM world": "the small world's text"}


def perplexity_dots(
    frame: pd.DataFrame, models: Sequence[str], *, published: pd.DataFrame | None = None, title: str = "",
    subtitle: str = "",
) -> alt.Chart:  # fmt: skip
    """A dot and its interval a model, one panel a text, lowest is best.

    Columns of ``frame``: those of a study (part, variant, x, model, unit, metric, value). ``published``: item (one of
    ``models``) and value, the paper's perplexities, drawn in a panel of their own: another text, other models.
    """
    import pandas as pd

    panels = []
    for part, text in TEXTS.items():
        rows = _surprise(frame, part)
        rows = rows[rows["x"] == 0]
        if len(rows):
            panels.append(_perplexity(_intervals(rows)).assign(text=text))
    if published is not None and len(published):
        told = published[published["item"].isin(models)].rename(columns={"item": "variant"})
        panels.append(told[["variant", "value"]].assign(low=told["value"], high=told["value"], text="paper: Wikitext"))
    found = pd.concat(panels) if panels else pd.DataFrame(columns=["variant", "text", "value", "low", "high"])
    data = frame_for("perplexity_dots", found, numbers=("value", "low", "high"), columns=("variant", "text"))
    present = [name for name in models if name in set(data["variant"])]
    data = data[data["variant"].isin(present)]
    x = {"title": "perplexity", "scale": alt.Scale(zero=False, padding=12), "axis": alt.Axis(tickCount=4)}
    charts = [_dots(data[data["text"] == text], present, x, text) for text in dict.fromkeys(data["text"])]
    return theme.beside(*charts, title=title, subtitle=subtitle)


def answer_dots(
    frame: pd.DataFrame, models: Sequence[str], metric: str = "contains", *, title: str = "", subtitle: str = ""
) -> alt.Chart:
    """Share of questions answered, a dot and its interval a model (or way to ask one); dashed: a guess."""
    import pandas as pd

    asked, guess = frame[frame["part"] == "LM recall"], _guess(frame)
    rows = asked[(asked["metric"] == metric) & asked["variant"].isin(models)]
    found = _intervals(frame_for("answer_dots", rows, numbers=("x", "value"), columns=("variant", "model")))
    found = found.assign(low=found["low"].clip(0, 1), high=found["high"].clip(0, 1))
    x = {"title": "share of questions answered", "scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(tickCount=5)}
    chart = _dots(found, [name for name in models if name in set(found["variant"])], x)
    if guess is not None:
        line = alt.Chart(pd.DataFrame({"guess": [guess]})).mark_rule(strokeDash=[4, 3], color=theme.MUTED)
        chart = alt.layer(line.encode(x="guess:Q"), chart).properties(width=210, height=alt.Step(26))
    return theme.themed(chart, title, subtitle)


def _dots(data: pd.DataFrame, present: Sequence[str], x: dict[str, Any], title: str = "") -> alt.Chart:
    """Ways to ask one model ("MODEL, how") have one colour."""
    data = data.assign(family=data["variant"].str.split(", ").str[0])
    families = list(dict.fromkeys(name.split(", ")[0] for name in present))
    y = alt.Y("variant:N", title=None, sort=present, axis=alt.Axis(labelLimit=200))
    colour = alt.Color("family:N", sort=families, scale=theme.categories(families), legend=None)
    told = ["variant:N", *(alt.Tooltip(f"{name}:Q", format=".2f") for name in ("value", "low", "high"))]
    base = alt.Chart(data).encode(y=y, color=colour, tooltip=told)
    rule = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", **x), x2="high:Q")
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("value:Q", **x))
    chart = alt.layer(rule, dots).properties(width=210, height=alt.Step(26))
    return theme.themed(chart, title) if title else chart


def position_curves(
    frame: pd.DataFrame, models: Sequence[str], part: str = "LM books", *, title: str = "", subtitle: str = ""
) -> alt.Chart:
    """Perplexity by position in the window (upper end of a stretch): what a long memory adds to a short window."""
    rows = _surprise(frame, part)
    return line_with_band(
        _perplexity(_intervals(rows[rows["x"] > 0])), "x", "value", low="low", high="high", colour="variant",
        order=_present(rows, models), width=250, x_title="position in the window (tokens, up to)",
        y_title="perplexity", title=title, subtitle=subtitle,
    )  # fmt: skip


def answer_curves(frame: pd.DataFrame, models: Sequence[str], *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Exact answers about people met in the same text, by the tokens between facts and question; dashed: a guess."""
    rows = frame[(frame["part"] == "LM recall") & (frame["metric"] == "exact")]
    data = _intervals(frame_for("answer_curves", rows, numbers=("x", "value"), columns=("variant", "model")))
    data = data.assign(low=data["low"].clip(0, 1), high=data["high"].clip(0, 1))
    return line_with_band(
        data, "x", "value", low="low", high="high", colour="variant", order=_present(rows, models), zero=True,
        level=_guess(frame), width=250, x_title="other text between facts and question (tokens)",
        y_title="share answered exactly", title=title, subtitle=subtitle,
    )  # fmt: skip


def language_figure(
    frame: pd.DataFrame, models: Sequence[str], *, published: pd.DataFrame | None = None, title: str = ""
) -> alt.Chart:
    """All three, one under the other."""
    curves = theme.beside(
        position_curves(frame, models, title="Held-out books, by position"),
        answer_curves(frame, models, title="Answers from the text, names never seen in training"),
    )
    return theme.below(perplexity_dots(frame, models, published=published), curves, title=title)


def sizes(frame: pd.DataFrame) -> pd.DataFrame:
    """A table, a row a model: parameters, those without the embedding, bytes of the state after a window."""
    rows = frame[frame["part"] == "LM size"]
    table = rows.pivot_table(index="variant", columns="metric", values="value", sort=False).astype("int64")
    own = table["parameters"] - table["embedding parameters"]
    return table[["parameters", "state bytes"]].assign(**{"without embedding": own})


def _guess(frame: pd.DataFrame) -> float | None:
    """Share of questions that a guess answers; None where it was not written down."""
    values = frame[(frame["part"] == "LM recall") & (frame["metric"] == "chance")]["value"]
    return float(values.mean()) if len(values) else None


def _surprise(frame: pd.DataFrame, part: str) -> pd.DataFrame:
    return frame[(frame["part"] == part) & (frame["metric"] == "nats")]


def _present(rows: pd.DataFrame, models: Sequence[str]) -> list[str]:
    return [name for name in models if name in set(rows["variant"])]


def _intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and Student's t interval by variant and x: over trained models where there are several, else groups."""
    import pandas as pd

    from workbench.statistics import t_interval

    keys = [name for name in ("seed", "model") if name in rows]
    several = rows.groupby(keys).ngroups > 1 if keys else False
    if several:
        rows = rows.groupby([*keys, "variant", "x"])["value"].mean().reset_index()
    lines = []
    for (variant, x), group in rows.groupby(["variant", "x"]):
        found = t_interval(group["value"]) if len(group) > 1 else (group["value"].iloc[0],) * 3
        lines.append((variant, x, *found[:3]))
    return pd.DataFrame(lines, columns=["variant", "x", "value", "low", "high"])


def _perplexity(nats: pd.DataFrame) -> pd.DataFrame:
    import numpy as np

    return nats.assign(**{name: np.exp(nats[name]) for name in ("value", "low", "high")})
