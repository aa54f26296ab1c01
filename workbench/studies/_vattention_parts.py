"""What vAttention's study measures on any device: exactness, a server in simulation, step times, mapping bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.studies.base import Progress

if TYPE_CHECKING:
    import torch

    from workbench.systems.kv_virtual import VirtualKV

Row = dict[str, Any]
#: How requests come and go in the step-time experiment.
MODES = ("no allocation", "sync", "async", "sync, not deferred")


def guarded(experiment: str, part: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a part up to what stopped it, which is then a row of its own."""
    from workbench.systems.timing import one_line

    try:
        yield from part()
    except Exception as error:
        yield {"experiment": experiment, "metric": "failed", "value": 1.0, "unit": "yes or no", "note": one_line(error)}


# -- E1: the same logits ----------------------------------------------------------------------------------------------


def exactness(settings: Mapping[str, Any], seed: int, progress: Progress) -> Iterator[Row]:
    """Every prompt decoded through an ordinary cache and through each allocator: are all logits the same bits?

    Prompts arrive one by one into one shared memory and leave it when they are done, so slots and pages are re-used.
    """
    from workbench.models import load

    loaded = load(settings["model"], device=settings["device"])
    prompts = _prompts(loaded, settings["prompts"], seed)
    for item, make in _caches(settings).items():
        memory = make().bind(loaded.model)
        for index, ids in enumerate(progress(prompts, f"logits, {item}")):
            memory.reset()
            worst, same = _compare(loaded.model, memory, ids, settings["new_tokens"])
            place = {"experiment": "E1", "item": item, "repeat": index}
            yield {**place, "metric": "max difference", "value": worst, "unit": "logit"}
            yield {**place, "metric": "same tokens", "value": float(same), "unit": "yes or no"}
        memory.close()


def _caches(settings: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    from workbench.memory.cache.paged import PagedCache
    from workbench.memory.cache.vattention import VAttentionCache

    def virtual(kib: int, mega: bool = False) -> Callable[[], Any]:
        return lambda: VAttentionCache(page_kib=kib, megacache=mega, max_batch=32, max_tokens=4096)

    groups = settings["group_kib"]
    found = {f"{kib} KB groups": virtual(kib) for kib in groups}
    return {**found, f"{groups[-1]} KB groups, mega-cache": virtual(groups[-1], True), "paged-16": PagedCache}


def _prompts(loaded: Any, count: int, seed: int) -> list[torch.Tensor]:
    """Random token ids of random lengths: allocation and addressing do not care what is said."""
    import torch

    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 200, count)
    drawn = [rng.integers(10, loaded.vocab_size, (1, n)) for n in lengths]
    return [torch.from_numpy(ids).to(loaded.device) for ids in drawn]


def _compare(model: Any, memory: Any, ids: torch.Tensor, new_tokens: int) -> tuple[float, bool]:
    """Largest difference of any logit, and whether greedy tokens agree."""
    import torch
    from transformers import DynamicCache

    from workbench.memory.cache._hooks import cache_word

    ordinary, worst, same = DynamicCache(config=model.config), 0.0, True
    with torch.no_grad():
        for _ in range(new_tokens):
            expected = model(input_ids=ids, **{cache_word(model): ordinary}).logits
            found = memory.write(ids)
            difference = float((expected - found).abs().max())
            worst = max(worst, difference if difference == difference else float("inf"))  # max() would pass NaN over
            ids = expected[:, -1:].argmax(-1)
            same &= torch.equal(ids, found[:, -1:].argmax(-1))
    return worst, same


# -- E2: a server in simulation ---------------------------------------------------------------------------------------


def served(settings: Mapping[str, Any], seed: int, progress: Progress, call_seconds: float = 0.0) -> Iterator[Row]:
    """The trace under every policy: waste, batch, makespan, mapping calls; the first repeat also over time."""
    from workbench.systems import serving
    from workbench_datasets import request_traces

    model = serving.MODELS[settings["shape"]]
    chosen = serving.policies(model, settings["reserved_tokens"])
    plan = [(trace, repeat, p) for trace in settings["traces"] for repeat in range(settings["repeats"]) for p in chosen]
    for trace, repeat, name in progress(plan, "simulated server"):
        requests = request_traces.draw(trace, settings["requests"], 1000 * seed + repeat, rate=settings["rate"])
        timing = serving.StepTime(call=call_seconds)
        found = serving.Server(requests, chosen[name], model, settings["memory"], step_time=timing).run()
        place = {"experiment": "E2", "trace": trace, "source": requests.attrs["source"], "item": name, "repeat": repeat}
        batch = found.mean("batch")
        context = found.mean("used") / batch / model.token_bytes
        formula = serving.closed_form(model, chosen[name], settings["memory"], context)
        values = {
            ("max batch", "requests"): found.max_batch,
            ("mean batch", "requests"): batch,
            ("waste a request", "MB"): found.mean("waste") / batch / 1e6,
            ("waste share", "of held"): found.mean("waste") / (found.mean("waste") + found.mean("used")),
            ("closed-form batch", "requests"): formula,
            ("mean context", "tokens"): context,
            ("makespan", "s"): found.makespan,
            ("map calls", "calls"): found.map_calls,
            ("preempted", "requests"): found.preempted,
        }
        for (metric, unit), value in values.items():
            yield {**place, "metric": metric, "value": float(value), "unit": unit}
        if repeat == 0:
            yield from _over_time(found.steps, place)


def _over_time(steps: Any, place: Row, points: int = 40) -> Iterator[Row]:
    """Used, wasted, cached and free bytes at even times, in GB."""
    at = np.linspace(0, float(steps["time"].iloc[-1]), points)
    rows = np.minimum(np.searchsorted(steps["time"].to_numpy(), at), len(steps) - 1)
    for metric in ("used", "waste", "cached", "free"):
        for second, row in zip(at, rows):
            yield {
                **place,
                "metric": metric,
                "step": float(second),
                "value": float(steps[metric].iloc[row]) / 1e9,
                "unit": "GB",
            }


# -- E3: step times with the real back end ----------------------------------------------------------------------------


def step_times(settings: Mapping[str, Any], seed: int, progress: Progress, work: Callable[[], Any]) -> Iterator[Row]:
    """Requests come, grow and go; every step maps what it needs and then computes ``work``. See ``MODES``."""
    for mode in progress(MODES, "step times"):
        yield from _one_mode(mode, settings, seed, work)


def _one_mode(mode: str, settings: Mapping[str, Any], seed: int, work: Callable[[], Any]) -> Iterator[Row]:
    with open_memory(settings, deferred=mode != "sync, not deferred") as kv:
        churn = Churn(kv, settings, seed)
        if mode == "no allocation":
            map_everything(kv, churn.most)
        before = dict(kv.backend.calls.count)
        for step in range(settings["steps"]):
            churn.come_and_go()
            was = kv.log.counts["map sync"], kv.log.counts["map async"], kv.backend.calls.count["unmap"]
            events = len(kv.log.events)
            start = time.perf_counter()
            (kv.step_async if mode == "async" else kv.step)(churn.lengths)
            work()
            took = (time.perf_counter() - start) * 1e3
            late = _late(kv, events, churn.running)
            stage = "prompts" if churn.came else "decode"
            place = {"experiment": "E3", "item": mode, "step": step, "stage": stage}
            yield {**place, "metric": "step time", "value": took, "unit": "ms"}
            yield {
                **place,
                "metric": "maps in the step",
                "value": float(kv.log.counts["map sync"] - was[0]),
                "unit": "calls",
            }
            yield {**place, "metric": "late maps", "value": float(late), "unit": "calls"}
        kv.wait()
        calls = kv.backend.calls.count
        for name in ("map", "unmap"):
            yield {
                "experiment": "E3",
                "item": mode,
                "metric": f"{name} calls",
                "value": float(calls[name] - before.get(name, 0)),
                "unit": "calls",
            }


def _late(kv: VirtualKV, events: int, running: set[int]) -> int:
    """Groups mapped while the step waited, for requests that had been running before it."""
    return sum(e[5] for e in kv.log.events[events:] if e[1] == "map" and e[6] == "sync" and e[2] in running)


def open_memory(settings: Mapping[str, Any], *, deferred: bool = True) -> VirtualKV:
    from workbench.systems.kv_virtual import VirtualKV

    words = {**settings["steps_shape"], "device": settings["device"], "group_bytes": settings["steps_group"]}
    made = VirtualKV.init(**words, deferred=deferred)
    made.reserve_physical_pages(settings["steps_memory"])
    return made


class Churn:
    """Requests with prompts and answers of random length; the next one comes when a slot is free, at random.

    ``running``: slots whose request ran in the step before; ``came``: requests that are new; ``lengths`` is what the
    next step wants.
    """

    def __init__(self, kv: VirtualKV, settings: Mapping[str, Any], seed: int):
        self.kv, self.rng = kv, np.random.default_rng(seed)
        self.prompt, self.answer = settings["steps_prompt"], settings["steps_answer"]
        self.come = settings["steps_arrival"]
        self.lengths = [0] * kv.geometry.batch
        self.left: dict[int, int] = {}
        self.running: set[int] = set()
        self.came = 0
        self.most = self.prompt[1] + self.answer[1] + 1

    def come_and_go(self) -> None:
        for slot in [slot for slot, left in self.left.items() if not left]:
            self.kv.free_batch_idx(slot)
            del self.left[slot]
            self.lengths[slot] = 0
        self.running = set(self.left)
        for slot in self.left:
            self.lengths[slot] += 1
            self.left[slot] -= 1
        self.came = 0
        while len(self.left) < len(self.lengths) and self.rng.random() < self.come:
            self.came += 1
            tokens = int(self.rng.integers(*self.prompt))
            slot = self.kv.alloc_new_batch_idx(tokens)
            self.lengths[slot], self.left[slot] = tokens, int(self.rng.integers(*self.answer))


def map_everything(kv: VirtualKV, tokens: int) -> None:
    """Every slot gets the pages of the longest request before the clock starts."""
    slots = [kv.alloc_new_batch_idx(tokens) for _ in kv.slots]
    kv.step([tokens] * len(slots))
    for slot in slots:
        kv.free_batch_idx(slot)


# -- E4: how fast memory can be mapped --------------------------------------------------------------------------------


def bandwidth(settings: Mapping[str, Any], progress: Progress) -> Iterator[Row]:
    """Time of creating and mapping one page group, on every back end that works for the device."""
    from workbench.systems.page_backends import missing

    on_gpu = settings["device"] != "cpu"
    names = ["cuda"] if on_gpu else [name for name in ("mapped", "demand") if not missing(name)]
    sizes = [2 << 20] if on_gpu else [4 << 10, 64 << 10, 2 << 20]
    for name in progress(names, "mapping"):
        for size in sizes:
            yield from _mapped(name, size, settings)


def _mapped(name: str, size: int, settings: Mapping[str, Any]) -> Iterator[Row]:
    from workbench.systems.page_backends import open_backend

    with open_backend(name, size, settings["device"]) as pages:
        region = pages.reserve(size * settings["maps"])
        times: dict[str, list[float]] = {call: [] for call in ("create", "map", "unmap", "release")}
        for offset in range(0, region.nbytes, size):
            times["create"].append(_clock(pages.create))
            handle = next(reversed(pages.handles))
            times["map"].append(_clock(pages.map, region, offset, handle))
        for offset, handle in list(region.mapped.items()):
            times["unmap"].append(_clock(pages.unmap, region, offset))
            times["release"].append(_clock(pages.release, handle))
        calls = pages.calls
    place = {"experiment": "E4", "item": name, "group_kib": size >> 10}
    for call in (call for call in calls.count if call.startswith("driver")):
        mean = calls.seconds[call] / calls.count[call] * 1e6
        yield {**place, "metric": call, "value": mean, "unit": "µs", "note": "mean"}
    for call, values in times.items():
        yield from _quantiles({**place, "metric": call}, values)
    speeds = [size / (a + b) / 1e9 for a, b in zip(times["create"], times["map"])]
    for repeat, part in enumerate(np.array_split(speeds, 10)):
        yield {**place, "metric": "bandwidth", "repeat": repeat, "value": float(np.median(part)), "unit": "GB/s"}


def _clock(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def _quantiles(place: Row, seconds: Sequence[float]) -> Iterator[Row]:
    micros = np.array(seconds) * 1e6
    low, middle, high, worst = np.quantile(micros, [0.25, 0.5, 0.75, 0.99])
    numbers = {"value": float(middle), "low": float(low), "high": float(high)}
    yield {**place, **numbers, "unit": "µs"}
    yield {**place, "metric": f"{place['metric']} p99", "value": float(worst), "unit": "µs"}
