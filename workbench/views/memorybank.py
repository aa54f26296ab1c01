"""MemoryBank's pictures: policies of equal size, sizes, drift, the grid, retrieval by question, the paper's figure.

They read the study's tidy frame (experiment, policy, capacity, time_scale, increment, metric, unit, step, value);
curves, lives and prompts are in :mod:`workbench.views.forgetting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, has_columns, one_of
from workbench.views.figures import bars_with_interval, line_with_band, paper_recorded_live

if TYPE_CHECKING:
    import pandas as pd

#: Order (and so colours) of the policies of equal size.
EQUAL = ("EBB capacity", "LFU", "LRU", "RANDOM", "FIFO")
#: Rules without a size of their own, with what they hold on average.
RULES = ("EBB threshold", "EBB hazard", "EBB hazard, no reinforcement", "as published (bug)")
SCENARIOS = {"life": "interests stay", "life with drift": "interests drift every 20 days"}
RETRIEVAL, CORRECT = "retrieval accuracy", "correct answers"
HIT_STAY, HIT_DRIFT = "hit rate, interests stay", "hit rate, interests drift"


def equal_budget_bars(frame: pd.DataFrame, capacity: int = 64, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Hit rate of the policies that hold ``capacity`` facts, with bootstrap 95 % intervals, in both scenarios."""
    table = _means(frame, "hit rate", "equal_budget_bars")
    table = table[(table["capacity"] == capacity) & table["policy"].isin(EQUAL)].copy()
    if not len(table):
        raise BadInput(f"equal_budget_bars: no policy of equal size ran with {capacity} facts")
    table["scenario"] = table["experiment"].map(SCENARIOS)
    table["policy"] = table["policy"].str.replace("EBB capacity", "EBB", regex=False)
    return bars_with_interval(
        table, "policy", "value", low="low", high="high", colour="policy", facet="scenario", y_title="hit rate",
        order=[name.split()[0] for name in EQUAL], bars=[name.split()[0] for name in EQUAL], height=230,
        title=title or f"The same {capacity} facts, chosen differently",
        subtitle=subtitle or "share of questions whose fact is still stored; whiskers: bootstrap 95 %",
    )  # fmt: skip


def hit_rate_by_capacity(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Hit rate over the number of facts held (log scale), one line a policy, in both scenarios."""
    table = _means(frame, "hit rate", "hit_rate_by_capacity")
    table = table[table["capacity"].notna() & table["policy"].isin(EQUAL)].copy()
    table["scenario"] = table["experiment"].map(SCENARIOS)
    chart = line_with_band(
        table, "capacity", "value", low="low", high="high", colour="policy", facet="scenario", y_title="hit rate",
        zero=True, order=list(EQUAL), width=330, height=230,
        title=title or "What a larger memory buys", subtitle=subtitle or "bands: bootstrap 95 %",
    )  # fmt: skip
    sizes = sorted(table["capacity"].unique().tolist())
    doubling = alt.Scale(type="log", base=2, domain=[sizes[0] * 0.9, sizes[-1] * 1.1], nice=False)
    for layer in chart.spec.layer:
        layer.encoding.x = alt.X("capacity:Q", title="facts held", scale=doubling, axis=alt.Axis(values=sizes))
    return chart


def size_and_hits(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Hit rate against mean size, every policy a point: forgetting by chance beside eviction at the same size."""
    hits, sizes = _means(frame, "hit rate", "size_and_hits"), _means(frame, "mean size", "size_and_hits")
    keys = ["experiment", "policy", "capacity"]
    table = hits.merge(sizes[[*keys, "value"]].rename(columns={"value": "size"}), on=keys)
    table = table[(table["experiment"] == "life") & (table["capacity"].isna() | (table["capacity"] == 64))].copy()
    order = [name for name in ("EBB capacity", "LFU", "FIFO", *RULES) if name in set(table["policy"])]
    table = table[table["policy"].isin(order)]
    table["size"] += table["policy"].map({"EBB capacity": -1.0, "LFU": 1.0}).fillna(0.0)  # they would hide one another
    table["kind"] = ["equal size" if name in EQUAL else "a rule" for name in table["policy"]]
    base = alt.Chart(table).encode(
        x=alt.X("size:Q", title="facts held (mean)", scale=alt.Scale(zero=True)),
        color=alt.Color("policy:N", title=None, sort=order, scale=theme.categories(order)),
    )
    y = alt.Y("value:Q", title="hit rate", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=5))
    told = ["policy:N", alt.Tooltip("value:Q", format=".3f"), alt.Tooltip("size:Q", format=".1f")]
    dots = base.mark_point(filled=True, size=110, opacity=1).encode(
        y=y, tooltip=told, shape=alt.Shape("kind:N", title=None)
    )
    bars = base.mark_rule(strokeWidth=1.4).encode(y=alt.Y("low:Q", title="hit rate"), y2="high:Q")
    chart = alt.layer(bars, dots).properties(width=430, height=270)
    return theme.themed(
        chart, title or "Forgetting by chance costs", subtitle or "interests stay; whiskers: bootstrap 95 %"
    )


def grid_map(frame: pd.DataFrame, capacity: int = 64, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Hit rate over λ and the increment of a recall, at one capacity (``full`` scale).

    The last column is λ = ∞: nothing fades, only the full store evicts.
    """
    has_columns("grid_map", frame, "experiment", "metric", "capacity", "time_scale", "increment", "value")
    rows = frame[(frame["experiment"] == "grid") & (frame["metric"] == "hit rate") & (frame["capacity"] == capacity)]
    if not len(rows):
        raise BadInput(f"grid_map: the frame has no grid at capacity {capacity}; run the full scale")
    rows = frame_for("grid_map", rows, numbers=("value", "time_scale", "increment"))
    rows = rows.groupby(["time_scale", "increment"])["value"].mean().reset_index()  # of several seeds, where there are
    rows["λ"] = ["∞" if scale == 0 else f"{scale:g}" for scale in rows["time_scale"]]
    rows["order"] = rows["time_scale"].replace(0, float("inf")).rank(method="dense")
    x = alt.X("λ:N", sort=alt.EncodingSortField("order"), title="λ (days per unit of strength)",
              axis=alt.Axis(labelAngle=0))  # fmt: skip
    base = alt.Chart(rows).encode(x=x, y=alt.Y("increment:O", title="added by a recall", sort="descending"))
    top = float(rows["value"].max())
    cells = base.mark_rect(**theme.SEAMLESS).encode(
        color=alt.Color("value:Q", title="hit rate", scale=theme.magnitude("viridis", domain=[0, top]))
    )
    words = base.mark_text(fontSize=10).encode(
        text=alt.Text("value:Q", format=".2f"),
        color=alt.condition(f"datum.value > {0.6 * top}", alt.value(theme.INK), alt.value(theme.PAPER)),
    )
    chart = alt.layer(cells, words).properties(width=alt.Step(52), height=alt.Step(30))
    told = subtitle or f"at most {capacity} facts; mean hit rate of the lives"
    return theme.themed(chart, title or "Which λ, how much per recall", told)


def retrieval_by_question(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """One row a question: every piece that came back as a dot at its similarity; the right day is filled.

    Columns: ``question``, ``similarity``, ``day``, ``hit`` (whether the piece is of the gold day), ``text``.
    """
    data = frame_for(
        "retrieval_by_question", frame, numbers=("similarity",), columns=("question", "day", "hit", "text")
    )
    data["question"] = [_short(text, 78) for text in data["question"]]
    data["text"] = [_short(text, 160) for text in data["text"]]
    data["piece"] = ["of the day asked for" if hit else "of another day" for hit in data["hit"]]
    order = list(dict.fromkeys(data["question"]))
    names = ["of the day asked for", "of another day"]
    scale = alt.Scale(domain=names, range=["#009E73", "#b8c0ca"])
    chart = (
        alt.Chart(data)
        .mark_point(filled=True, size=90, opacity=1)
        .encode(x=alt.X("similarity:Q", title="similarity to the question (cosine)", scale=alt.Scale(zero=False)),
                y=alt.Y("question:N", sort=order, title=None, axis=alt.Axis(grid=True, labelLimit=430)),
                color=alt.Color("piece:N", title=None, sort=names, scale=scale),
                shape=alt.Shape("piece:N", title=None, sort=names, scale=alt.Scale(domain=names,
                                                                                 range=["circle", "diamond"])),
                tooltip=["question:N", "day:N", "text:N", alt.Tooltip("similarity:Q", format=".3f")])
        .properties(width=360, height=alt.Step(24))
    )  # fmt: skip
    return theme.themed(chart, title or "What each question found", subtitle)


# -- paper / recorded / live ------------------------------------------------------------------------------------------


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """Retrieval and correctness beside table 2 (other questions, other judges); hit rates, which the paper lacks."""
    found = {"live": summary(live), "reported": _reported(reported), "recorded": summary(recorded)}
    rows = [[_panel(name, found) for name in pair] for pair in ((RETRIEVAL, CORRECT), (HIT_STAY, HIT_DRIFT))]
    drawn = [[panel for panel in row if panel is not None] for row in rows]
    lines = [theme.beside(*row) for row in drawn if row]
    if not lines:
        raise BadInput("paper_figure: live, reported and recorded are all empty, so there is nothing to draw")
    note = [
        "Paper: human ratings of 97 questions a language (correctness 0, ½ or 1); all its bots have the memory.",
        "Ours: automatic criteria on other questions, to be compared loosely. The paper has no run on forgetting.",
        "Hit rates: the first five policies hold 64 facts, the rules below them about 98, 65, 55 and 29 on average.",
    ]
    title = "What MemoryBank finds, and what forgetting keeps"
    return theme.below(*lines, title=title, subtitle=note)


_ITEMS = {
    RETRIEVAL: ("ChatGLM (English)", "BELLE (English)", "ChatGPT (English)", "ChatGLM (Chinese)", "BELLE (Chinese)",
                "ChatGPT (Chinese)", "generated talk, top 6", "authors' users, named day, top 6",
                "authors' users, named day, top 1"),
    CORRECT: ("ChatGLM (English)", "BELLE (English)", "ChatGPT (English)", "ChatGLM (Chinese)", "BELLE (Chinese)",
              "ChatGPT (Chinese)", "embedded model, with memory", "embedded model, recent talk only",
              "embedded model, without", "extractive rules, with memory", "extractive rules, recent talk only",
              "extractive rules, without"),
    HIT_STAY: (*EQUAL, *RULES),
    HIT_DRIFT: (*EQUAL, *RULES),
}  # fmt: skip
#: (experiment, policy, metric) -> (panel, row)
_WHERE = {
    ("companions world", "nothing forgotten", "retrieved"): (RETRIEVAL, "generated talk, top 6"),
    ("authors' users", "MiniLM, pieces", "day@6"): (RETRIEVAL, "authors' users, named day, top 6"),
    ("authors' users", "MiniLM, pieces", "day@1"): (RETRIEVAL, "authors' users, named day, top 1"),
} | {
    ("talk about acquaintances", policy, f"correct ({reader})"): (CORRECT, f"{reader}, {name}")
    for policy, name in (
        ("nothing forgotten", "with memory"),
        ("recent exchanges", "recent talk only"),
        ("no memory", "without"),
    )
    for reader in ("embedded model", "extractive rules")
}  # fmt: skip


_SUMMARY = ["panel", "item", "value", "low", "high"]


def summary(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """panel, item, value, low, high of a run: Wilson intervals of shares, bootstrap intervals of hit rates."""
    import pandas as pd

    from workbench.statistics import wilson

    if frame is None or not len(frame):
        return None
    has_columns("paper_figure", frame, "experiment", "policy", "metric", "unit", "value")
    lines: list[dict[str, Any]] = []
    for key, group in frame.groupby(["experiment", "policy", "metric"]):
        if key in _WHERE:
            group = group.drop_duplicates("unit") if key[0] == "authors' users" else group  # the same for every seed
            share = wilson(int(group["value"].sum()), len(group))
            panel, item = _WHERE[key]
            lines.append({"panel": panel, "item": item, "value": share.effect, "low": share.low, "high": share.high})
    if frame["experiment"].isin(list(SCENARIOS)).any():
        hits = _means(frame, "hit rate", "summary")
        hits = hits[hits["capacity"].isna() | (hits["capacity"] == 64)]
        panels = {"life": HIT_STAY, "life with drift": HIT_DRIFT}
        hits = hits[hits["policy"].isin([*EQUAL, *RULES])]
        lives = hits.assign(panel=hits["experiment"].map(panels), item=hits["policy"])
        return pd.concat([pd.DataFrame(lines, columns=_SUMMARY), lives[_SUMMARY]], ignore_index=True)
    return pd.DataFrame(lines, columns=_SUMMARY)


def _reported(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    panels = {"retrieval accuracy": RETRIEVAL, "correctness": CORRECT}
    rows = reported[reported["table"].str.startswith("Table 2") & reported["metric"].isin(list(panels))].copy()
    rows["panel"] = rows["metric"].map(panels)
    rows["item"] = [f"{bot} ({table.split()[-1]})" for bot, table in zip(rows["item"], rows["table"])]
    return rows


def _panel(name: str, found: dict[str, pd.DataFrame | None]) -> Any:
    parts = {source: table[table["panel"] == name] for source, table in found.items() if table is not None}
    rows = {item for part in parts.values() for item in part["item"]}
    if not rows:
        return None
    sources = [parts.get(source) for source in ("live", "reported", "recorded")]
    items = [item for item in _ITEMS[name] if item in rows]
    return paper_recorded_live(*sources, item="item", title=name, unit="share", items=items, row_height=24, width=240)


def _means(frame: pd.DataFrame, metric: str, view: str) -> pd.DataFrame:
    """experiment, policy, capacity, value, low, high: mean over lives with its bootstrap interval."""
    import pandas as pd

    from workbench.statistics import bootstrap

    one_of(view, "metric", metric, ("hit rate", "mean size"))
    has_columns(view, frame, "experiment", "policy", "capacity", "metric", "unit", "value")
    rows = frame[frame["experiment"].isin(list(SCENARIOS)) & (frame["metric"] == metric)]
    if not len(rows):
        raise BadInput(f"{view}: the frame holds no simulated lives")
    lines = []
    for (experiment, policy, capacity), group in rows.groupby(["experiment", "policy", "capacity"], dropna=False):
        values = group["value"]
        found = bootstrap(values, resamples=1_999) if len(values) > 1 else (float(values.iloc[0]),) * 3
        lines.append((experiment, policy, capacity, *found[:3]))
    return pd.DataFrame(lines, columns=["experiment", "policy", "capacity", "value", "low", "high"])


def _short(text: object, longest: int) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"
