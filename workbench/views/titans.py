"""Titans' pictures: surprise token by token, recall by age, depth, who sees what, and the figure of the study."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, matrix, one_of
from workbench.views.figures import line_with_band, paper_recorded_live
from workbench.views.language import language_figure

if TYPE_CHECKING:
    import pandas as pd

#: What a surprise trace may show, in this order of colours.
MEASURES = {
    "surprise": "surprise (norm of the gradient)",
    "momentum": "momentum (norm of S)",
    "before": "error before",
    "after": "error after",
    "theta": "step θ",
    "eta": "momentum gate η",
    "alpha": "forgetting α",
}
#: What their axis is called.
KINDS = {"surprise": "norm", "momentum": "norm", "before": "squared error", "after": "squared error"}
#: Parts of the study that are curves, and what their x is.
INNER = {"A2": "pairs written, once each", "A4": "tokens whose gradients are taken together (b)"}
TRAINED = {"length": "length of the stream (tokens)", "facts": "facts in the stream"}
#: Order (and so colours) of the trained models, in two pictures: Titans and what is taken away from it, and others.
TITANS = ("LMM", "MAC", "MAG", "MAL", "LMM, linear memory", "LMM, no momentum", "LMM, no decay")
OTHERS = ("LMM", "DeltaNet", "Hebbian + decay", "TTT, linear", "window attention")
#: The language models, and their rows of Table 1 (340M parameters).
LANGUAGE = {
    "window attention": None,
    "gated DeltaNet": "Gated DeltaNet",
    "LMM": "Titans LMM",
    "MAG": "Titans MAG",
    "MAL": "Titans MAL",
}
#: Rows of Table 5 and our variants.
ABLATION = {
    "LMM": "LMM",
    "LMM + attention (MAC)": "MAC",
    "LMM + attention (MAG)": "MAG",
    "LMM + attention (MAL)": "MAL",
    "linear memory": "LMM, linear memory",
    "without momentum": "LMM, no momentum",
    "without weight decay": "LMM, no decay",
}


def surprise_trace(
    frame: pd.DataFrame,
    measures: Sequence[str] = ("surprise", "momentum", "before", "after"),
    *,
    title: str = "",
    subtitle: str = "",
    width: int = 620,
) -> alt.Chart:
    """Lines over the tokens of a stream; pointing at one shows all its numbers (selection ``token``).

    Columns: position, and each of ``measures`` (keys of :data:`MEASURES`); optional ``token`` and ``nearest``.
    """
    if not measures:
        raise BadInput(f"surprise_trace: measures names no line; choose some of {', '.join(MEASURES)}")
    data = frame_for("surprise_trace", frame, numbers=("position", *measures))
    names = [MEASURES.get(name, name) for name in measures]
    shown = [name for name in ("token", "nearest") if name in data]
    data["nearest"] = data["nearest"].map(str) if "nearest" in data else ""
    long = data.melt(["position", *shown], list(measures), "measure", "value")
    long["measure"] = long["measure"].map(MEASURES)
    at = alt.selection_point(name="token", fields=["position"], on="pointerover", nearest=True, empty=False)
    pick = alt.selection_point(name="lines", fields=["measure"], bind="legend")
    x = alt.X("position:Q", title="token", scale=alt.Scale(nice=False, zero=False))
    base = alt.Chart(long).encode(x=x)
    colour = alt.Color("measure:N", title=None, sort=names, scale=theme.categories(names))
    lines = base.mark_line(strokeWidth=1.6).encode(
        y=alt.Y("value:Q", title=", ".join(dict.fromkeys(KINDS.get(name, "gate") for name in measures))), color=colour,
        opacity=alt.condition(pick, alt.value(1.0), alt.value(0.12)),
    )  # fmt: skip
    told = [alt.Tooltip(f"{n}:N" if n in shown else f"{n}:Q", format="" if n in shown else ".3~g")
            for n in ("position", *shown, *measures)]  # fmt: skip
    rule = alt.Chart(data).mark_rule(color=theme.MUTED).encode(
        x=x, opacity=alt.condition(at, alt.value(0.6), alt.value(0.0)), tooltip=told
    )  # fmt: skip
    chart = alt.layer(lines.add_params(pick), rule.add_params(at)).properties(width=width, height=220)
    return theme.themed(chart, title, subtitle)


def recall_by_age(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Heat map: how long ago a pair was written (x), how the memory writes (y), share recalled (colour).

    Columns: age (lower end of a bucket, tokens), method, recall in [0, 1].
    """
    data = frame_for("recall_by_age", frame, numbers=("age", "recall"), columns=("method",))
    methods = list(dict.fromkeys(data["method"]))
    base = alt.Chart(data).encode(
        x=alt.X("age:O", title="age of the pair (tokens since it was written)", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("method:N", title=None, sort=methods, axis=alt.Axis(labelLimit=240)),
    )
    chart = _coloured_recall(base, "age:Q").properties(width=440, height=30 * len(methods))
    return theme.themed(chart, title, subtitle)


def recall_by_distance(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Recall of the trained models by distance of the fact (heat map), linked to their recall by length (lines).

    Rows of the study's parts "distance" (x: the upper end of a bucket, tokens) and "length". Clicking a row of the map
    draws its line in colour (selection ``method``; with shift, several).
    """
    far = _by_method(_rows("recall_by_distance", frame, "distance", ["distance"], "recall"))
    lines = _by_method(_rows("recall_by_distance", frame, "length", TRAINED, "recall"))
    if not (len(far) and len(lines)):
        raise BadInput("recall_by_distance: the frame has no rows of trained models by distance and by length")
    methods = [name for name in dict.fromkeys((*TITANS, *OTHERS)) if name in set(far["method"])]
    ends = sorted(set(far["x"]))
    named = {end: _bucket(low, end, end == ends[-1]) for low, end in zip((0.0, *ends), ends)}
    far["distance"] = far["x"].map(named)
    pick = alt.selection_point(name="method", fields=["method"], value=[{"method": methods[0]}], empty=False)
    base = alt.Chart(far).encode(
        x=alt.X("distance:N", title="tokens since the fact", sort=list(named.values()), axis=alt.Axis(labelAngle=0)),
        y=alt.Y("method:N", title=None, sort=methods, axis=alt.Axis(labelLimit=240)),
    )
    return theme.beside(
        _coloured_recall(base, "distance:N", pick).properties(width=64 * len(named), height=26 * len(methods)),
        _picked_lines(lines, pick).properties(width=330, height=26 * len(methods) - 40),
        title=title, subtitle=subtitle, color="independent",
    )  # fmt: skip


def _by_method(rows: pd.DataFrame) -> pd.DataFrame:
    means = _ranges(rows) if len(rows) else rows
    return means.rename(columns={"variant": "method", "value": "recall"})


def _bucket(low: float, end: float, last: bool) -> str:
    return f"{low:.0f} or more" if last else f"{low:.0f} to {end - 1:.0f}"


def _coloured_recall(base: alt.Chart, place: str, pick: alt.Parameter | None = None) -> alt.LayerChart:
    """Cells of a recall in colour and in figures, for a chart that has its x (``place``) and y; ``pick`` draws a line
    around."""
    told = ["method:N", place, alt.Tooltip("recall:Q", format=".2f")]
    colour = alt.Color("recall:Q", title="recall", scale=theme.magnitude(domain=[0, 1]))
    ink = alt.condition("datum.recall > 0.6", alt.value(theme.INK), alt.value(theme.PAPER))
    cells = base.mark_rect(**theme.SEAMLESS).encode(color=colour, tooltip=told)
    text = base.mark_text(fontSize=10).encode(text=alt.Text("recall:Q", format=".2f"), color=ink)
    if pick is None:
        return alt.layer(cells, text)
    around = base.mark_rect(fill="transparent", stroke=theme.INK, strokeWidth=2).transform_filter(pick)
    return alt.layer(cells.add_params(pick), around, text.encode(tooltip=told))


def _picked_lines(lines: pd.DataFrame, pick: alt.Parameter) -> alt.LayerChart:
    """All lines in grey, those that are chosen in colour on top, each with its name."""
    ticks = alt.Axis(format=",", values=sorted(set(lines["x"])))
    base = alt.Chart(lines).encode(
        x=alt.X("x:Q", title=TRAINED["length"], scale=alt.Scale(type="log", nice=False), axis=ticks),
        y=alt.Y("recall:Q", title="recall of facts", scale=alt.Scale(domain=[0, 1])),
        detail="method:N",
        tooltip=["method:N", "x:Q", alt.Tooltip("recall:Q", format=".2f")],
    )
    seen = base.transform_filter(pick)
    blue = theme.SOURCES["live"]
    name = seen.transform_filter(f"datum.x == {lines['x'].max()}").mark_text(align="right", dy=-10, color=blue)
    return alt.layer(
        base.mark_line(color=theme.MUTED, opacity=0.35, strokeWidth=1.2),
        seen.mark_line(color=blue, strokeWidth=2.4, point=alt.OverlayMarkDef(color=blue, filled=True, size=36)),
        name.encode(text="method:N"),
    )


def depth_curves(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Error over the stream, one line a depth, and tokens a second beside it (the shapes of the paper's 7 and 8).

    Columns: position, layers (number), error, tokens_per_second.
    """
    data = frame_for("depth_curves", frame, numbers=("position", "layers", "error", "tokens_per_second"))
    data["memory"] = data["layers"].map(lambda n: f"{n:.0f} matrix" if n == 1 else f"{n:.0f} matrices")
    names = list(dict.fromkeys(data["memory"]))
    left = line_with_band(
        data, "position", "error", colour="memory", order=names, points=False, zero=True, width=360,
        x_title="pairs read", y_title="squared error before the write",
    )  # fmt: skip
    speed = data.groupby("memory", sort=False)["tokens_per_second"].mean().reset_index()
    bars = alt.Chart(speed).mark_bar().encode(
        x=alt.X("memory:N", sort=names, title=None, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("tokens_per_second:Q", title="tokens a second, on this machine"),
        color=alt.Color("memory:N", sort=names, scale=theme.categories(names), legend=None),
        tooltip=["memory:N", alt.Tooltip("tokens_per_second:Q", format=",.0f")],
    ).properties(width=alt.Step(72), height=260)  # fmt: skip
    return theme.beside(left, bars, title=title, subtitle=subtitle)


def attention_mask(mask: Any, groups: Sequence[tuple[str, int]], *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Who sees what, from the layer's own mask (tokens, columns); ``groups`` name the columns in order, with counts."""
    import pandas as pd

    seen = matrix("mask", mask)
    kinds = [name for name, count in groups for _ in range(count)]
    if len(kinds) != seen.shape[1] or not seen.any():
        raise BadInput(
            f"attention_mask: groups count {len(kinds)} columns and the mask has {seen.shape[1]}, of which "
            f"{int(seen.any(0).sum())} are seen; give as many, of which some token sees one"
        )
    data = pd.DataFrame(
        [{"token": i, "column": j, "kind": kinds[j]} for i in range(len(seen)) for j in range(len(kinds)) if seen[i, j]]
    )
    data = frame_for("attention_mask", data, numbers=("token", "column"), columns=("kind",))
    names = [name for name, count in groups if count]
    order = list(range(len(kinds)))
    colour = alt.Color("kind:N", title="sees", sort=names, scale=theme.categories(names))
    cells = alt.Chart(data).mark_rect(stroke=theme.PAPER, strokeWidth=0.5).encode(
        x=alt.X("column:O", title="key", scale=alt.Scale(domain=order), axis=alt.Axis(labels=False, ticks=False)),
        y=alt.Y("token:O", title="token that asks", axis=alt.Axis(labelOverlap=True)),
        color=colour, tooltip=["token:O", "column:O", "kind:N"],
    )  # fmt: skip
    size = max(5, min(14, 260 // max(len(kinds), 1)))
    return theme.themed(cells.properties(width=size * len(kinds), height=size * len(seen)), title, subtitle)


def _rows(view: str, frame: pd.DataFrame, part: str, parts: Collection[str], metric: str) -> pd.DataFrame:
    """The rows of one part of the study, whose frame may have more rows than a chart can hold."""
    one_of(view, "part", part, tuple(parts))
    frame_for(view, frame[:1], numbers=("x", "value"), columns=("part", "metric", "variant"))
    return frame[(frame["part"] == part) & (frame["metric"] == metric)]


def inner_curves(frame: pd.DataFrame, part: str, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Part A of the study: recall by number of pairs (A2), or by chunk size (A4)."""
    rows = _means(_rows("inner_curves", frame, part, INNER, "accuracy"))
    x_title = INNER[part]
    return line_with_band(
        rows, "x", "value", low="low", high="high", colour="variant", log_x=part == "A4", zero=True,
        width=250,
        x_title=x_title, y_title="share of pairs recalled", title=title, subtitle=subtitle,
    )  # fmt: skip


def recall_curves(
    frame: pd.DataFrame, part: str = "length", models: Sequence[str] = TITANS, *, title: str = "", subtitle: str = ""
) -> alt.Chart:
    """Part B: recall of trained models by length of the stream, or by number of facts ("facts").

    Bands: the lowest and the highest model of a variant; of a single one, the 95 % interval over test sequences.
    """
    rows = _rows("recall_curves", frame, part, TRAINED, "recall")
    rows, x_title = rows[rows["variant"].isin(models)], TRAINED[part]
    return line_with_band(
        _ranges(rows), "x", "value", low="low", high="high", colour="variant", order=list(models), zero=True, width=250,
        x_title=x_title, y_title="recall of facts", title=title, subtitle=subtitle,
    )  # fmt: skip


def language_models(frame: pd.DataFrame, reported: pd.DataFrame | None = None) -> alt.Chart:
    """The language models of the study: perplexity of held-out text and answers, beside the paper's Table 1."""
    title = "Language models on the embedded corpus: four blocks, d = 256, windows of 64"
    return language_figure(frame, list(LANGUAGE), published=_table_1(reported), title=title)


def paper_figure(
    live: pd.DataFrame | None,
    reported: pd.DataFrame | None,
    recorded: pd.DataFrame | None,
    language: pd.DataFrame | None = None,
    *,
    trained_at: int,
) -> alt.Chart:
    """Recall by length (the recorded run, else the live one), pairs held, and the ablation from all sources.

    ``language``: rows of the language models, drawn below. ``trained_at``: tokens of the longest training streams.
    """
    top: list[Any] = []
    alone: list[Any] = []
    for frame, whose in ((recorded, "recorded run"), (live, "live run")):
        if frame is not None and _has(frame, "length", "recall"):
            top.append(recall_curves(frame, title=f"Titans, trained at {trained_at} tokens ({whose})"))
            top.append(recall_curves(frame, models=OTHERS, title="Other memories, the same training"))
            break
    for frame, whose in ((live, "live run"), (recorded, "recorded run")):
        if frame is not None and _has(frame, "A2", "accuracy"):
            alone.append(inner_curves(frame, "A2", title=f"A memory alone ({whose})"))
            break
    dots = paper_recorded_live(
        _ablation(live, trained_at), _table_5(reported), _ablation(recorded, trained_at),
        item="item", unit="accuracy, recall (share)",
        title="Ablation, beyond the trained length", width=300, row_height=36,
        items=list(ABLATION.values()),
    )  # fmt: skip
    note = [
        "The paper's column is the mean of its needle tasks at 2K to 16K tokens, models of 170M parameters or more;",
        "ours, of .12M to .19M, on streams of facts longer than in training: compare the order, not the numbers.",
        "Bands of several models: the lowest and the highest; bars: 95 % intervals over models.",
        "One model, or a memory alone: 95 % intervals over groups of test sequences, or over streams.",
    ]
    title = "A memory that is a network, trained while it reads"
    rows = [theme.beside(*parts) for parts in (top, [dots, *alone]) if parts]
    rows += [] if language is None else [language_models(language, reported)]
    return theme.below(*rows, title=title, subtitle=note)


def _has(frame: pd.DataFrame, part: str, metric: str) -> bool:
    return bool(((frame["part"] == part) & (frame["metric"] == metric)).any())


def _by_model(rows: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """One row a trained model, variant and x where there are several models; else the rows as they are: groups of test
    sequences of one model, or streams of a memory alone."""
    models = [key for key in ("seed", "model") if key in rows]
    named = "model" in rows and (rows["model"].fillna("") != "").any()  # a memory alone has no model
    if not named or len(rows[models].drop_duplicates()) < 2:
        return rows, False
    return rows.groupby([*models, "variant", "x"], sort=False)["value"].mean().reset_index(), True


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and 95 % interval (Student's t) by variant and x, over the rows of ``_by_model``."""
    import pandas as pd

    from workbench.statistics import t_interval

    lines = []
    for names, group in _by_model(rows)[0].groupby(["variant", "x"], sort=False)["value"]:
        found = t_interval(group) if len(group) > 1 else (group.iloc[0],) * 3
        lines.append((*names, *found[:3]))
    means = pd.DataFrame(lines, columns=["variant", "x", "value", "low", "high"])
    return means.assign(low=means["low"].clip(0, 1), high=means["high"].clip(0, 1))


def _ranges(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean by variant and x, with the lowest and the highest trained model: intervals over two fill the picture."""
    models, several = _by_model(rows)
    if not several:
        return _means(rows)
    found = models.groupby(["variant", "x"], sort=False)["value"]
    return found.agg(value="mean", low="min", high="max").reset_index()


def _ablation(frame: pd.DataFrame | None, trained_at: int) -> pd.DataFrame | None:
    if frame is None or not _has(frame, "length", "recall"):
        return None
    rows = frame[(frame["part"] == "length") & (frame["metric"] == "recall") & (frame["x"] > trained_at)]
    rows = rows[rows["variant"].isin(list(ABLATION.values()))]
    found = _means(rows.assign(x=0.0)).rename(columns={"variant": "item"})
    return found if len(found) else None


def _table_5(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    rows = reported[(reported["table"] == "Table 5, ablation") & (reported["metric"] == "long-context accuracy")]
    rows = rows[rows["item"].isin(list(ABLATION))].copy()
    rows["item"], rows["value"] = rows["item"].map(ABLATION), rows["value"] / 100
    return rows if len(rows) else None


def _table_1(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    rows = reported[reported["table"].str.startswith("Table 1, 340M") & (reported["metric"] == "Wikitext perplexity")]
    named = {theirs: ours for ours, theirs in LANGUAGE.items() if theirs}
    return rows[rows["item"].isin(named)].assign(item=lambda found: found["item"].map(named))
