"""MoM's pictures: where tokens go, facts that interfere, recall by pairs, alike memories, the study's figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for
from workbench.views.figures import line_with_band, paper_recorded_live
from workbench.views.language import language_figure
from workbench.views.tokens import _typeset

if TYPE_CHECKING:
    import pandas as pd

#: Two pictures of recall: what the state costs, and what the mixture is made of.
RULES = ("GDN single", "GDN expanded", "GDN MoM", "GLA single", "GLA expanded", "GLA MoM", "GDN total")
PARTS = ("GDN MoM", "GDN MoM, not shared", "GDN MoM, no balance loss", "GDN MoM, N=2", "GDN MoM, N=8")
#: The paper's rows (tables 2, 4 and 6) and our variants; the quantity is another one.
SAME = {
    "GDN single": "Gated DeltaNet",
    "GDN expanded": "Gated DeltaNet, expanded (550M)",
    "GDN MoM": "MoM (Gated DeltaNet)",
    "GDN MoM, not shared": "without shared memory",
    "GLA single": "GLA",
    "GLA expanded": "GLA, expanded (425M)",
    "GLA MoM": "GLA MoM (395M)",
}
ROUTES = (
    "single", "single, 4x wider", "single, 4x wider, Fourier", "domain router, top 2", "domain router + shared",
    "by lot", "domain router", "told the domain",
)  # fmt: skip
BALANCE = {"GDN MoM": "with the balance loss", "GDN MoM, no balance loss": "without"}
PAIRS = 16
LANGUAGE = ("GDN single", "GDN expanded", "GDN MoM")


def router_map(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Share of the tokens that each memory takes, by layer; a panel a variant.

    Columns: variant, layer, memory, share. An even load is k / N everywhere.
    """
    data = frame_for("router_map", frame, numbers=("layer", "share"), columns=("variant", "memory"))
    top = max(float(data["share"].max()), 1e-9)
    base = alt.Chart(data).encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)), y=alt.Y("memory:O", title="memory")
    )
    colour = alt.Color("share:Q", title="share of tokens", scale=theme.magnitude(domain=[0, top]))
    told = ["variant:N", "layer:O", "memory:O", alt.Tooltip("share:Q", format=".3f")]
    cells = base.mark_rect(stroke=theme.PAPER).encode(color=colour, tooltip=told)
    dark = alt.condition(f"datum.share > {0.62 * top}", alt.value(theme.INK), alt.value(theme.PAPER))
    text = base.mark_text().encode(text=alt.Text("share:Q", format=".2f"), color=dark)
    size = alt.Step(46)
    panel = alt.layer(cells, text).properties(width=size, height=alt.Step(26))
    names = list(dict.fromkeys(data["variant"]))
    return theme.themed(panel.facet(alt.Facet("variant:N", title=None, sort=names), columns=3), title, subtitle)


def routing_frame(frame: pd.DataFrame, variants: Sequence[str] = tuple(BALANCE)) -> pd.DataFrame:
    """The frame of ``router_map`` from the study's rows: means over groups, models (and seeds)."""
    rows = frame[(frame["part"] == "routing") & (frame["metric"] == "share") & frame["variant"].isin(variants)]
    memory = rows["unit"].astype(str).str.split(":").str[1]
    found = rows.assign(memory=memory).groupby(["variant", "x", "memory"])["value"].mean().reset_index()
    return found.rename(columns={"x": "layer", "value": "share"}).astype({"layer": int})


def token_ribbon(frame: pd.DataFrame, *, width: int = 760, title: str = "", subtitle: str = "") -> alt.Chart:
    """The text, each token in the colour of the memory that weighs most, stronger where it weighs more.

    Columns: position, token, memory, weight (and any others, told at the pointer). Clicking a memory in the legend
    keeps its tokens (selection ``memory``).
    """
    pick = alt.selection_point(name="memory", fields=["memory"], bind="legend")
    return theme.themed(_ribbon(frame, pick, width), title, subtitle)


def _ribbon(frame: pd.DataFrame, pick: alt.Parameter, width: int) -> alt.LayerChart:
    data = frame_for("token_ribbon", frame, numbers=("position", "weight"), columns=("token", "memory"))
    if not data["weight"].between(0, 1).all():
        raise BadInput("token_ribbon: column 'weight' must lie in [0, 1]")
    _typeset(data, width)
    names = sorted(set(data["memory"]))
    told = [f"{name}:{'Q' if name in ('position', 'weight', 'entropy') else 'N'}" for name in frame.columns]
    base = alt.Chart(data).encode(y=alt.Y("_line:O", axis=None), tooltip=told)
    colour = alt.Color(
        "memory:N", title="memory", scale=theme.categories(names), legend=alt.Legend(orient="top", symbolOpacity=1)
    )
    low = min(float(data["weight"].min()), 0.5)
    strength = alt.Opacity("weight:Q", scale=alt.Scale(domain=[low, 1], range=[0.22, 0.95]), legend=None)
    place = {"x": alt.X("_x0:Q", axis=None, scale=alt.Scale(domain=[0, width], nice=False)), "x2": "_x1:Q"}
    cells = base.mark_rect(cornerRadius=3, height=19).encode(
        **place, color=colour, opacity=alt.condition(pick, strength, alt.value(0.04))
    )
    text = base.mark_text(font=theme.MONO, fontSize=11).encode(
        x=alt.X("_mid:Q", axis=None), text="_shown:N", opacity=alt.condition(pick, alt.value(1.0), alt.value(0.25))
    )
    return alt.layer(cells.add_params(pick), text).properties(width=width, height=alt.Step(23))


def memory_classes(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Which kinds of tokens each memory gets: columns memory, kind (text)."""
    return theme.themed(_classes(frame, 360), title, subtitle)


def _classes(frame: pd.DataFrame, width: int) -> alt.Chart:
    data = frame_for("memory_classes", frame, columns=("memory", "kind"))
    counts = data.groupby(["memory", "kind"]).size().rename("tokens").reset_index()
    kinds = list(dict.fromkeys(data["kind"]))
    bars = alt.Chart(counts).mark_bar().encode(
        y=alt.Y("memory:N", title="memory"),
        x=alt.X("tokens:Q", title="tokens with the largest weight here", axis=alt.Axis(tickMinStep=1, format="d")),
        color=alt.Color("kind:N", title=None, sort=kinds, scale=theme.categories(kinds)),
        tooltip=["memory:N", "kind:N", "tokens:Q"],
    )  # fmt: skip
    return bars.properties(width=width, height=alt.Step(26))


def ribbon_by_memory(frame: pd.DataFrame, *, width: int = 760, title: str = "", subtitle: str = "") -> alt.Chart:
    """The ribbon above what each memory gets and how many of its questions are answered right.

    Columns: those of ``token_ribbon``, kind (text), and right: whether the model's answer after this token is right,
    None where the token asks nothing. A question is counted to the memory that weighs most in it. Clicking a memory in
    the legend keeps its tokens and its bars (selection ``memory``).
    """
    data = frame_for("ribbon_by_memory", frame, columns=("memory", "kind", "right"))
    asked = data[data["right"].notna()]
    if not len(asked):
        raise BadInput("ribbon_by_memory: column 'right' says of no token whether its answer is right")
    pick = alt.selection_point(name="memory", fields=["memory"], bind="legend")
    kept = alt.condition(pick, alt.value(1.0), alt.value(0.15))
    bars = theme.beside(
        _classes(data, 3 * width // 8).encode(opacity=kept).properties(title="Which tokens"),
        _right(asked, sorted(set(data["memory"])), kept, width // 4).properties(title="Questions answered right"),
        color="independent", y="shared",
    )  # fmt: skip
    ribbon = _ribbon(data.drop(columns="right"), pick, width)
    return theme.below(ribbon, bars, title=title, subtitle=subtitle, color="independent")


def _right(asked: pd.DataFrame, memories: list[str], kept: Any, width: int) -> alt.LayerChart:
    """Share of right answers, a bar a memory, and in words out of how many."""
    counts = asked.assign(right=asked["right"].astype(float)).groupby("memory")["right"].agg(["sum", "size"])
    counts = counts.reindex(memories, fill_value=0).reset_index()
    counts["share"] = counts["sum"] / counts["size"].where(counts["size"] > 0)
    counts["told"] = [f"{hit:.0f} of {n}" if n else "none asked" for hit, n in zip(counts["sum"], counts["size"])]
    base = alt.Chart(counts).encode(y=alt.Y("memory:N", title=None), opacity=kept)
    share = alt.X("share:Q", title="share", scale=alt.Scale(domain=[0, 1]))
    bars = base.mark_bar(color=theme.SOURCES["live"]).encode(x=share, tooltip=["memory:N", "told:N"])
    words = base.mark_text(align="left", dx=4, fontSize=11, color=theme.INK).encode(x=alt.value(width), text="told:N")
    return alt.layer(bars, words).properties(width=width, height=alt.Step(26))


def interference_curves(
    frame: pd.DataFrame, *, routes: Sequence[str] = ROUTES, title: str = "", subtitle: str = ""
) -> alt.Chart:
    """Share recalled over facts a domain, a line a way of choosing the memory, means with t intervals over seeds.

    Columns: route, facts, unit, recall (``workbench.tasks.interference``).
    """
    data = frame_for("interference_curves", frame, numbers=("facts", "recall"), columns=("route",))
    order = [route for route in routes if route in set(data["route"])]
    means = _shares(data[data["route"].isin(order)], ["route", "facts"], "recall")
    return line_with_band(
        means, "facts", "value", low="low", high="high", colour="route", order=order, zero=True,
        x_title="facts a domain (the same keys in 4 domains)", y_title="share recalled", title=title,
        subtitle=subtitle, width=250,
    )  # fmt: skip


def recall_curves(
    frame: pd.DataFrame, variants: Sequence[str], *, part: str = "recall", title: str = "", subtitle: str = ""
) -> alt.Chart:
    """Share of keys answered right over pairs told, a line a variant, with intervals over models (or groups)."""
    rows = frame[(frame["part"] == part) & (frame["metric"] == "recall") & frame["variant"].isin(variants)]
    data = frame_for("recall_curves", rows, numbers=("x", "value"), columns=("variant", "model"))
    means = _shares(_over_models(data), ["variant", "x"], "value")
    present = [name for name in variants if name in set(means["variant"])]
    return line_with_band(
        means, "x", "value", low="low", high="high", colour="variant", order=present,
        zero=True, x_title="pairs told", y_title="share of keys answered right", title=title, subtitle=subtitle,
        width=250,
    )  # fmt: skip


def similarity_maps(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Cosine between memories; a slider (parameter ``time``) goes through the stream. Columns: time, a, b, cosine."""
    from workbench.views.tokens import scrubbed

    data = frame_for("similarity_maps", frame, numbers=("time", "cosine"), columns=("a", "b"))
    names = list(dict.fromkeys(data["a"]))
    base = alt.Chart(data).encode(
        x=alt.X("a:N", title="memory", sort=names, axis=alt.Axis(labelAngle=0)),
        y=alt.Y("b:N", title="memory", sort=names),
    )
    cells = base.mark_rect().encode(
        color=alt.Color("cosine:Q", title="cosine", scale=theme.signed(1.0)),
        tooltip=["a:N", "b:N", alt.Tooltip("cosine:Q", format=".2f")],
    )
    ink = alt.condition("abs(datum.cosine) > 0.6", alt.value(theme.PAPER), alt.value(theme.INK))
    text = base.mark_text(fontSize=10).encode(text=alt.Text("cosine:Q", format=".2f"), color=ink)
    chart = alt.layer(cells, text).properties(width=alt.Step(44), height=alt.Step(34))
    return theme.themed(scrubbed(chart, data, "time", label="tokens read"), title, subtitle)


def spectrum(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Singular values of each memory by rank, mean over heads. Columns: memory, head, rank, value."""
    data = frame_for("spectrum", frame, numbers=("rank", "value"), columns=("memory",))
    means = data.groupby(["memory", "rank"])["value"].mean().reset_index()
    return line_with_band(
        means, "rank", "value", colour="memory", zero=True, x_title="rank", y_title="singular value", title=title,
        subtitle=subtitle, width=330,
    )  # fmt: skip


def decoding_curves(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Time of one decoding step over the tokens read before (log axes), medians, a line a layer."""
    rows = frame[(frame["part"] == "decoding") & (frame["metric"] == "seconds")]
    data = frame_for("decoding_curves", rows, numbers=("x", "value"), columns=("variant",))
    times = data.assign(ms=1e3 * data["value"]).groupby(["variant", "x"])["ms"]
    found = times.median().to_frame("value").assign(low=times.quantile(0.25), high=times.quantile(0.75))
    return line_with_band(
        found.reset_index(), "x", "value", low="low", high="high", colour="variant", log_x=True, log_y=True,
        x_title="tokens read before", y_title="ms a step (quartiles)", title=title, subtitle=subtitle, width=250,
    )  # fmt: skip


def language_models(frame: pd.DataFrame) -> alt.Chart:
    """The language models of the study: perplexity of held-out text and answers from what was just read."""
    title = "Language models on the embedded corpus: four blocks, d = 256, gated DeltaNet in each"
    return language_figure(frame, LANGUAGE, title=title)


def paper_figure(
    live: pd.DataFrame | None,
    reported: pd.DataFrame | None,
    recorded: pd.DataFrame | None,
    language: pd.DataFrame | None = None,
) -> alt.Chart:
    """Recall of the live run (else the recorded one), facts by hand, and the order of the variants from all sources.

    ``language``: rows of the language models, drawn below.
    """
    shown, whose = (live, "live run") if live is not None and len(live) else (recorded, "recorded run")
    asked = shown if shown is not None and _has(shown, "recall") else recorded
    rows: list[Any] = []
    if asked is not None and _has(asked, "recall"):
        whose_asked = whose if asked is shown else "recorded run"
        rows.append(
            theme.beside(
                recall_curves(
                    asked,
                    RULES,
                    title=f"MQAR: one memory or several ({whose_asked})",
                    subtitle="single: a third of the floats that a token of the mixture writes",
                ),
                recall_curves(
                    asked,
                    PARTS,
                    title="What the mixture is made of",
                    subtitle="not at equal state: fewer memories write less",
                ),
            )
        )
    if shown is not None and _has(shown, "by hand"):
        hand = shown[shown["part"] == "by hand"].rename(columns={"variant": "route", "x": "facts", "value": "recall"})
        pictures = [interference_curves(hand, title="Untrained: facts under shared keys")]
        pictures += [decoding_curves(shown, title="One decoding step")] if _has(shown, "decoding") else []
        rows.append(theme.beside(*pictures))
    ours = {name: _percent(frame) for name, frame in (("live", live), ("recorded", recorded))}
    theirs = _table(reported)
    if any(found is not None for found in (*ours.values(), theirs)):
        dots = paper_recorded_live(
            ours["live"], theirs, ours["recorded"], item="item", unit="percent",
            title="The same models, other tasks", width=420, items=list(SAME), row_height=34,
            subtitle=f"paper: mean of six recall tasks, 380M; ours: keys answered right at {PAIRS} pairs",
        )  # fmt: skip
        rows.append(dots)
    rows += [] if language is None else [language_models(language)]
    title = "Mixture-of-Memories: less interference, or only more state?"
    note = ["Expanded: as many floats as a token of the mixture writes; total: as many as the mixture holds."]
    return theme.below(*rows, title=title, subtitle=note)


def _has(frame: pd.DataFrame, part: str) -> bool:
    return bool((frame["part"] == part).any())


def _over_models(rows: pd.DataFrame) -> pd.DataFrame:
    """One value a model; where there is a single model of each kind, its groups of sequences stay."""
    keys = [name for name in ("seed", "model") if name in rows]
    if rows.groupby(keys).ngroups < 2:
        return rows
    return rows.groupby(["variant", "x", *keys])["value"].mean().reset_index()


def _means(rows: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    import pandas as pd

    from workbench.statistics import t_interval

    lines = []
    for names, group in rows.groupby(by, sort=True):
        found = t_interval(group[value]) if len(group) > 1 else (group[value].iloc[0],) * 3
        lines.append((*names, *found[:3]))
    return pd.DataFrame(lines, columns=[*by, "value", "low", "high"])


def _shares(rows: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """``_means`` of numbers in [0, 1]: an interval is drawn no further."""
    means = _means(rows, by, value)
    return means.assign(low=means["low"].clip(0, 1), high=means["high"].clip(0, 1))


def _percent(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    if frame is None or not len(frame):
        return None
    rows = frame[(frame["part"] == "recall") & (frame["x"] == PAIRS) & frame["variant"].isin(SAME)]
    if not len(rows):
        return None
    means = _shares(_over_models(rows), ["variant", "x"], "value").rename(columns={"variant": "item"})
    return means.assign(**{name: 100 * means[name] for name in ("value", "low", "high")})


def _table(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    named = {theirs: ours for ours, theirs in SAME.items()}
    kept = reported["metric"].isin(["average", "recall average"]) & reported["item"].isin(named)
    rows = reported[kept & ~reported["table"].str.contains("1.3B|LongBench")].copy()
    rows["item"] = rows["item"].map(named)
    return rows if len(rows) else None
