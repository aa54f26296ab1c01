"""Pictures of channels between heads: what stands out, what removal costs, how lists are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.views import theme
from workbench.views._check import frame_for, one_of
from workbench.views._study_rows import study_rows
from workbench.views.figures import line_with_band, paper_recorded_live

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("its entry", "other entries", "taken", "the rest")
#: Experiments of the study by model: what stands before "list", "removed", "steered".
MODELS = {"": "embedded: colours", "item ": "small: things", "colour ": "small: colours"}


def component_spectrum(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Scores of a writer's components with one reader, by falling singular value; a colour for each writer.

    Columns of ``workbench.probes.composition.score_table``: writer_layer, writer, component, s, score, z.
    """
    data = frame_for("component_spectrum", frame, numbers=("writer_layer", "writer", "component", "s", "score", "z"))
    data["head"] = [f"{int(a)}.{int(b)}" for a, b in zip(data["writer_layer"], data["writer"])]
    bars = alt.Chart(data).mark_bar().encode(
        x=alt.X("component:O", title="component, by singular value", axis=alt.Axis(labels=False, ticks=False)),
        y=alt.Y("score:Q", title="composition score"),
        color=alt.Color("head:N", title="writer", scale=theme.categories(sorted(set(data["head"])))),
        tooltip=["head:N", "component:O", alt.Tooltip("score:Q", format=".3f"), alt.Tooltip("z:Q", format=".1f"),
                 alt.Tooltip("s:Q", format=".2f")],
    )  # fmt: skip
    return theme.themed(bars.properties(width=170, height=120).facet("head:N", columns=4), title, subtitle)


def composition_map(frame: pd.DataFrame, *, value: str = "whole_z", title: str = "", subtitle: str = "") -> alt.Chart:
    """Writers (rows) by readers (columns): ``value`` "whole_z", or "z" for the best component of each pair."""
    data = frame_for("composition_map", frame, numbers=("writer_layer", "writer", "reader_layer", "reader", value))
    data["from"] = [f"{int(a)}.{int(b)}" for a, b in zip(data["writer_layer"], data["writer"])]
    data["to"] = [f"{int(a)}.{int(b)}" for a, b in zip(data["reader_layer"], data["reader"])]
    best = data.groupby(["from", "to"], sort=False)[value].max().reset_index()
    cells = (
        alt.Chart(best)
        .mark_rect()
        .encode(
            x=alt.X("to:N", title="reader", sort=None),
            y=alt.Y("from:N", title="writer", sort=None),
            color=alt.Color(f"{value}:Q", title="z", scale=theme.magnitude()),
            tooltip=["from:N", "to:N", alt.Tooltip(f"{value}:Q", format=".1f")],
        )
    )
    return theme.themed(cells.properties(width=240, height=240), title, subtitle)


def planted_bars(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Planted channels: z of the right component, of the runner-up, and of the whole matrices.

    Means over seeds; the rules are one standard deviation of the seeds to each side, not an interval of the mean.
    """
    rows = study_rows("planted_bars", frame, experiments=["planted"], metrics=["top z", "second z", "whole z"])
    data = rows.groupby(["case", "metric"])["value"].agg(["mean", "std"]).reset_index()
    data = data.assign(low=data["mean"] - data["std"], high=data["mean"] + data["std"])
    data["what"] = data["metric"].map(
        {"top z": "best component", "second z": "second component", "whole z": "whole matrices"}
    )
    order = ["best component", "second component", "whole matrices"]
    base = alt.Chart(data).encode(
        y=alt.Y("case:N", title=None, axis=alt.Axis(labelLimit=260)),
        yOffset=alt.YOffset("what:N", sort=order),
    )
    ink = alt.Color("what:N", title=None, sort=order, scale=theme.categories(order))
    bars = base.mark_bar().encode(x=alt.X("mean:Q", title="z-score (mean ± standard deviation over seeds)"), color=ink)
    rule = base.mark_rule(color=theme.INK).encode(x="low:Q", x2="high:Q")
    return theme.layered(bars, rule, title=title, subtitle=subtitle).properties(width=330)


def _by_model(view: str, frame: pd.DataFrame, part: str, metric: str) -> pd.DataFrame:
    """The rows of one measurement, with a column ``model``."""
    names = {f"{kind}{part}": name for kind, name in MODELS.items()}
    rows = study_rows(view, frame, experiments=list(names), metrics=[metric])
    return rows.assign(model=rows["experiment"].map(names))


def length_curve(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Accuracy over the length of the list, with Wilson intervals, one line a model."""
    import pandas as pd

    from workbench.statistics import wilson

    rows = _by_model("length_curve", frame, "list", "correct")
    lines = [
        {"model": model, "size": size} | wilson(int(group.sum()), len(group))._asdict()
        for (model, size), group in rows.groupby(["model", "x"])["value"]
    ]
    return line_with_band(
        pd.DataFrame(lines), "size", "effect", low="low", high="high", colour="model", order=list(MODELS.values()),
        x_title="things in the list", zero=True, y_title="share right", title=title, subtitle=subtitle, width=330,
        height=200,
    )  # fmt: skip


def look_bars(
    frame: pd.DataFrame, *, kind: str = "", last: bool = False, top: int = 8, title: str = "", subtitle: str = ""
) -> alt.Chart:
    """Where heads look from the last position: the ``top`` ones that look most at the remaining thing's entry.

    ``kind``: of :data:`MODELS`; ``last``: of the last layer only.
    """
    one_of("look_bars", "kind", kind, tuple(MODELS))
    rows = study_rows("look_bars", frame, experiments=[f"{kind}list"], metrics=["looks at"])
    rows = rows[rows["x"] == rows["x"].max()] if last else rows
    data = rows.groupby(["case", "unit"])["value"].mean().reset_index()
    best = data[data["unit"] == PARTS[0]].nlargest(top, "value")["case"].tolist()
    shown = data[data["case"].isin(best)].assign(order=data["unit"].map({part: i for i, part in enumerate(PARTS)}))
    bars = (
        alt.Chart(shown)
        .mark_bar(height=14)
        .encode(
            y=alt.Y("case:N", title="head", sort=best),
            x=alt.X("value:Q", title="attention from the last position", stack="zero", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("unit:N", title="to", sort=list(PARTS), scale=theme.categories(list(PARTS))),
            order="order:Q",
            tooltip=["case:N", "unit:N", alt.Tooltip("value:Q", format=".2f")],
        )
    )
    return theme.themed(bars.properties(width=330, height=alt.Step(22)), title, subtitle)


def damage_strip(frame: pd.DataFrame, *, title: str = "", subtitle: str = "") -> alt.Chart:
    """Loss of log-probability for each removed component: the top ones beside random ones."""
    rows = _by_model("damage_strip", frame, "removed", "damage")
    rows = rows.assign(place=rows["model"] + ", " + rows["case"])
    order = [f"{model}, {case}" for model in MODELS.values() for case in ("top", "random")]
    ticks = (
        alt.Chart(rows)
        .mark_tick(thickness=2, size=18)
        .encode(
            x=alt.X("value:Q", title="log-probability lost (nats)"),
            y=alt.Y("place:N", title=None, sort=[at for at in order if at in set(rows["place"])]),
            color=alt.Color("case:N", legend=None, scale=theme.categories(["top", "random"])),
            tooltip=["place:N", "unit:N", alt.Tooltip("value:Q", format=".4f"),
                     alt.Tooltip("x:Q", title="z", format=".1f")],
        )
    )  # fmt: skip
    return theme.themed(ticks.properties(width=330, height=alt.Step(26)), title, subtitle)


def paper_figure(live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None) -> alt.Chart:
    """Planted channels, lists and removals of the live run (else the recorded one), and accuracy gained by steering."""
    shown, whose = (live, "live run") if live is not None and len(live) else (recorded, "recorded run")
    rows: list[Any] = []
    if shown is not None and len(shown):
        parts = set(shown["experiment"])
        panels = [planted_bars(shown, title=f"Planted channels ({whose})")] if "planted" in parts else []
        if parts & {f"{kind}list" for kind in MODELS}:
            panels.append(length_curve(shown, title="What is left of a list?"))
        if parts & {f"{kind}removed" for kind in MODELS}:
            panels.append(damage_strip(shown, title="Components removed, one at a time"))
        panels += [look_bars(shown, kind=kind, last=bool(kind), top=6, title=f"Where heads look ({name})")
                   for kind, name in MODELS.items() if f"{kind}list" in parts]  # fmt: skip
        rows = [theme.beside(*panels[at : at + 2]) for at in range(0, len(panels), 2)]
    dots = paper_recorded_live(
        gains(live), _reported(reported), gains(recorded), item="item", unit="accuracy gained (share)",
        title="Steering the embedded model", width=330, row_height=40,
    )  # fmt: skip
    note = [
        "The paper: GPT-2 small. Here: a model of 7 million weights, and two of 57,000 that see nothing but lists;",
        "from the answer's place the small ones look at what was taken, not at what is left: they subtract.",
    ]
    return theme.below(*rows, dots, title="Channels between heads", subtitle=note)


def gains(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """Accuracy gained at the best point (tried on other prompts), in the channels and in the random spaces."""
    import pandas as pd

    from workbench.statistics import of_differences

    if frame is None or not len(frame):
        return None
    rows = frame[(frame["experiment"] == "steered") & frame["metric"].str.startswith("accuracy")]
    rows = rows.assign(kind=rows["case"].where(rows["case"] == "channels", "random spaces"))
    keys = [key for key in ("seed", "case", "unit") if key in rows]
    lines = []
    for kind, group in rows.groupby("kind"):
        wide = group.pivot_table(index=keys, columns="metric", values="value").dropna()
        found = of_differences(wide["accuracy at best point"] - wide["accuracy before"])
        lines.append({"item": f"gained, {kind}", "value": found.effect, "low": found.low, "high": found.high})
    return pd.DataFrame(lines)


def _reported(reported: pd.DataFrame | None) -> pd.DataFrame | None:
    if reported is None or not len(reported):
        return None
    rows = reported[reported["metric"] == "accuracy gained"]
    return rows.assign(item="gained, GPT-2 (often more than)")
