"""vAttention's claims V1 to V6 as tests on the study's frame."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from workbench import statistics
from workbench.statistics import HOLDS, INCONCLUSIVE, NOT_REPRODUCED, Interval
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "arXiv 2405.04437"
#: Bytes a second of new pages that the paper's models need at most; the factor the claim asks for.
REQUIRED_GB_S, TIMES = 0.75, 5.0
#: Waste, most first.
ORDER = ("static", "2 MB groups", "64 KB groups", "paged-16")
RATIO = (1.15, 1.35)


def _values(frame: pd.DataFrame, experiment: str, metric: str, **where: object) -> pd.DataFrame:
    rows = frame[(frame.experiment == experiment) & (frame.metric == metric)]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def _keys(frame: pd.DataFrame) -> list[str]:
    return [name for name in ("seed", "repeat") if name in frame]


def same_logits(frame: pd.DataFrame) -> Outcome:
    """V1: prompts whose logits differ in any bit from an ordinary cache's, over all allocators and page sizes."""
    rows = _values(frame, "E1", "max difference")
    bits = _values(frame, "E5", "same bits")
    if not len(rows):
        return Outcome.unmeasured("no logits were compared")
    wrong = int((rows.value > 0).sum() + (bits.value < 1).sum())
    n = len(rows) + len(bits)
    note = f"{len(rows)} decoded prompts, largest difference {rows.value.max():g}"
    note += f"; {len(bits)} kernels on mapped tensors of the GPU" if len(bits) else ""
    return Outcome(HOLDS if not wrong else NOT_REPRODUCED, wrong / n, wrong / n, wrong / n, n, note)


def waste_order(frame: pd.DataFrame) -> Outcome:
    """V2: waste of a request falls strictly along ``ORDER``, at every seed and trace; effect: the smallest step, MB."""
    rows = _values(frame, "E2", "waste a request")
    wide = rows.pivot_table(index=[*_keys(rows), "trace"], columns="item", values="value")
    if not set(ORDER) <= set(wide):
        return Outcome.unmeasured("not every policy ran")
    steps = [wide[a] - wide[b] for a, b in pairwise(ORDER)]
    least = statistics.bootstrap(np.min(steps, axis=0)) if len(wide) > 1 else None
    if least is None:
        return Outcome.unmeasured("one run gives no interval")
    note = ", ".join(f"{name} {wide[name].mean():.2f} MB" for name in ORDER)
    wrong = sum(int((step <= 0).sum()) for step in steps)
    return Outcome(HOLDS if not wrong else NOT_REPRODUCED, *least, note=f"{note}; {wrong} runs out of order")


def batch_order(frame: pd.DataFrame) -> Outcome:
    """V2b: the largest batch grows in the reverse order, at every seed and trace; effect: the smallest ratio."""
    rows = _values(frame, "E2", "max batch")
    wide = rows.pivot_table(index=[*_keys(rows), "trace"], columns="item", values="value")
    if not set(ORDER) <= set(wide) or len(wide) < 2:
        return Outcome.unmeasured("not every policy ran at least twice")
    ratios = np.min([wide[b] / wide[a] for a, b in pairwise(ORDER)], axis=0)
    note = ", ".join(f"{name} {wide[name].mean():.0f}" for name in ORDER)
    return Outcome.of(statistics.bootstrap(ratios), 1.0, ">=", note)


def batch_ratio(frame: pd.DataFrame) -> Outcome:
    """V2c: largest batch of 64 KB over that of 2 MB groups at about 4k tokens a request lies in ``RATIO``."""
    rows = _values(frame, "E2", "max batch", trace="four-thousand")
    wide = rows.pivot_table(index=_keys(rows), columns="item", values="value")
    if not {"64 KB groups", "2 MB groups"} <= set(wide) or len(wide) < 2:
        return Outcome.unmeasured("both page sizes must run at least twice")
    found = statistics.bootstrap(wide["64 KB groups"] / wide["2 MB groups"])
    inside = RATIO[0] <= found.low and found.high <= RATIO[1]
    outside = found.high < RATIO[0] or found.low > RATIO[1]
    note = f"paper 240/187 = 1.28; ours {wide['64 KB groups'].mean():.0f}/{wide['2 MB groups'].mean():.0f}"
    verdict = HOLDS if inside else NOT_REPRODUCED if outside else INCONCLUSIVE
    return Outcome(verdict, *found, note, threshold=240 / 187)


def _ratio(frame: pd.DataFrame, stage: str, over: str, under: str) -> Interval | None:
    rows = _values(frame, "E5", "time", stage=stage).dropna(subset=["value"])
    wide = rows.pivot_table(index=[*_keys(rows), "batch", "context"], columns="item", values="value")
    if not {over, under} <= set(wide) or len(wide.dropna(subset=[over, under])) < 2:
        return None
    return statistics.bootstrap((wide[over] / wide[under]).dropna())


def prefill_table_costs(frame: pd.DataFrame) -> Outcome:
    """V3: prefill time with a table of 16-token blocks over the contiguous time, same kernel source."""
    found = _ratio(frame, "prefill", "paged-16", "contiguous")
    if found is None:
        return Outcome.unmeasured("no prefill was timed (needs a GPU)")
    return Outcome.of(found, 1.0, ">=", "paper: 1.24 to 1.26 end to end, kernels up to 1.37 to 1.42")


def prefill_virtual_is_free(frame: pd.DataFrame) -> Outcome:
    """V3b: prefill over mapped slots takes at most 2 % more than over a contiguous cache."""
    found = _ratio(frame, "prefill", "vAttention", "contiguous")
    return Outcome.of(found, 1.02, "<=") if found else Outcome.unmeasured("no prefill was timed (needs a GPU)")


def decode_within(frame: pd.DataFrame) -> Outcome:
    """V3c: decode over mapped slots and with a table of 16 are within 10 % of each other."""
    found = _ratio(frame, "decode", "paged-16", "vAttention")
    if found is None:
        return Outcome.unmeasured("no decode was timed (needs a GPU)")
    inside, outside = found.low >= 0.9 and found.high <= 1.1, found.high < 0.9 or found.low > 1.1
    verdict = HOLDS if inside else NOT_REPRODUCED if outside else INCONCLUSIVE
    return Outcome(verdict, *found, "paged-16 over vAttention", threshold=1.0)


def hidden_by_counts(frame: pd.DataFrame) -> Outcome:
    """V4: groups that running requests had to wait for: none with look-ahead, some without."""
    rows = _values(frame, "E3", "late maps")
    late = rows.groupby("item").value.sum()
    if not {"sync", "async"} <= set(late.index):
        return Outcome.unmeasured("no steps were counted")
    n = int((rows["item"] == "async").sum())
    note = f"sync {late['sync']:.0f} groups in {n} steps, async {late['async']:.0f}"
    verdict = HOLDS if late["async"] == 0 < late["sync"] else NOT_REPRODUCED
    share = float(late["async"] / max(late["sync"], 1))
    return Outcome(verdict, share, share, share, n, note)


def hidden_by_time(frame: pd.DataFrame) -> Outcome:
    """V4b: 99th percentile of the decode steps' time with look-ahead over that without any allocation, bootstrapped.

    Steps with new prompts are left out, as in the paper's figure: a prompt's pages are mapped in its step by design.
    """
    rows = _values(frame, "E3", "step time", stage="decode")
    times = {str(name): group.value.to_numpy()[5:] for name, group in rows.groupby("item")}
    if not {"async", "no allocation", "sync"} <= set(times):
        return Outcome.unmeasured("no steps were timed")
    rng = np.random.default_rng(0)

    def p99(values: np.ndarray) -> np.ndarray:
        return np.quantile(rng.choice(values, (2000, len(values))), 0.99, axis=1)

    ratios = p99(times["async"]) / p99(times["no allocation"])
    effect = float(np.quantile(times["async"], 0.99) / np.quantile(times["no allocation"], 0.99))
    low, high = (float(x) for x in np.quantile(ratios, [0.025, 0.975]))
    note = ", ".join(f"{name} p99 {np.quantile(values, 0.99):.2f} ms" for name, values in times.items())
    return Outcome.of(Interval(effect, min(low, effect), max(high, effect), len(times["async"])), 1.1, "<=", note)


def deferred_reclamation(frame: pd.DataFrame) -> Outcome:
    """V5: map calls without deferred reclamation over those with it, the same requests."""
    rows = _values(frame, "E3", "map calls")
    keys = [name for name in ("seed",) if name in rows]
    wide = rows.assign(all=0).pivot_table(index=[*keys, "all"], columns="item", values="value")
    if not {"sync", "sync, not deferred"} <= set(wide):
        return Outcome.unmeasured("no calls were counted")
    ratios = (wide["sync, not deferred"] / wide["sync"]).to_numpy()
    found = Interval(float(ratios.mean()), float(ratios.min()), float(ratios.max()), len(ratios))
    note = (
        f"{wide['sync, not deferred'].mean():.0f} calls at once, {wide['sync'].mean():.0f} deferred (counts are exact)"
    )
    return Outcome.of(found, 2.0, ">=", note)


def enough_bandwidth(frame: pd.DataFrame) -> Outcome:
    """V6: bandwidth of creating and mapping 2 MB groups with the driver; the requirement is that of GPUs as well."""
    rows = _values(frame, "E4", "bandwidth", item="cuda")
    if len(rows) < 2:
        return Outcome.unmeasured("no CUDA mapping was timed (needs a GPU)")
    note = f"the paper's models need {REQUIRED_GB_S} GB/s at most"
    return Outcome.of(statistics.bootstrap(rows.value), REQUIRED_GB_S * TIMES, ">=", note)


_TESTED = (
    ("V1", "Logits equal those of an ordinary cache to the last bit; kernels need no change", same_logits),
    ("V2", "Waste of a request: static > 2 MB > 64 KB > paged-16, at every seed", waste_order),
    ("V2b", "Largest batch in the reverse order", batch_order),
    ("V2c", "Largest batch with 64 KB over 2 MB groups at about 4k tokens: 1.15 to 1.35", batch_ratio),
    ("V3", "Prefill: a block table costs time (paged-16 / contiguous >= 1, one kernel source)", prefill_table_costs),
    ("V3b", "Prefill over mapped memory costs nothing (at most 1.02 of contiguous)", prefill_virtual_is_free),
    ("V3c", "Decode: vAttention and paged-16 within 10 %", decode_within),
    ("V4", "Look-ahead hides allocation: no running request waits for a page (counts)", hidden_by_counts),
    ("V4b", "p99 time of decode steps with look-ahead at most 1.1 of that without allocation", hidden_by_time),
    ("V5", "Deferred reclamation halves the map calls under churn", deferred_reclamation),
    ("V6", "Allocation bandwidth at least 5 times the requirement", enough_bandwidth),
)
#: What needs a GPU. V6 too: its requirement is what a GPU decodes, which a CPU's page faults are not to be held to.
NEEDS_FULL = ("V3", "V3b", "V3c", "V4b", "V6")
CLAIMS = tuple(
    Claim(key, says, SOURCE, test, ("full",) if key in NEEDS_FULL else ("quick", "full")) for key, says, test in _TESTED
)
