"""Pictures of Just read twice: what order costs (Figure 2), a memory by token, who sees whom, repeated prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, one_of
from workbench.views.figures import line_with_band

if TYPE_CHECKING:
    import pandas as pd

#: Names of the modes in the order (and so the colours) of every picture.
MODES = {
    "causal": "causal",
    "prefix": "prefix (JRT-RNN)",
    "non-causal": "non-causal",
}
PANELS = ("|A| < |B|: small set first", "|A| > |B|: large set first", "difference (gap)")
SIGHTS = {"both": "#009E73", "causal": "#0072B2", "encoder": "#E69F00", "one sum": "#CC79A7", "unseen": "#eef1f4"}
#: The same contender in our race and in the paper's Table 5, in the order of their colours.
CONTENDERS = (
    ("SDPA, N", "FlashAttention-2"),
    ("linear, N", "Based, CUDA"),
    ("linear, 2N (JRT-Prompt)", "JRT-Prompt, CUDA"),
    ("prefix linear, N", "JRT-RNN, CUDA"),
    ("Based, Triton",),
)
#: The language models and the ways to ask them, in the order of the picture.
LANGUAGE = ("Based", "Based, repeated", "JRT-RNN", "JRT-RNN, prefix filled", "JRT-RNN, repeated")
_LARGEST_MASK = 64


def order_curves(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Figure 2: accuracy over bytes of state for either order and their difference, one line a mode, panels linked.

    Columns: mode, panel (``PANELS``), bytes, value, low, high; optional ``chance``. Clicking the legend or a line
    keeps one mode in all panels (selection ``modes``).
    """
    data = frame_for("order_curves", frame, numbers=("bytes", "value", "low", "high"), columns=("mode", "panel"))
    strangers = set(data["mode"]) - set(MODES)
    if strangers:
        raise BadInput(f"order_curves: modes are {', '.join(MODES)}, got {sorted(strangers)}")
    data["mode"] = data["mode"].map(MODES)
    pick = alt.selection_point(name="modes", fields=["mode"], bind="legend")
    found = [panel for panel in PANELS if panel in set(data["panel"])]
    panels = [_order_panel(data[data["panel"] == panel], panel, pick, list(MODES.values())) for panel in found]
    return theme.beside(*panels, title=title, subtitle=subtitle, color="shared", opacity="shared")


def _order_panel(data: pd.DataFrame, panel: str, pick: Any, names: list[str]) -> alt.Chart:
    gap = panel == PANELS[2]
    present = [name for name in names if name in set(data["mode"])]
    colour = alt.Color("mode:N", title=None, sort=present, scale=_colours(present, names))
    x = alt.X(
        "bytes:Q",
        title="bytes of state (log)",
        scale=alt.Scale(type="log", nice=False, padding=8),
        axis=alt.Axis(format="~s", tickCount=4),
    )
    y = alt.Y(
        "value:Q",
        title="accuracy: small first - large first" if gap else "accuracy",
        scale=alt.Scale() if gap else alt.Scale(domain=[0, 1]),
    )
    base = alt.Chart(data).encode(x=x, color=colour)
    faint = alt.condition(pick, alt.value(1.0), alt.value(0.12))
    told = [alt.Tooltip(f"{n}:Q", format=".4~g") for n in ("bytes", "value", "low", "high", "runs") if n in data]
    line = base.mark_line(point=alt.OverlayMarkDef(size=45, filled=True))
    line = line.encode(y=y, opacity=faint, tooltip=["mode:N", *told]).add_params(pick)
    whisker = base.mark_rule(strokeWidth=1.4).encode(y=alt.Y("low:Q"), y2="high:Q", opacity=faint)
    layers = [whisker, line]
    if gap:
        layers.insert(0, alt.Chart(data).mark_rule(color="#b8c0ca").encode(y=alt.datum(0)))
    elif "chance" in data and data["chance"].notna().any():
        chance = alt.Chart(data).mark_line(strokeDash=[4, 3], color=theme.MUTED).encode(x=x, y="mean(chance):Q")
        layers.insert(0, chance)
    return alt.layer(*layers).properties(width=185, height=200, title=alt.TitleParams(panel, fontSize=12))


def _colours(present: list[str], names: list[str]) -> alt.Scale:
    return alt.Scale(domain=present, range=[theme.CATEGORIES[names.index(name)] for name in present])


def figure_2(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """``order_curves`` of a study's frame; BadInput where it holds no trained models."""
    from workbench.views._jrt_figure import orders_of

    rows = getattr(frame, "columns", ())
    orders = orders_of(frame) if {"experiment", "metric", "value", "n"} <= set(rows) else None
    if orders is None:
        raise BadInput("figure_2: the frame holds no accuracies of trained models (experiment 'sets')")
    return order_curves(orders, title=title, subtitle=subtitle)


def memory_trace(frame: pd.DataFrame, *, title: str = "", subtitle: str = "", width: int = 620) -> alt.Chart:
    """What a memory says of every element after every token: the shared one in colour, noise of the others as a band.

    Reads ``workbench.tasks.disjointness.trace``: step, token, from, pass, wrote, element, score, sigma, held, common.
    """
    needed = ("from", "pass", "wrote", "held", "common")
    data = frame_for("memory_trace", frame, numbers=("step", "element", "score", "sigma"), columns=needed)
    data["down"], data["kind"] = -data["sigma"], "not written"
    data.loc[data["held"], "kind"] = "written"
    data.loc[data["common"], "kind"] = "in both sets"
    kinds = ["in both sets", "written", "not written"]
    inks = alt.Scale(domain=kinds, range=["#D55E00", "#0072B2", "#b8c0ca"])
    x = alt.X("step:Q", title="tokens read", scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1))
    y = alt.Y("score:Q", title="what the memory says: e · s")
    told = ["element:Q", "step:Q", "from:N", "pass:Q", "kind:N", alt.Tooltip("score:Q", format=".2f")]
    band = alt.Chart(data).transform_filter("datum.common").mark_area(opacity=0.25, color="#b8c0ca")
    lines = alt.Chart(data).mark_line(strokeWidth=1.1, opacity=0.8, interpolate="step-after")
    lines = lines.encode(
        x=x, y=y, detail="element:N", color=alt.Color("kind:N", title=None, sort=kinds, scale=inks), tooltip=told
    )
    right = alt.Chart(data).transform_filter("datum.common").mark_line(strokeWidth=3, interpolate="step-after")
    layers = [
        band.encode(x=x, y=alt.Y("down:Q"), y2="sigma:Q"),
        lines,
        right.encode(x=x, y=y, color=alt.Color("kind:N", scale=inks), tooltip=told),
        *_borders(data),
    ]
    said = subtitle or "band: one standard deviation of what was never written, √(written / D)"
    return theme.themed(alt.layer(*layers).properties(width=width, height=240), title, said)


def _borders(data: pd.DataFrame) -> list[alt.Chart]:
    """A rule and a word where a set begins."""
    import pandas as pd

    steps = data.drop_duplicates("step").sort_values("step")
    begins = steps[(steps["from"] != steps["from"].shift()) | (steps["pass"] != steps["pass"].shift())]
    wrote = steps.groupby([steps["pass"], steps["from"]])["wrote"].any()
    words = [
        f"{row['from']}, pass {row['pass']}{': written' if wrote[row['pass'], row['from']] else ''}"
        for _, row in begins.iterrows()
    ]
    heights = [-14 * (i % 2) - 4 for i in range(len(words))]
    marks = alt.Chart(pd.DataFrame({"step": begins["step"].to_numpy(), "word": words, "height": heights}))
    rule = marks.mark_rule(color=theme.INK, strokeDash=[3, 3]).encode(x="step:Q")
    text = marks.mark_text(align="left", fontSize=10, color=theme.MUTED, baseline="bottom", y=alt.expr("datum.height"))
    return [rule, text.encode(x="step:Q", text="word:N")]


def prefix_mask(length: int, prefix: int, mode: str = "prefix", *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Who reads whom: rows read columns through the causal sum, the encoder's, or both; non-causal: one sum of all.

    ``length`` tokens (at most 64), the first ``prefix`` of them the encoder's. Raises BadInput for M > T.
    """
    import pandas as pd

    one_of("prefix_mask", "mode", mode, ("prefix", "causal", "non-causal"))
    length = whole("prefix_mask: length", length, 1, _LARGEST_MASK)
    prefix = whole("prefix_mask: prefix", prefix, 0, length, more=", the length: M may not exceed T")
    cells = [(i, j, _sight(i, j, prefix, mode)) for i in range(length) for j in range(length)]
    data = pd.DataFrame(cells, columns=["reads", "token", "through"])
    shown = [sight for sight in SIGHTS if sight in set(data["through"])]
    inks = alt.Scale(domain=shown, range=[SIGHTS[sight] for sight in shown])
    size = min(14, 340 // length + 4) * length
    chart = (
        alt.Chart(data)
        .mark_rect(stroke=theme.PAPER, strokeWidth=0.6)
        .encode(
            x=alt.X(
                "token:O",
                title="token that was written",
                axis=alt.Axis(labelOverlap=True, labelAngle=0, labelSeparation=4),
            ),
            y=alt.Y("reads:O", title="token that reads"),
            color=alt.Color("through:N", title="through", sort=shown, scale=inks),
            tooltip=["reads:O", "token:O", "through:N"],
        )
    )
    return theme.themed(chart.properties(width=size, height=size), title, subtitle)


def _sight(i: int, j: int, prefix: int, mode: str) -> str:
    if mode == "non-causal":
        return "one sum"
    causal, encoder = j <= i, mode == "prefix" and j < prefix
    return "both" if causal and encoder else "causal" if causal else "encoder" if encoder else "unseen"


def prompt_gains(frame: pd.DataFrame, *, title: str = "", subtitle: str = "", width: int = 240) -> alt.Chart:
    """Dumbbells from the default prompt to the repeated one, one a model and task; ours and the published apart.

    Columns: item (model), task, default, repeated (accuracy, %), source ("paper", "recorded", "live").
    """
    data = frame_for("prompt_gains", frame, numbers=("default", "repeated"), columns=("item", "task", "source"))
    data["gain"] = data["repeated"] - data["default"]
    order = list(dict.fromkeys(data["item"]))
    y = alt.Y("item:N", sort=order, title=None, axis=alt.Axis(grid=True, labelLimit=230, labelColor=theme.INK))
    sources = [source for source in theme.SOURCES if source in set(data["source"])]
    inks = alt.Scale(domain=sources, range=[theme.SOURCES[source] for source in sources])
    legend = alt.Legend(symbolType="circle", symbolOpacity=1, symbolStrokeWidth=0)
    colour = alt.Color("source:N", title=None, scale=inks, sort=sources, legend=legend)
    told = [
        "item:N",
        "task:N",
        "source:N",
        *(alt.Tooltip(f"{n}:Q", format=".1f") for n in ("default", "repeated", "gain")),
    ]
    axis = alt.Scale(domain=[0, 100])
    base = alt.Chart().encode(y=y, color=colour, tooltip=told)
    title_x = "questions right (%): hollow once, filled twice"
    rule = base.mark_rule(strokeWidth=2.5, opacity=0.6).encode(
        x=alt.X("default:Q", scale=axis, title=title_x), x2="repeated:Q"
    )
    once = base.mark_point(size=60, fill=theme.PAPER, opacity=1).encode(x=alt.X("default:Q", scale=axis))
    twice = base.mark_point(size=70, filled=True, opacity=1).encode(x=alt.X("repeated:Q", scale=axis))
    panel = alt.layer(rule, once, twice, data=data).properties(width=width, height=alt.Step(18))
    tasks = list(dict.fromkeys(data["task"]))
    chart = panel.facet(facet=alt.Facet("task:N", title=None, sort=tasks), columns=2).resolve_scale(y="independent")
    return theme.themed(chart, title, subtitle)


def prefill_curves(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Time to read a prompt of N tokens, one line a contender (both axes logarithmic).

    Columns: contender, length, ms, low, high. What the paper and ours both have gets the same colour in both.
    """
    data = frame_for("prefill_curves", frame, numbers=("length", "ms", "low", "high"), columns=("contender",))
    shown = list(dict.fromkeys(data["contender"]))
    order = [name for row in CONTENDERS for name in row if name in shown]
    order += [name for name in shown if name not in order]
    return line_with_band(
        data,
        "length",
        "ms",
        low="low",
        high="high",
        colour="contender",
        log_x=True,
        log_y=True,
        x_title="tokens of the document, N (log)",
        y_title="prefill (ms, log)",
        title=title,
        subtitle=subtitle,
        order=order,
        width=230,
    )


def language_models(frame: pd.DataFrame, *, title: str = "") -> alt.Chart:
    """The language models of the study: perplexity behind the prefix, and questions asked once and twice.

    Columns: part, variant, x, model, unit, metric, value (``_jrt_claims.shared_names``).
    """
    from workbench.views import language

    read = language.perplexity_dots(frame, LANGUAGE, title="Held-out text, behind the prefix")
    asked = language.answer_dots(frame, LANGUAGE, title="Questions about strangers, from the text")
    said = title or "JRT-RNN and Based on the embedded corpus: states of one size"
    return theme.below(read, asked, title=said)


def paper_figure(
    live: pd.DataFrame | None,
    reported: pd.DataFrame | None,
    recorded: pd.DataFrame | None,
    language: pd.DataFrame | None = None,
) -> alt.Chart:
    """Figure 2 of the live and the recorded run, repeated prompts beside Table 1, prefill times beside Table 5.

    ``language``: rows of the language models, drawn below.
    """
    from workbench.views import _jrt_figure

    return _jrt_figure.paper_figure(live, reported, recorded, language)
