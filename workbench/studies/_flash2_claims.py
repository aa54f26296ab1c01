"""FlashAttention-2's claims: A1 to A7 are inequalities of the paper and its card, M1 to M4 test the models behind them.

Where a claim speaks of every shape, the interval shown is smallest to largest over the shapes: it holds only if it
holds at each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench import statistics
from workbench.statistics import Interval
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

V1, V2, HEADS = "triton-v1", "triton", "triton (heads grid)"
NEEDS_GPU = "needs a CUDA device: workbench run flash-attention-2 --scale full"


# -- exactness --------------------------------------------------------------------------------------------------------


def same_in_either_order(frame: pd.DataFrame) -> Outcome:
    """A1: largest |out_v1 - out_v2| in float32."""
    gaps = frame[frame.metric == "order gap"].value
    return Outcome.over_all(
        gaps, 1e-6, "<=", "float32, absolute; ragged tiles, shared key heads, Nq != Nk, causal and full"
    )


def exact(frame: pd.DataFrame) -> Outcome:
    """A1b: out, LSE and gradients of float32 loops and kernels against float64, relative to the largest entry."""
    rows = frame[(frame.experiment == "E5") & (frame.metric == "error")]
    kernels = sorted(name for name in rows["item"].unique() if name.startswith("triton"))
    missing = frame[(frame.experiment == "E5") & (frame.metric == "no number")]
    told = f"with {' and '.join(kernels)} in Triton's interpreter" if kernels else "loops in torch alone"
    if len(missing):
        told += f"; no number from {', '.join(sorted(missing['item'].unique()))}: {missing.note.iloc[0]}"
    return Outcome.over_all(rows.value, 1e-5, "<=", told)


def exact_on_the_card(frame: pd.DataFrame) -> Outcome:
    """A1c: error of each kernel / error of standard attention in the same half precision, a value a tensor."""
    rows = frame[(frame.experiment == "GPU error") & (frame.metric == "error")]
    if rows.empty:
        return Outcome.unmeasured(NEEDS_GPU)
    table = wide(rows, ["d", "input", "tensor", "seed"], "item")
    ours = [name for name in (V1, HEADS, V2, "hopper") if name in table]
    if "standard" not in table or not ours:
        return Outcome.unmeasured("standard attention or our kernels have no error")
    ratios = table[ours].div(table["standard"], axis=0)
    note = "; ".join(f"{name} {ratios[name].mean():.2f}" for name in ours)
    return Outcome.of(statistics.bootstrap(ratios.stack()), 1.1, "<=", f"mean by kernel: {note}")


# -- speed on the card ------------------------------------------------------------------------------------------------


def times(frame: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds on the card: one line a (d, mask, n, stage), one column a contender; "both" = forward + backward."""
    import pandas as pd

    rows = frame[(frame.experiment == "GPU") & (frame.metric == "time")]
    if rows.empty:
        return pd.DataFrame()
    table = wide(rows, ["stage", "d", "input", "n", "seed"], "item")
    both = table.loc["forward"] + table.loc["backward"] if "backward" in table.index.get_level_values(0) else None
    return table if both is None else pd.concat([table, pd.concat({"both": both}, names=["stage"])])


def wide(rows: pd.DataFrame, index: list[str], columns: str) -> pd.DataFrame:
    present = [name for name in index if name in rows]
    return rows.pivot_table(index=present, columns=columns, values="value")


def _ratios(frame: pd.DataFrame, slow: str, fast: str, where: str) -> Any:
    """Time of ``slow`` / time of ``fast`` in the lines that ``where`` (a query over the index) selects."""
    table = times(frame)
    if table.empty or slow not in table or fast not in table:
        return []
    kept = table.query(where)
    return (kept[slow] / kept[fast]).dropna()


def beats_first_version(frame: pd.DataFrame) -> Outcome:
    """A2: time of the v1 order / time of the v2 order at N >= 2k, each pass and mask."""
    ratios = _ratios(frame, V1, V2, "n >= 2048 and stage != 'both'")
    return Outcome.over_all(ratios, 1.3, ">=", _by_length(ratios) or NEEDS_GPU)


def _by_length(ratios: Any) -> str:
    if not len(ratios):
        return ""
    means = ratios.groupby("n").median().rename(int)
    return "median by length: " + ", ".join(f"{n}: {value:.2f}" for n, value in means.items())


def grid_matters(frame: pd.DataFrame) -> Outcome:
    """A3: time of the grid over heads / over heads x rows with batch x heads = 16, N = 16k."""
    return _grids(frame, "n == n.max()", 2.0, ">=", absolute=False)


def grid_does_not_matter(frame: pd.DataFrame) -> Outcome:
    """A3b: |ratio - 1| of the same two with batch x heads >= 4 x SMs."""
    return _grids(frame, "batch == batch.max()", 0.1, "<", absolute=True)


def _grids(frame: pd.DataFrame, where: str, threshold: float, direction: str, *, absolute: bool) -> Outcome:
    rows = frame[(frame.experiment == "GPU grids") & (frame.metric == "time")]
    if rows.empty:
        return Outcome.unmeasured(NEEDS_GPU)
    rows = rows.query(where)
    table = wide(rows, ["repeat", "seed"], "item")
    if HEADS not in table or V2 not in table or len(table) < 2:
        return Outcome.unmeasured("one of the two grids has no time")
    ratio = table[HEADS] / table[V2]
    first = rows.iloc[0]
    note = f"batch x heads = {first.batch * first.heads:g}, N = {first.n:g}; heads / rows = {ratio.mean():.2f}"
    return Outcome.of(statistics.bootstrap((ratio - 1).abs() if absolute else ratio), threshold, direction, note)


def causal_skips(frame: pd.DataFrame) -> Outcome:
    """A4: time with a causal mask / without, N >= 8k, our Triton kernel of FlashAttention-2's order."""
    table = times(frame)
    if table.empty:
        return Outcome.unmeasured(NEEDS_GPU)
    kept = table.query("n >= 8192 and stage != 'both'")
    if set(kept.index.get_level_values("input")) != {"causal", "full"}:
        return Outcome.unmeasured("no length of 8k or more was timed with and without the mask")
    ratio: Any = kept.xs("causal", level="input") / kept.xs("full", level="input")
    medians = ratio.median(axis=0).dropna()
    note = "; ".join(f"{name} {value:.2f}" for name, value in medians.items())
    return Outcome.over_all(ratio[V2].dropna() if V2 in ratio else [], 0.62, "<=", f"median by contender: {note}")


def beats_standard(frame: pd.DataFrame) -> Outcome:
    """A5: standard / v2, forward and backward together, N >= 2k (as far as standard attention was run)."""
    ratios = _ratios(frame, "standard", V2, "n >= 2048 and stage == 'both'")
    return Outcome.over_all(ratios, 3.0, ">=", _by_length(ratios) or NEEDS_GPU)


def near_sdpa(frame: pd.DataFrame) -> Outcome:
    """A6: SDPA flash / our Triton kernel (times, so speed ratio), forward, d = 128, N >= 4k."""
    ratios = _ratios(frame, "SDPA flash", V2, "n >= 4096 and stage == 'forward' and d == 128")
    return Outcome.over_all(ratios, 0.9, ">=", _by_length(ratios) or NEEDS_GPU)


def triton_speed(frame: pd.DataFrame) -> Outcome:
    """A6b: TFLOP/s of our Triton forward, d = 128, N >= 4k."""
    return _speed(frame, V2, 400.0)


def hopper_speed(frame: pd.DataFrame) -> Outcome:
    """A6c: TFLOP/s of our Hopper forward, d = 128, N >= 4k."""
    return _speed(frame, "hopper", 550.0)


def _speed(frame: pd.DataFrame, item: str, least: float) -> Outcome:
    rows = frame[(frame.experiment == "GPU") & (frame.metric == "speed")]
    rows = rows[(rows["item"] == item) & (rows.stage == "forward")] if len(rows) else rows
    rows = rows[(rows.d == 128) & (rows.n >= 4096)] if len(rows) else rows
    if rows.empty:
        return Outcome.unmeasured(NEEDS_GPU)
    ceiling = frame[(frame.experiment == "ceiling") & (frame.metric == "matmul")].value
    told = f"; matrix product in the same run {ceiling.iloc[0]:.0f}" if len(ceiling) else ""
    means = rows.groupby("input").value.median()
    note = "median " + ", ".join(f"{mask} {value:.0f}" for mask, value in means.items()) + " TFLOP/s" + told
    return Outcome.over_all(rows.value, least, ">=", note)


def end_to_end(frame: pd.DataFrame) -> Outcome:
    """A7: (gain at 8k) / (gain at 2k) in training speed over standard attention, a value a kernel, all kernels.

    FlashAttention-2's in the paper's Table 1: 3.06 / 1.38 = 2.2 (1.3B).
    """
    rows = frame[(frame.experiment == "end to end") & (frame.metric == "time")]
    table = wide(rows, ["n"], "item") if len(rows) else rows
    if not len(table) or "standard" not in table or V2 not in table or len(table.dropna(subset=["standard", V2])) < 2:
        return Outcome.unmeasured(NEEDS_GPU)
    gains = {name: table["standard"] / table[name] for name in table if name != "standard"}
    note = "; ".join(f"{name} {gain.iloc[0]:.2f} and {gain.iloc[-1]:.2f}" for name, gain in gains.items())
    growth = [gain.iloc[-1] / gain.iloc[0] for gain in gains.values() if gain.notna().all()]
    return Outcome.over_all(growth, 1.0, ">", f"standard / kernel at the shorter and the longer length: {note}")


# -- the models -------------------------------------------------------------------------------------------------------


def workers(frame: pd.DataFrame) -> Outcome:
    """A3c: one head, two workers: time with a task a head / with a task a row block, a value a repeat."""
    rows = frame[(frame.experiment == "E6") & (frame.metric == "time")]
    if rows.empty:
        return Outcome.unmeasured("no timed tasks")
    table = wide(rows, ["heads", "repeat", "seed"], "item")
    ratio = table["heads"] / table["heads x rows"]
    means = ratio.groupby("heads").median()
    note = "median by heads: " + ", ".join(f"{heads:g}: {value:.2f}" for heads, value in means.items())
    return Outcome.of(statistics.bootstrap(ratio.xs(1, level="heads")), 1.5, ">=", note)


def counters(frame: pd.DataFrame) -> Outcome:
    """M1: executed operations and shared-memory bytes that differ from their closed forms."""
    rows = frame[frame.experiment.isin(["E1", "E4"]) & frame.metric.isin(["counted", "formula"])]
    if rows.empty:
        return Outcome.unmeasured("nothing was counted")
    keys = [name for name in ("experiment", "item", "rows", "cols", "d", "warps", "part") if name in rows]
    pairs = rows.assign(**{name: rows[name].astype(object).where(rows[name].notna(), "-") for name in keys})
    table = wide(pairs, keys, "metric")  # what an experiment has no column for must not be NaN: its rows would vanish
    if not {"counted", "formula"} <= set(table):
        return Outcome.unmeasured("nothing was counted that has a closed form")
    wrong = int((table["counted"] != table["formula"]).sum())
    return Outcome.of(Interval(wrong, wrong, wrong, len(table)), 0, "<=", f"of {len(table)} counts")


def fewer_operations(frame: pd.DataFrame) -> Outcome:
    """M1b: time of a v1 tile / v2 tile on an A100 by the model, 128 x 128 and 128 x 64 tiles."""
    rows = frame[(frame.experiment == "arithmetic") & (frame.metric == "gain") & (frame.card == "A100")]
    rows = rows[rows.rows == 128].drop_duplicates(["rows", "cols", "d"]) if len(rows) else rows
    note = "; ".join(f"{r.rows:g} x {r.cols:g}, d = {r.d:g}: {r.value:.3f}" for r in rows.itertuples())
    return Outcome.over_all(rows.value, 1.07, ">=", note or "no model rows")


def knee_of_the_first_grid(frame: pd.DataFrame) -> Outcome:
    """M2: utilisation of the grid over heads at the last number of heads below 80 and at 80, on 108 SMs."""
    rows = frame[(frame.experiment == "E2") & (frame["item"] == "heads") & (frame.metric == "utilisation")]
    rows = rows[rows.sms == 108] if len(rows) else rows
    if rows.empty:
        return Outcome.unmeasured("no wave model")
    enough = rows[rows.heads.between(80, 108)].value
    knees = frame[frame.metric == "knee"].drop_duplicates("sms").set_index("sms").value
    below = rows[rows.heads < 80].value.max()
    needs = ", ".join(f"{count:g} on {sms:g} SMs" for sms, count in knees.items())
    note = f"busiest below 80: {below:.2f}; the same share needs {needs}"
    return Outcome.over_all(enough, float(below), ">", note)


def longest_first(frame: pd.DataFrame) -> Outcome:
    """M3: makespan in launch order / longest first, causal, between one and four programs an SM."""
    rows = frame[(frame.experiment == "E3") & (frame.metric == "makespan")]
    if rows.empty:
        return Outcome.unmeasured("no schedules")
    table = wide(rows, ["sms", "heads", "n"], "item")
    ratio = table["launch"] / table["longest-first"]
    others = "; ".join(f"{name} {(table['launch'] / table[name]).mean():.2f}" for name in ("reversed", "persistent"))
    note = f"smallest {ratio.min():.2f}; launch order against {others}"
    return Outcome.of(statistics.bootstrap(ratio), 1.1, ">=", note)


def less_shared_memory(frame: pd.DataFrame) -> Outcome:
    """M4: bytes through shared memory, split-Q / split-K, everything counted."""
    rows = frame[(frame.experiment == "E4") & (frame.metric == "counted")]
    if rows.empty:
        return Outcome.unmeasured("nothing was counted")
    total = rows.groupby(["rows", "cols", "d", "warps", "item"]).value.sum().unstack("item")
    keys = rows[rows.part == "keys"].groupby("item").value.sum()
    note = f"although K_j and V_j are read {keys['split-Q'] / keys['split-K']:.1f} times as often"
    return Outcome.over_all(total["split-Q"] / total["split-K"], 1.0, "<", note)


def _claim(key: str, statement: str, where: str, test: Any, *scales: str) -> Claim:
    return Claim(key, statement, f"arXiv 2307.08691, {where}", test, scales or ("quick", "full"))


CLAIMS = (
    _claim("A1", "both loop orders give one output: |v1 - v2| <= 1e-6", "Sec. 3.1", same_in_either_order),
    _claim("A1b", "out, LSE, dQ, dK, dV match float64 within 1e-5 (float32)", "Sec. 3.1", exact),
    _claim(
        "A1c", "on the card, error <= 1.1 x that of standard attention in bf16", "Sec. 3.1", exact_on_the_card, "full"
    ),
    _claim("A2", "N >= 2k: time(v1 order) / time(v2) >= 1.3", "Sec. 4.1", beats_first_version, "full"),
    _claim("A3", "16 heads in all, N = 16k: grid over heads / over rows >= 2", "Sec. 3.2", grid_matters, "full"),
    _claim("A3b", "batch x heads >= 4 SMs: the two grids differ by < 10 %", "Sec. 3.2", grid_does_not_matter, "full"),
    _claim("A3c", "on two processor cores, one head: tasks of rows >= 1.5 x faster", "Sec. 3.2", workers),
    _claim("A4", "N >= 8k: time(causal) <= 0.62 time(full)", "Sec. 3.1", causal_skips, "full"),
    _claim("A5", "N >= 2k, forward and backward: v2 >= 3 x standard", "Sec. 4.1", beats_standard, "full"),
    _claim("A6", "forward, d = 128, N >= 4k: Triton >= 0.9 x SDPA flash", "Sec. 4.1", near_sdpa, "full"),
    _claim("A6b", "there, Triton reaches 400 TFLOP/s", "this project's goal", triton_speed, "full"),
    _claim("A6c", "there, the Hopper kernel reaches 550 TFLOP/s", "this project's goal", hopper_speed, "full"),
    _claim("A7", "training: the gain over standard grows from 2k to 8k", "Table 1", end_to_end, "full"),
    _claim("M1", "operations and bytes executed equal the closed forms", "Sec. 3.1, 3.3", counters),
    _claim("M1b", "fewer other operations alone are worth >= 7 % of a tile", "Sec. 3.1", fewer_operations),
    _claim("M2", "one program a head fills 108 SMs badly below batch x heads = 80", "Sec. 3.2", knee_of_the_first_grid),
    _claim("M3", "causal, < 4 programs an SM: longest first >= 10 % faster", "Sec. 3.2", longest_first),
    _claim("M4", "split-Q moves fewer bytes through shared memory than split-K", "Sec. 3.3", less_shared_memory),
)
