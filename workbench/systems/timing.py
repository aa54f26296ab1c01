"""How long things take: a race of contenders in one process, the machine's own ceilings beside it, and its clocks.

A time means something only against a peer and a ceiling of the same run, so contenders take turns launch by launch: a
clock that drifts, or another process that wakes up, meets all of them alike.
"""

from __future__ import annotations

import gc
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from workbench import checks
from workbench.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

Contender = Callable[[], Any]

COLUMNS = ("item", "median_ms", "q25_ms", "q75_ms", "launches", "error")
#: Several times the 50 MB second-level cache of a data-centre GPU.
FLUSH_BYTES = 256 << 20
#: Fewer launches than this give no quartiles worth printing; a budget never goes below it.
FEWEST_LAUNCHES = 3
#: Most flushes that one launch is given as a head start on the queue.
_MOST_FLUSHES = 16


def race(
    contenders: Mapping[str, Contender],
    *,
    device: str | torch.device,
    warmup: int = 10,
    launches: int = 50,
    flush_l2: bool = True,
    budget_s: float | None = None,
) -> pd.DataFrame:
    """Time every contender, taking turns in rounds whose order alternates.

    Args:
        contenders: name -> a call without arguments. What it returns is dropped.
        device: where the contenders compute. CUDA: events around each launch; a CPU: the wall clock.
        warmup: launches before the first timed one (the first of them compiles).
        launches: timed launches of each contender.
        flush_l2: on CUDA, read 256 MB before each launch, so that inputs come from memory. The flush also gives
            the queue a head start: as many as it takes to hide the time Python needs to launch the contender.
        budget_s: seconds for the warm-up after the first launch and the timed launches of all contenders together,
            in equal shares. One whose launches do not fit its share sits out some rounds, but has at least 3. The
            first launch (compilation) does not count.

    Returns:
        One row a contender in the order given: item, median_ms, q25_ms, q75_ms, launches, error. A contender that
        raises has its error's text instead of numbers (NaN, 0 launches); the others go on.

    Raises:
        BadInput: no contender, counts below 1, a budget that is not positive, or a CUDA device that is not there.
    """
    _check(contenders, warmup, launches, budget_s)
    clock = _clock(torch.device(device), flush_l2)
    entries = [_Entry(name, run) for name, run in contenders.items()]
    with _no_collection():
        for entry in entries:
            entry.attempt(_first, entry, clock)
        share = budget_s and budget_s / len(entries)
        for entry in entries:
            entry.attempt(_warm_up, entry, clock, warmup - 1, share and share / 4)
        for entry in entries:
            entry.turns = _turns(entry, launches, share and share * 3 / 4)
        for turn in range(launches):
            for entry in entries if turn % 2 == 0 else reversed(entries):
                if entry.is_on(turn, launches):
                    entry.attempt(_sample, entry, clock)
        clock.wait()
    return _table(entries)


class _Entry:
    """One contender, what it took so far, and the error that put it out of the race."""

    def __init__(self, name: str, run: Contender):
        self.name, self.run = name, run
        self.samples: list[Callable[[], float]] = []
        self.error = ""
        self.seconds = 0.0  # of one launch, flush included
        self.head_start = 1
        self.turns = 0

    def is_on(self, turn: int, rounds: int) -> bool:
        """Its turns, spread evenly over the rounds."""
        return (turn + 1) * self.turns // rounds > turn * self.turns // rounds

    def attempt(self, step: Callable[..., object], *arguments: Any) -> None:
        if self.error:
            return
        try:
            step(*arguments)
        except Exception as error:
            self.error = one_line(error)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class _Clock(Protocol):
    def sample(self, run: Contender, head_start: int) -> Callable[[], float]:
        """Launch once; the returned call gives the milliseconds it took, after :meth:`wait`."""

    def head_start(self, run: Contender) -> int:
        """How many flushes hide the time of launching ``run``."""

    def wait(self) -> None:
        """Until everything launched has finished."""


class _WallClock:
    def sample(self, run: Contender, head_start: int) -> Callable[[], float]:
        start = time.perf_counter()
        run()
        took = (time.perf_counter() - start) * 1e3
        return lambda: took

    def head_start(self, run: Contender) -> int:
        return 1

    def wait(self) -> None:
        return


class _CudaClock:
    """Events on the current stream of one device."""

    def __init__(self, device: torch.device, flush: bool):
        self.device = device
        self.buffer = torch.zeros(FLUSH_BYTES // 4 if flush else 0, device=device)
        self.dropped = torch.empty((), device=device)

    def sample(self, run: Contender, head_start: int) -> Callable[[], float]:
        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(head_start if len(self.buffer) else 0):
                self.flush()
            start.record()
            run()
            end.record()
        return lambda: start.elapsed_time(end)

    def flush(self) -> None:
        """Read, not write: written lines would be moved to memory while the contender runs, at its expense."""
        torch.sum(self.buffer, 0, out=self.dropped)

    def head_start(self, run: Contender) -> int:
        """A launch on an empty queue, in units of a flush (about 0.1 ms)."""
        if not len(self.buffer):
            return 1
        launch = self._launch_ms(run)
        flush = self.sample(self.flush, 1)
        self.wait()
        return max(1, min(_MOST_FLUSHES, math.ceil(launch / max(flush(), 1e-3))))

    def _launch_ms(self, run: Contender) -> float:
        self.wait()
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)


def _clock(device: torch.device, flush: bool) -> _Clock:
    if device.type == "cpu":
        return _WallClock()
    if device.type != "cuda":
        raise BadInput(f"a race runs on a cpu or a cuda device, got {device}")
    return _CudaClock(torch.device(checks.device(device)), flush)


def _first(entry: _Entry, clock: _Clock) -> None:
    """Compile and settle: whatever goes wrong asynchronously is charged to this contender."""
    entry.run()
    clock.wait()
    entry.head_start = clock.head_start(entry.run)


def _warm_up(entry: _Entry, clock: _Clock, launches: int, budget: float | None) -> None:
    if budget is not None:
        launches = max(launches, 1)  # one is needed to know how many fit
    start = time.perf_counter()
    done = 0
    while done < launches:
        clock.sample(entry.run, entry.head_start)
        done += 1
        if budget is None:
            continue
        clock.wait()
        if time.perf_counter() - start > budget:
            break
    clock.wait()
    entry.seconds = (time.perf_counter() - start) / max(done, 1)


def _sample(entry: _Entry, clock: _Clock) -> None:
    entry.samples.append(clock.sample(entry.run, entry.head_start))


def _turns(entry: _Entry, launches: int, share: float | None) -> int:
    """The launches asked for, or as many as fit into a contender's share of the budget."""
    if share is None or entry.seconds == 0:
        return launches
    return min(launches, max(FEWEST_LAUNCHES, int(share / entry.seconds)))


def _table(entries: list[_Entry]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([_row(entry) for entry in entries], columns=list(COLUMNS))


def _row(entry: _Entry) -> dict[str, Any]:
    if entry.error or not entry.samples:
        nothing = dict.fromkeys(("median_ms", "q25_ms", "q75_ms"), math.nan)
        return {"item": entry.name, **nothing, "launches": 0, "error": entry.error}
    times = [sample() for sample in entry.samples]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    numbers = {"median_ms": middle, "q25_ms": low, "q75_ms": high, "launches": len(times)}
    return {"item": entry.name, **numbers, "error": ""}


def one_line(error: BaseException, most: int = 200) -> str:
    """An error as a table cell can hold it: its kind and the first line of its text."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    whole = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return whole if len(whole) <= most else f"{whole[: most - 1]}…"


def _check(contenders: Mapping[str, Contender], warmup: int, launches: int, budget_s: float | None) -> None:
    if not contenders:
        raise BadInput("a race needs at least one contender: a mapping of names to calls without arguments")
    for name, run in contenders.items():
        if not callable(run):
            raise BadInput(f"contender {name!r} must be a call without arguments, got {type(run).__name__}")
    for name, count in (("warmup", warmup), ("launches", launches)):
        if count < 1:
            raise BadInput(f"{name} must be at least 1, got {count}")
    if budget_s is not None and not budget_s > 0:
        raise BadInput(f"budget_s must be greater than 0 seconds, or None for no limit, got {budget_s}")


@contextmanager
def _no_collection() -> Iterator[None]:
    """The garbage collector's pauses would be charged to whoever runs at that moment."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def ceilings(device: str | torch.device) -> dict[str, Any]:
    """What this device reaches on the two plainest jobs, now: the unit in which kernels are judged.

    A bfloat16 8192 x 8192 x 8192 matrix product and a device copy on CUDA; a float32 product of 768 and a copy of
    64 MB on a CPU. Random data: zeros draw less power and look faster.

    Returns:
        matmul_tflops, copy_tb_s (bytes read + written, 10^12 a second), and what was measured: matmul_size,
        matmul_dtype, copy_bytes (of one side).
    """
    place = torch.device(device)
    gpu = place.type == "cuda"
    size, dtype, copied = (8192, torch.bfloat16, 1 << 30) if gpu else (768, torch.float32, 64 << 20)
    _clock(place, flush=False)  # a device that is not there is an error before anything is allocated
    a, b = (torch.randn(size, size, device=place, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.randint(-128, 127, (copied,), dtype=torch.int8, device=place)
    target = torch.empty_like(source)
    table = race(
        {"matmul": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)},
        device=place,
        warmup=5,
        launches=30,
        flush_l2=False,
    ).set_index("item")
    seconds = table["median_ms"] / 1e3
    return {
        "matmul_tflops": 2 * size**3 / float(seconds["matmul"]) / 1e12,
        "copy_tb_s": 2 * copied / float(seconds["copy"]) / 1e12,
        "matmul_size": size,
        "matmul_dtype": str(dtype).removeprefix("torch."),
        "copy_bytes": copied,
    }


def seconds_of(call: Contender, device: str | torch.device) -> float:
    """What one call costs: on a GPU the wall clock until it has finished, on a CPU processor time of all threads.

    For how a cost grows, where each call takes its own time; other processes must not decide that. To compare
    implementations use :func:`race`.
    """
    if torch.device(device).type == "cpu":
        begun = time.process_time()
        call()
        return time.process_time() - begun
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begun


#: nvidia-smi's field -> ours.
_CLOCK_FIELDS = {
    "clocks.sm": "sm_mhz",
    "clocks.max.sm": "sm_max_mhz",
    "clocks.mem": "memory_mhz",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
}


#: nvidia-smi answers within a second or two, on a host of eight GPUs as well.
_SMI_S = 20.0


def clocks(busy: Contender | None = None, device: str | torch.device = "cuda") -> dict[str, float]:
    """Clocks, power and temperature of a GPU, read only; empty where nvidia-smi is not there.

    ``busy`` (some milliseconds of work, and it waits for it) is launched again and again until the answer is there: an
    idle card clocks down within milliseconds, and its idle clock says nothing about a race. nvidia-smi knows nothing of
    CUDA_VISIBLE_DEVICES, so the card is named by its UUID.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(_CLOCK_FIELDS)}", "--format=csv,noheader,nounits"]
    command += [f"--id={name}" for name in [_uuid(device)] if name]
    try:
        asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return {}
    with asked:
        end = time.monotonic() + _SMI_S
        while busy is not None and asked.poll() is None and time.monotonic() < end:
            busy()
        try:
            told, _ = asked.communicate(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            asked.kill()
            return {}
    lines = told.strip().splitlines() if not asked.returncode else []
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    return {ours: float(value) for ours, value in zip(_CLOCK_FIELDS.values(), values) if _is_number(value)}


def _uuid(device: str | torch.device) -> str | None:
    """As nvidia-smi writes it; None where torch sees no GPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if torch.cuda.is_available() else None


def products(device: str | torch.device) -> Contender:
    """A call that keeps a GPU at matrix products for about 50 ms and waits for them; see :func:`clocks`."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    product = torch.empty_like(a)

    def work() -> None:
        for _ in range(30):
            torch.mm(a, a, out=product)
        torch.cuda.synchronize(device)

    return work


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
