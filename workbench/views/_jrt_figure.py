"""The figure of the study of Just read twice: its rows made ready for the pictures, paper beside recorded and live."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.statistics import t_interval
from workbench.views import theme
from workbench.views.just_read_twice import PANELS, language_models, order_curves, prefill_curves, prompt_gains

if TYPE_CHECKING:
    import pandas as pd

#: Pairs of sets count when the larger one has at least so many elements, as in the study's claims.
LARGE = 64
#: Models of Table 1 that are drawn.
DRAWN = ("Transformer++ 1.3B/50B", "Mamba 1.3B/50B", "Based 1.3B/50B", "GLA 2.7B/100B", "Mamba 130M", "Mamba-2 2.7B")
TABLE_1, TABLE_5 = "Table 1: JRT-Prompt, zero-shot", "Table 5: prefill latency (H100, batch 16)"
TASK, OURS = "paper: average of six tasks", "ours: notes about strangers"


def paper_figure(
    live: pd.DataFrame | None,
    reported: pd.DataFrame | None,
    recorded: pd.DataFrame | None,
    language: pd.DataFrame | None = None,
) -> alt.Chart:
    """Figure 2 of the live and the recorded run, prompts beside Table 1, prefill beside Table 5, language models."""
    rows: list[Any] = []
    for frame, name in ((recorded, "recorded run"), (live, "live run")):
        orders = _none_or(orders_of, frame)
        if orders is not None:
            rows.append(order_curves(orders, title=f"Set disjointness, {name}: which set comes first?"))
    gains = _gains(live, reported, recorded)
    if gains is not None:
        rows.append(prompt_gains(gains, title="JRT-Prompt: the same prompt once and twice"))
    speed = [
        chart for chart in (_paper_times(reported), _times(recorded, "recorded run"), _times(live, "live run")) if chart
    ]
    if speed:
        rows.append(theme.beside(*speed))
    if language is not None:
        rows.append(language_models(language))
    note = [
        "Whiskers: 95 % (over training seeds, else over test sequences). Dashed: chance. The paper's Figure 2 gives no",
        "numbers; its Table 1 is of language models of 0.13 to 2.8 billion weights on other tasks: compare directions.",
    ]
    asked = "Does order cost memory, and does reading twice, or without order, give it back?"
    return theme.below(*rows, title=asked, subtitle=note)


def _none_or(make: Any, frame: pd.DataFrame | None) -> pd.DataFrame | None:
    return None if frame is None or not len(frame) else make(frame)


def orders_of(frame: pd.DataFrame) -> pd.DataFrame | None:
    """Rows for ``order_curves`` from the study's experiment "sets"; None where it holds none."""
    import pandas as pd

    rows = frame[(frame["experiment"] == "sets") & (frame["metric"] == "accuracy")].copy()
    if rows.empty:
        return None
    rows["small"], rows["large"] = rows[["first", "second"]].min(axis=1), rows[["first", "second"]].max(axis=1)
    rows = rows[rows["large"] >= LARGE]
    if rows.empty:
        return None
    rows["panel"] = (rows["first"] < rows["second"]).map({True: PANELS[0], False: PANELS[1]})
    rows["variance"] = rows["value"] * (1 - rows["value"]) / rows["n"]
    rows["chance"] = 1 / rows["small"]
    keys = ["item", "x", "unit", "panel"]
    means = rows.groupby(keys).agg(
        value=("value", "mean"), variance=("variance", "mean"), pairs=("value", "size"), chance=("chance", "mean")
    )
    means["variance"] /= means.pop("pairs")
    wide = means[["value", "variance"]].unstack("panel")
    gap = pd.DataFrame(
        {
            "value": wide["value"][PANELS[0]] - wide["value"][PANELS[1]],
            "variance": wide["variance"][PANELS[0]] + wide["variance"][PANELS[1]],
        }
    )
    gap = gap.assign(panel=PANELS[2], chance=float("nan")).set_index("panel", append=True)
    lines = [
        {"mode": mode, "bytes": size, "panel": panel, **_interval(group), "chance": group["chance"].mean()}
        for (mode, size, panel), group in pd.concat([means, gap]).groupby(level=["item", "x", "panel"])
    ]
    found = pd.DataFrame(lines)
    shares = found["panel"] != PANELS[2]
    found.loc[shares, ["low", "high"]] = found.loc[shares, ["low", "high"]].clip(0, 1)
    return found


def _interval(units: pd.DataFrame) -> dict[str, float]:
    """Over training seeds where there are several, else by the binomial error of the test."""
    if len(units) > 1:
        found = t_interval(units["value"].to_numpy())
        return {"value": found.effect, "low": found.low, "high": found.high, "runs": len(units)}
    value, half = float(units["value"].iloc[0]), 1.96 * math.sqrt(float(units["variance"].iloc[0]))
    return {"value": value, "low": value - half, "high": value + half, "runs": 1}


def _gains(
    live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
) -> pd.DataFrame | None:
    import pandas as pd

    found = [_none_or(_paper_gains, reported)]
    for frame, source in ((recorded, "recorded"), (live, "live")):
        own = _none_or(prompt_table, frame)
        found.append(None if own is None else own.assign(source=source))
    parts = [part for part in found if part is not None and len(part)]
    return pd.concat(parts, ignore_index=True) if parts else None


def _paper_gains(reported: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = reported[(reported["table"] == TABLE_1) & (reported["metric"] == "average")].set_index("item")["value"]
    lines = [
        {"item": name, "task": TASK, "default": rows[f"{name}, default"], "repeated": rows[f"{name}, repeated"]}
        for name in DRAWN
        if f"{name}, default" in rows and f"{name}, repeated" in rows
    ]
    return pd.DataFrame(lines, columns=["item", "task", "default", "repeated"]).assign(source="paper")


def prompt_table(frame: pd.DataFrame) -> pd.DataFrame | None:
    """Percent right, once and twice, for every model that was asked; None where none was."""
    rows = frame[(frame["experiment"] == "prompt") & (frame["metric"] == "correct")]
    if rows.empty:
        return None
    table = 100 * rows.groupby(["item", "x"])["value"].mean().unstack("x")
    table = table.rename(columns={1.0: "default", 2.0: "repeated"}).dropna().reset_index()
    return table.assign(task=OURS)[["item", "task", "default", "repeated"]]


def _times(frame: pd.DataFrame | None, name: str) -> Any:

    if frame is None or not len(frame):
        return None
    rows = frame[(frame["experiment"] == "prefill") & frame["metric"].isin(["ms", "q25", "q75"])]
    if rows.empty:
        return None
    table = rows.pivot_table(index=["item", "x"], columns="metric", values="value").reset_index()
    table = table.rename(columns={"item": "contender", "x": "length", "q25": "low", "q75": "high"})
    columns: pd.DataFrame = table[["contender", "length", "ms", "low", "high"]]
    return prefill_curves(columns, title=f"Prefill, {name}", subtitle="batch 4, 16 heads, f = 16, d = 64, bfloat16")


def _paper_times(reported: pd.DataFrame | None) -> Any:
    if reported is None or not len(reported):
        return None
    rows = reported[reported["table"] == TABLE_5].copy()
    if rows.empty:
        return None
    rows["length"] = rows["metric"].str.extract(r"(\d+)")[0].astype(float)
    rows = rows.rename(columns={"item": "contender", "value": "ms"})
    rows = rows.assign(low=rows["ms"], high=rows["ms"])[["contender", "length", "ms", "low", "high"]]
    return prefill_curves(rows, title="Prefill, paper", subtitle="Table 5: H100, batch 16")
