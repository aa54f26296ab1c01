"""The race of kernels on a card: speeds over length, share of the ceiling, training speeds beside the paper's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import one_of

if TYPE_CHECKING:
    import pandas as pd

#: Contenders in the order of the legend, ours in colour, peers in other shades.
CONTENDERS = {
    "standard": "#4D4D4D",
    "triton-v1": "#E69F00",
    "triton (heads grid)": "#8A6D00",
    "triton": "#56B4E9",
    "hopper": "#0072B2",
    "SDPA flash": "#009E73",
    "SDPA cuDNN": "#CC79A7",
    "flex": "#D55E00",
}
STAGES = ("forward", "backward", "forward+backward")


def speeds(
    live: pd.DataFrame | None,
    reported: pd.DataFrame | None = None,
    recorded: pd.DataFrame | None = None,
    *,
    stage: str = "forward",
) -> alt.Chart:
    """Figs. 4 to 7: TFLOP/s over length, a line a contender, panels head dimension x mask.

    ``live`` and ``recorded`` are study frames (experiment "GPU", metric "speed"); ``reported`` adds the published
    FlashAttention-3 and Triton tutorial speeds of an H100 to the full-mask panel of d = 128. The dashed line is the
    matrix product that the recorded (else the live) run reached.
    """
    import pandas as pd

    one_of("speeds", "stage", stage, STAGES)
    runs = {"recorded": recorded, "live": live}
    found = pd.concat([_speed_rows(frame, stage).assign(source=name) for name, frame in runs.items()])
    if found.empty:
        raise BadInput(f"speeds: no run holds speeds of stage {stage!r}; they need a CUDA device")
    dims = sorted(found.d.unique())
    found = _with_published(found, reported) if stage == "forward" else found
    ceiling = next((x for x in map(_ceiling, runs.values()) if x is not None), None)
    panels = [
        [_panel(found[(found.d == d) & (found.input == mask)], d, mask, ceiling) for mask in ("full", "causal")]
        for d in dims
    ]
    grid = alt.vconcat(*(alt.hconcat(*line, spacing=24) for line in panels), spacing=20)
    words = "16k tokens, heads x d = 2048, bf16; dashed: the matrix product in the same run"
    return theme.themed(grid.resolve_scale(color="shared", strokeDash="shared"), f"Speed, {stage}", words)


def _speed_rows(run: pd.DataFrame | None, stage: str) -> pd.DataFrame:
    import pandas as pd

    if run is None or run.empty or "experiment" not in run or "stage" not in run:
        return pd.DataFrame(columns=["item", "n", "d", "input", "value", "note"])
    rows = run[(run.experiment == "GPU") & (run.metric == "speed") & (run.stage == stage)]
    rows = rows.assign(note=rows.note.fillna("") if "note" in rows else "")
    return rows.groupby(["item", "n", "d", "input"], as_index=False).agg(
        value=("value", "median"), note=("note", "first")
    )


def _ceiling(run: pd.DataFrame | None) -> float | None:
    if run is None or run.empty or "experiment" not in run:
        return None
    found = run[(run.experiment == "ceiling") & (run.metric == "matmul")].value
    return float(found.median()) if len(found) else None


def _with_published(found: pd.DataFrame, reported: pd.DataFrame | None) -> pd.DataFrame:
    import pandas as pd

    if reported is None or reported.empty:
        return found
    rows = reported[reported.table == "H100, d = 128, full"]
    if rows.empty:
        return found
    names = rows["item"].str.extract(r"^(?P<item>.*), N=(?P<n>\d+)$")
    extra = {"item": names["item"], "n": names["n"].astype(float), "value": rows.value, "note": rows.source}
    return pd.concat(
        [found, pd.DataFrame(extra).assign(d=128, input="full", source="published, H100")], ignore_index=True
    )


PUBLISHED = {"FlashAttention-3": "#5f6b7a", "Triton tutorial": "#b8860b"}


def _panel(rows: pd.DataFrame, d: float, mask: str, ceiling: float | None) -> alt.Chart:
    names = {**CONTENDERS, **PUBLISHED}
    colour = alt.Scale(domain=list(names), range=list(names.values()))
    lengths = sorted(rows.n.unique())
    base = alt.Chart(rows).encode(
        x=alt.X("n:Q", title="sequence length N", scale=alt.Scale(type="log", base=2), axis=alt.Axis(values=lengths)),
        y=alt.Y("value:Q", title="TFLOP/s", scale=alt.Scale(zero=True)),
        color=alt.Color("item:N", title=None, scale=colour, sort=list(names)),
        tooltip=["item:N", "n:Q", alt.Tooltip("value:Q", title="TFLOP/s", format=".0f"), "source:N", "note:N"],
    )
    dash = alt.Scale(domain=list(_DASHES), range=list(_DASHES.values()))
    layers: list[Any] = [
        base.mark_line().encode(strokeDash=alt.StrokeDash("source:N", title=None, scale=dash)),
        base.mark_point(filled=True, size=40, opacity=1),
    ]
    if ceiling is not None:
        rule = alt.Chart(alt.InlineData([{"value": ceiling}])).mark_rule(strokeDash=[6, 4], color=theme.MUTED)
        layers.append(rule.encode(y="value:Q"))
    return alt.layer(*layers).properties(width=270, height=190, title=f"d = {d:g}, {mask}")


_DASHES = {"recorded": [1, 0], "live": [6, 3], "published, H100": [2, 3]}


def share_of_ceiling(run: pd.DataFrame | None, *, n: int = 16384, stage: str = "forward") -> alt.Chart:
    """Bars at one length: TFLOP/s of every contender with its share of the matrix product reached in the same run."""
    one_of("share_of_ceiling", "stage", stage, STAGES)
    rows = _speed_rows(run, stage)
    found = rows[rows.n == n]
    ceiling = _ceiling(run)
    if found.empty or ceiling is None:
        raise BadInput(f"share_of_ceiling: no speeds at N = {n}, stage {stage!r}, with a ceiling in the run")
    found = found.assign(share=found.value / ceiling, d=found.d.map("d = {:g}".format))
    names = [name for name in CONTENDERS if name in set(found["item"])]
    base = alt.Chart(found).encode(
        y=alt.Y("item:N", title=None, sort=names, axis=alt.Axis(labelColor=theme.INK, labelLimit=160)),
        x=alt.X("value:Q", title="TFLOP/s", scale=alt.Scale(domain=[0, 1.12 * ceiling]), axis=alt.Axis(grid=True)),
        tooltip=["item:N", alt.Tooltip("value:Q", format=".0f"), alt.Tooltip("share:Q", format=".0%"), "note:N"],
    )
    colours = alt.Scale(domain=names, range=[CONTENDERS[name] for name in names])
    bars = base.mark_bar().encode(color=alt.Color("item:N", scale=colours, legend=None))
    text = base.mark_text(align="left", dx=4, color=theme.MUTED).encode(text=alt.Text("share:Q", format=".0%"))
    panel = alt.layer(bars, text).properties(width=250, height=alt.Step(18))
    chart = panel.facet(
        row=alt.Row("d:N", title=None), column=alt.Column("input:N", title=None, sort=["full", "causal"])
    )
    words = f"N = {n:,}; percentages: of the {ceiling:.0f} TFLOP/s that a matrix product reached in the same run"
    return theme.themed(chart, f"Share of the ceiling, {stage}", words)


def end_to_end(run: pd.DataFrame | None) -> pd.DataFrame:
    """Training speed of the stack of GPT blocks: item, n, value (TFLOP/s by the Megatron formula)."""
    if run is None or run.empty or "experiment" not in run:
        raise BadInput("end_to_end: no run was given")
    rows = run[(run.experiment == "end to end") & (run.metric == "speed")]
    if rows.empty:
        raise BadInput("end_to_end: the run holds no training steps (experiment 'end to end')")
    return rows.groupby(["item", "n"], as_index=False)[["value"]].median()


def training(
    live: pd.DataFrame | None, reported: pd.DataFrame | None = None, recorded: pd.DataFrame | None = None
) -> alt.Chart:
    """Table 1: training speed relative to standard attention at 2k and 8k, ours beside the paper's (1.3 B, A100)."""
    rows = [*_relative_paper(reported), *_relative_here(recorded, "recorded"), *_relative_here(live, "live")]
    if not rows:
        raise BadInput("training: neither a run nor the paper's Table 1 was given, so there is nothing to draw")
    colour = {"FlashAttention": "#E69F00", "FlashAttention-2": "#0072B2"}
    colour |= {name + end: tone for end in ("", ", live") for name, tone in CONTENDERS.items()}
    names = list(dict.fromkeys(row["item"] for row in rows))
    colours = [colour[name] for name in names]
    sources = ["paper", "recorded", "live"]
    base = alt.Chart(alt.InlineData(rows)).encode(
        y=alt.Y("item:N", title=None, sort=names, axis=alt.Axis(labelColor=theme.INK, labelLimit=160)),
        x=alt.X("gain:Q", title="training speed / that of standard attention", axis=alt.Axis(grid=True)),
        tooltip=["item:N", "where:N", "length:N", alt.Tooltip("gain:Q", format=".2f"), "speed:Q"],
    )
    bars = base.mark_bar().encode(
        color=alt.Color("item:N", scale=alt.Scale(domain=names, range=colours), legend=None),
        opacity=alt.Opacity("where:N", title=None, scale=alt.Scale(domain=sources, range=[0.4, 1, 0.75])),
    )
    text = base.mark_text(align="left", dx=4).encode(text=alt.Text("gain:Q", format=".2f"))
    panel = alt.layer(bars, text).properties(width=250, height=alt.Step(17))
    chart = panel.facet(column=alt.Column("length:N", title="tokens in a sequence", sort=["2k", "8k"]))
    return theme.themed(chart, "Training end to end (Table 1)", "pale: the paper's GPT3-1.3B on A100s")


def _relative_here(run: pd.DataFrame | None, source: str) -> list[dict[str, Any]]:
    try:
        found = end_to_end(run)
    except BadInput:
        return []
    standard = found[found["item"] == "standard"].set_index("n").value
    kept = found[(found["item"] != "standard") & found.n.isin(standard.index)]
    return [
        {
            "item": row["item"] + (", live" if source == "live" else ""),
            "where": source,
            "length": f"{row['n'] / 1024:g}k",
            "speed": row["value"],
        }
        | {"gain": row["value"] / float(standard[row["n"]])}
        for row in kept.to_dict("records")
    ]


def _relative_paper(reported: pd.DataFrame | None) -> list[dict[str, Any]]:
    if reported is None or reported.empty:
        return []
    rows = reported[(reported.table == "Table 1") & (reported.metric == "training speed")]
    values = rows.set_index("item").value
    found = []
    for length in ("2k", "8k"):
        for name in ("FlashAttention", "FlashAttention-2"):
            speed = float(values[f"GPT3-1.3B {length}, {name}"])
            gain = speed / float(values[f"GPT3-1.3B {length}, without FlashAttention"])
            found.append({"item": name, "where": "paper", "length": length, "gain": gain, "speed": speed})
    return found
