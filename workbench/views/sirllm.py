"""SirLLM's pictures: what is surprising, what stays, how scores fade, and what can be answered at which distance.

The first three read ``workbench.tasks.watch.watch``'s frame; the others read the study's tidy frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, visible
from workbench.views.figures import line_with_band, paper_recorded_live
from workbench.views.tokens import token_curves, token_strip

if TYPE_CHECKING:
    import pandas as pd

#: Order (and so colours) of the policies in every picture.
POLICIES = (
    "full", "oracle", "SirLLM", "SirLLM, decay .95", "SirLLM, decay .9", "SirLLM, decay .8", "SirLLM, decay .7",
    "SirLLM, released score", "random", "StreamingLLM", "window without sinks",
)  # fmt: skip
GROCERY, RPS, CHAT = "grocery recall", "rock-paper-scissors: win rate", "reply choice: accuracy"


def entropy_strip(frame: pd.DataFrame, *, width: int = 760, title: str = "", subtitle: str = "") -> alt.Chart:
    """The dialogue, coloured by surprise; boxes are round the tokens still held. The slider is the round."""
    data = frame_for("entropy_strip", frame, numbers=("round", "position"), columns=("token", "kept", "surprise"))
    data["token"] = [visible(token) for token in data["token"]]
    return token_strip(
        data,
        score="surprise",
        kept="kept",
        time="round",
        width=width,
        title=title or "What stays",
        subtitle=subtitle or "colour: surprise as it was read; boxed: in the cache after this round",
    )


def cache_timeline(
    frame: pd.DataFrame,
    *,
    colour: str = "score",
    width: int = 640,
    height: int = 200,
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """Stream position (x) by round (y): a mark while the token is in the cache, coloured by ``colour`` (nats).

    Columns: ``round``, ``position``, ``token``, ``kept`` and ``colour``; NaN is drawn grey. A column ``policy`` gives
    each policy a panel; colour by ``surprise`` then, because not every policy has scores.
    """
    data = frame_for("cache_timeline", frame, numbers=("round", "position"), columns=("token", "kept", colour))
    held = data[data["kept"].astype(bool)].copy()
    if held.empty:
        raise BadInput("cache_timeline: no token of this frame is kept, so there is nothing to draw")
    held["token"] = [visible(token) for token in held["token"]]
    held["edge"], held["below"] = held["position"] + 1, held["round"] + 0.92
    told = [alt.Tooltip(f"{name}:{kind}") for name, kind in _TOLD.items() if name in held]
    place = {
        "x": alt.X("position:Q", title="position in the stream (tokens)", scale=alt.Scale(nice=False)),
        "x2": "edge:Q",
        "y": alt.Y("round:Q", title="round", scale=_rounds(held), axis=alt.Axis(tickMinStep=1)),
        "y2": "below:Q",
        "tooltip": told,
    }
    top = float(held[colour].quantile(0.99)) if held[colour].notna().any() else 1.0  # one outlier would darken the rest
    scale = theme.magnitude("viridis", domain=[0.0, top or 1.0], clamp=True)
    grey = alt.Chart(held).mark_rect(color="#b8c0ca").encode(**place)
    lit = (
        alt.Chart(held)
        .mark_rect()
        .encode(**place, color=alt.Color(f"{colour}:Q", title=f"{colour} (nats)", scale=scale))
    )
    chart: Any = alt.layer(grey, lit, data=held).properties(width=width, height=height)
    if "policy" in held:
        chart = chart.facet(row=alt.Row("policy:N", title=None, sort=list(dict.fromkeys(held["policy"]))))
    return theme.themed(chart, title or "Who is in the cache", subtitle)


_TOLD = {"token": "N", "position": "Q", "round": "Q", "reason": "N", "surprise": "Q", "score": "Q"}


def _rounds(held: pd.DataFrame) -> alt.Scale:
    return alt.Scale(domain=[float(held["round"].max()) + 1, float(held["round"].min())], nice=False)


def decay_curves(frame: pd.DataFrame, positions: Sequence[int], *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Decayed score (log scale) of the tokens at ``positions`` over rounds, with the score needed to stay (dashed)."""
    data = frame_for("decay_curves", frame, numbers=("round", "position"), columns=("token", "score", "threshold"))
    data = data[data["position"].isin(list(positions)) & data["score"].notna() & (data["score"] > 0)]
    if not len(data):
        raise BadInput(f"decay_curves: none of the positions {list(positions)} was ever held with a score above zero")
    least = 1e-4 * float(data["score"].max())  # a log axis down to nothing would flatten everything that matters
    data = data[data["score"] >= least].copy()
    data["threshold"] = data["threshold"].where(data["threshold"] >= least)
    data["item"] = [f"{position}  {visible(token)}" for position, token in zip(data["position"], data["token"])]
    told = subtitle or "dashed: lowest score that was kept for its score at the round's eviction"
    return token_curves(
        data, x="round", y="score", line="item", admission="threshold", title=title or "How scores fade", subtitle=told
    )


_COLUMNS = ("experiment", "policy", "budget", "step", "distance", "item_surprise", "metric", "value")


def _of_study(view: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The study's frame, which is longer than a chart may be; BadInput when it is another one."""
    absent = [column for column in _COLUMNS if column not in getattr(frame, "columns", ())]
    if absent:
        raise BadInput(f"{view}: the frame has no column {absent[0]!r}; give what the study sirllm ran or recorded")
    return frame


def accuracy_by_distance(
    frame: pd.DataFrame, *, metric: str = "recall", title: str = "", subtitle: str = ""
) -> alt.Chart:
    """Grocery recall (or survival) over the distance between order and question, with Wilson 95 % intervals.

    Reads the study's frame: the questions asked early (as trials) and the final one, in the smallest cache that each
    policy was asked early in. Policies stand a little apart, so that equal ones can be told. Dashed: chance.
    """
    table = distance_table(frame, metric)
    order = _present(table)
    table["at"] = table["distance"] + [2.2 * (order.index(policy) - len(order) / 2) for policy in table["policy"]]
    told = ["policy:N", alt.Tooltip("distance:Q", format=".0f"), alt.Tooltip("share:Q", format=".3f"), "n:Q"]
    colour = alt.Color("policy:N", title=None, sort=order, scale=theme.categories(order))
    base = alt.Chart(table).encode(x=alt.X("at:Q", title="tokens between the item and the question"), color=colour)
    y = alt.Y("share:Q", title=f"{metric} (share of groups)", scale=alt.Scale(domain=[0, 1.02], nice=False))
    marks = [
        base.mark_line(opacity=0.55).encode(y=y),
        base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q", title=f"{metric} (share of groups)"), y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            y=y, tooltip=told, shape=alt.Shape("policy:N", legend=None, sort=order)
        ),
    ]
    if metric == "recall":
        marks.append(_level(0.25))
    chart = alt.layer(*marks).properties(width=520, height=280)
    title = title or ("Recall by distance" if metric == "recall" else "Survival of the item by distance")
    return theme.themed(chart, title, subtitle or "whiskers: Wilson 95 %" + ("; dashed: chance" * (metric == "recall")))


def _level(at: float) -> alt.Chart:
    return alt.Chart(alt.Data(values=[{"at": at}])).mark_rule(strokeDash=[4, 3], color=theme.MUTED).encode(y="at:Q")


def distance_table(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """policy, step, distance (mean tokens), share, low, high, n: one line for each moment a policy was asked."""
    import pandas as pd

    from workbench.statistics import wilson

    frame = _of_study("accuracy_by_distance", frame)
    rows = frame[(frame["experiment"] == "grocery") & frame["metric"].isin([metric, f"{metric} asked early"])]
    early = rows[rows["metric"] == f"{metric} asked early"].groupby("policy")["budget"].min()
    rows = rows[rows["budget"] == rows["policy"].map(early)]
    if rows.empty:
        raise BadInput(
            f"metric={metric!r}: this run asked no grocery question early; recall and survival are such metrics"
        )
    lines = []
    for (policy, step), group in rows.groupby(["policy", "step"]):
        found = wilson(int(group["value"].sum()), len(group))
        lines.append((policy, step, group["distance"].mean(), *found))
    return pd.DataFrame(lines, columns=["policy", "step", "distance", "share", "low", "high", "n"])


def win_rate(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Rock-paper-scissors: running win rate over blocks of rounds, mean of the players; a third is chance."""
    frame = _of_study("win_rate", frame)
    rows = frame[(frame["experiment"] == "rps") & (frame["metric"] == "win")]
    table = rows.groupby(["policy", "step"])["value"].mean().reset_index().sort_values("step")
    table["running"] = table.groupby("policy")["value"].transform(lambda values: values.expanding().mean())
    title, told = title or "Rock-paper-scissors", subtitle or "running mean over three players; dashed: random play"
    chart = line_with_band(
        table, "step", "running", colour="policy", order=_present(table), x_title="block of rounds",
        y_title="win rate so far", points=False,
    )  # fmt: skip
    return theme.layered(chart, _level(1 / 3), title=title, subtitle=told)


def survival_by_surprise(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """The failure mode: share of items that survived, by quarter of their surprise, in the tightest cache."""
    import pandas as pd

    from workbench.statistics import wilson

    frame = _of_study("survival_by_surprise", frame)
    rows = frame[(frame["experiment"] == "grocery") & (frame["policy"] == "SirLLM") & (frame["metric"] == "survival")]
    rows = rows[rows["budget"] == rows["budget"].min()]
    if len(rows) < 8:
        raise BadInput("survival_by_surprise needs at least eight groups of SirLLM's grocery survival")
    quarter = pd.qcut(rows["item_surprise"].rank(method="first"), 4, labels=False)
    groups = [group for _, group in rows.groupby(quarter)]
    found = [wilson(int(group["value"].sum()), len(group)) for group in groups]
    table = pd.DataFrame(found).assign(surprise=[group["item_surprise"].mean() for group in groups])
    return line_with_band(
        table, "surprise", "effect", low="low", high="high", x_title="surprise of the item when it was read (nats)",
        y_title="share of items still held", title=title or "What is predictable is lost", zero=True,
        subtitle=subtitle or f"cache of {int(rows['budget'].iloc[0])}; quarters of {len(rows)} groups, Wilson 95 %",
    )  # fmt: skip


# ---------------------------------------------------------------------- paper / recorded / live


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """Every policy's score in the three tasks: the paper (hollow where unverified), the recorded run, this run."""
    found = {"live": summary(live), "reported": _reported(reported), "recorded": summary(recorded)}
    panels = [_panel(name, found) for name in (GROCERY, RPS, CHAT)]
    return theme.below(
        *(panel for panel in panels if panel is not None),
        title="What each cache can still answer",
        subtitle=["Equal caches, full without limit. The paper's tables were not available to us: the one number known",
                  "is unverified and drawn hollow, of another model and setting; filled: from its data files."],
    )  # fmt: skip


def _panel(name: str, found: dict[str, pd.DataFrame | None]) -> Any:
    parts = {source: table[table["panel"] == name] for source, table in found.items() if table is not None}
    rows = [policy for part in parts.values() for policy in part["policy"]]
    if not rows:
        return None
    order = [policy for policy in (*POLICIES, *_BOUNDS) if policy in rows]
    sources = [parts.get(source) for source in ("live", "reported", "recorded")]
    return paper_recorded_live(*sources, item="policy", title=name, unit="share", items=order, row_height=26)


_BOUNDS = ("always the best move", "random play", "chance")


def summary(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """policy, panel, value, low, high: Wilson intervals for recall and reply choice, bootstrap for the win rate."""
    import pandas as pd

    from workbench.statistics import bootstrap, wilson

    if frame is None or not len(frame):
        return None
    wanted = {("grocery", "recall"): GROCERY, ("rps", "win"): RPS, ("chat", "accuracy"): CHAT}
    lines: list[dict[str, Any]] = []
    for (experiment, metric), panel in wanted.items():
        rows = frame[(frame["experiment"] == experiment) & (frame["metric"] == metric)]
        for policy, group in _main_budget(rows).groupby("policy"):
            found = bootstrap(group["value"]) if metric == "win" else wilson(int(group["value"].sum()), len(group))
            lines.append(
                {"policy": policy, "panel": panel, "value": found.effect, "low": found.low, "high": found.high}
            )
    return pd.DataFrame(lines, columns=["policy", "panel", "value", "low", "high"])


def _main_budget(rows: pd.DataFrame) -> pd.DataFrame:
    """The smallest cache that StreamingLLM ran with too (the tight one of the failure mode ran alone)."""
    shared = rows[rows["policy"] == "StreamingLLM"]["budget"]
    return rows[rows["budget"] == shared.min()] if len(shared) else rows


def _reported(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    where = {
        ("DailyDialog", "SirLLM (best listed)"): (CHAT, "SirLLM, decay .7"),
        ("Rock-Paper-Scissors (bounds)", "constant best answer"): (RPS, "always the best move"),
        ("Rock-Paper-Scissors (bounds)", "uniform play"): (RPS, "random play"),
        ("Grocery (bounds)", "chance"): (GROCERY, "chance"),
    }
    places = [where.get(key) for key in zip(reported["table"], reported["item"])]
    rows = reported[[place is not None for place in places]].copy()
    rows["panel"] = [place[0] for place in places if place]
    rows["policy"] = [place[1] for place in places if place]
    return rows


def _present(table: pd.DataFrame) -> list[str]:
    found = set(table["policy"])
    return [*(policy for policy in POLICIES if policy in found), *sorted(found - set(POLICIES))]
