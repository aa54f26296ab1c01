"""Runs a table: every case raced in this process, judged by the ceilings of the same run, optionally recorded."""

from __future__ import annotations

import gc
import math
import time
import warnings
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import checks, provenance
from workbench.bench.base import BENCHES, CEILINGS, Bench, Case, Contender
from workbench.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from workbench.studies.base import Progress

#: The columns after those that name a case; ``failure`` says why a contender has no numbers.
COLUMNS = (
    *("item", "ours", "median_ms", "q25_ms", "q75_ms", "launches", "rate", "unit", "error"),
    *("to_best_peer", "to_ceiling", "ceiling", "sm_mhz", "version", "failure"),
)


def run(
    name: str,
    *,
    device: str | None = None,
    quick: bool = False,
    record: bool = False,
    minutes: float | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Race every case of the table ``name`` and return one row a case and contender.

    Args:
        name: a name in ``BENCHES``: "attention", "decode", ...
        device: "cpu", "cuda", "cuda:1"; the GPU if there is one.
        quick: few points, about 20 s on a GPU.
        record: write the rows with their provenance to ``datasets/recorded/bench-<name>.csv``.
        minutes: no case is begun after so many of them, on any device; None leaves it to the table (``limit_s``).
        progress: bars; on stderr by default.

    Returns:
        The columns that name a case, then ``COLUMNS``: rate in ``unit`` (work / median), error against float32 or
        float64, to_best_peer = best peer's median / this median (above 1: faster than every peer), to_ceiling = rate /
        ceiling, sm_mhz = clock under a load of matrix products (NaN without nvidia-smi). Tables that measure them have
        tokens_per_s and extra_gb (most memory that one call takes beyond its inputs, results included; NaN on a CPU).

    Raises:
        UnknownName: no such table. BadInput: a device that is not there, minutes that are not above 0. StorageError:
            nothing could be recorded.
    """
    import pandas as pd

    from workbench.studies import record as recording
    from workbench.studies.base import Progress

    table = BENCHES.get(name)
    device = checks.device("auto" if device is None else device, auto=True)
    limit_s = _limit_s(table, device, minutes)
    if record:
        recording.check()
    progress = progress or Progress(f"bench {name}")
    start = time.perf_counter()
    limits = _limits(device)
    rows: list[dict[str, Any]] = []
    for case in progress(table.cases(device, quick), "cases"):
        rows += _case(case, device, limits)
        seconds = time.perf_counter() - start
        if record:  # after every case: what was measured stays, whatever happens to the next one
            write(table, pd.DataFrame(rows), device, quick, seconds)
        if seconds > limit_s:
            progress.say(f"stopped after {seconds:.0f} s; {len(rows)} rows")
            break
    return pd.DataFrame(rows)


def _limit_s(table: Bench, device: str, minutes: float | None) -> float:
    if minutes is None:
        return math.inf if device == "cpu" else table.limit_s
    if isinstance(minutes, bool) or not isinstance(minutes, Real) or not minutes > 0:
        raise BadInput(f"minutes must be a number above 0, got {minutes!r}; leave it out for the table's own limit")
    return 60 * minutes


def _limits(device: str) -> dict[str, Any]:
    """Ceilings, and the clock under the load of matrix products."""
    from workbench.systems import timing

    clock = timing.clocks(timing.products(device), device) if device != "cpu" else {}
    return {**timing.ceilings(device), "sm_mhz": clock.get("sm_mhz", math.nan)}


def _case(case: Case, device: str, limits: dict[str, Any]) -> list[dict[str, Any]]:
    from workbench.systems import timing

    calls = {name: contender.run for name, contender in case.contenders.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns at length before it says in an error what a back end cannot do
        times = timing.race(calls, device=device, launches=case.launches, budget_s=case.budget_s)
    measured: list[dict[str, Any]] = [
        dict(zip(timing.COLUMNS, row)) for row in times[list(timing.COLUMNS)].itertuples(index=False)
    ]
    peers = [t["median_ms"] for t in measured if not case.contenders[t["item"]].ours and t["launches"]]
    rows = [_row(case, time, min(peers, default=math.nan), limits, device) for time in measured]
    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
    return rows


def _row(case: Case, time: dict[str, Any], best_peer: float, limits: dict[str, Any], device: str) -> dict[str, Any]:
    contender = case.contenders[time["item"]]
    rate = case.work / (time["median_ms"] * 1e-3) / 1e12
    ceiling = limits[CEILINGS[case.unit]]
    error, failure = (math.nan, time["error"]) if time["error"] else _error(case, contender.run)
    return {
        **case.place,
        **{"item": time["item"], "ours": contender.ours},
        **_more(case, contender, time, device),
        **{name: time[name] for name in ("median_ms", "q25_ms", "q75_ms", "launches")},
        **{"rate": rate, "unit": case.unit, "error": error},
        **{"to_best_peer": best_peer / time["median_ms"], "to_ceiling": rate / ceiling, "ceiling": ceiling},
        **{"sm_mhz": limits["sm_mhz"], "version": contender.version, "failure": failure},
    }


def _more(case: Case, contender: Contender, time: dict[str, Any], device: str) -> dict[str, float]:
    """tokens_per_s of a case that counts tokens, extra_gb of a contender whose memory can be measured."""
    found: dict[str, float] = {}
    if tokens := case.place.get("tokens"):
        found["tokens_per_s"] = tokens / (time["median_ms"] * 1e-3)
    if contender.plain is not None:
        found["extra_gb"] = math.nan if device == "cpu" or time["error"] else _extra_gb(contender.plain, device)
    return found


def _extra_gb(call: Any, device: str) -> float:
    import torch

    from workbench.models.meter import peak_bytes

    try:
        return round(peak_bytes(call, torch.device(device)) / 1e9, 3)
    except torch.OutOfMemoryError:  # it ran in the memory of its graph, and there is no second room for it
        return math.nan


def _error(case: Case, call: Any) -> tuple[float, str]:
    """A check that fails (for want of memory, say) must not cost the measured times."""
    from workbench.systems.timing import one_line

    if case.check is None:
        return math.nan, ""
    try:
        return case.check(call()), ""
    except Exception as error:
        return math.nan, f"unchecked: {one_line(error)}"


def write(table: Bench, frame: pd.DataFrame, device: str, quick: bool, seconds: float) -> Path:
    """Replace this scale's rows of ``datasets/recorded/bench-<name>.csv``; a CPU run is a scale of its own."""
    from workbench.studies import record as recording
    from workbench.studies.cells import Finished

    slug, scale = f"bench-{table.name}", scale_name(device, quick)
    source = provenance.collect(slug, scale, 0, device, seconds)
    return recording.write(slug, scale, [Finished(frame.assign(seed=0), source)], kept=None)


def scale_name(device: str, quick: bool) -> str:
    """ "full" and "quick" on a GPU, "full cpu" and "quick cpu" elsewhere: one never replaces the other."""
    return ("quick" if quick else "full") + (" cpu" if device == "cpu" else "")
