"""The simulated server: memory is conserved, the closed forms come out, the policies stand in the claimed order."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.errors import BadInput
from workbench.systems import serving
from workbench.systems.kv_geometry import OutOfKVMemory
from workbench.systems.serving import MODELS, Server, policies, virtual
from workbench_datasets import request_traces

YI = MODELS["Yi-6B"]
MEMORY = 60_000_000_000


def requests(prompts: list[int], answers: list[int], arrivals: list[float] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"arrival": arrivals or [0.0] * len(prompts), "prompt": prompts, "answer": answers})


def served(name: str, trace: str = "four-thousand", seed: int = 3, count: int = 1000) -> serving.Served:
    table = request_traces.draw(trace, count, seed, rate=10)
    return Server(table, policies(YI, 32768)[name], YI, MEMORY).run()


def test_memory_is_conserved_and_everybody_is_served() -> None:
    table = request_traces.draw("four-thousand", 300, 1, rate=10)
    for policy in policies(YI, 8192).values():
        server = Server(table, policy, YI, 10_000_000_000)
        seen = []
        server._finish = _watched(server, seen)  # type: ignore[method-assign]
        found = server.run()
        assert found.finished == 300
        assert set(seen) == {server.total}
        assert (found.steps[["used", "waste", "cached", "free"]] >= 0).all().all()
        held = found.steps[["used", "waste", "cached", "free"]].sum(axis=1)
        assert np.allclose(held, server.total * policy.block_bytes)


def _watched(server: Server, seen: list[int]):
    finish = server._finish

    def run() -> None:
        finish()
        seen.append(server.memory.free + sum(server.memory.cached) + int(server.blocks.sum()))

    return run


def test_a_jump_over_quiet_iterations_changes_nothing() -> None:
    table = request_traces.draw("four-thousand", 200, 2, rate=10)
    for name in ("static", "2 MB groups", "64 KB groups"):
        policy = policies(YI, 8192)[name]
        fast, slow = (Server(table, policy, YI, 10_000_000_000) for _ in range(2))
        slow._quiet = lambda: 1  # type: ignore[method-assign]
        a, b = fast.run(), slow.run()
        assert (a.finished, a.max_batch, a.map_calls, a.preempted) == (
            b.finished,
            b.max_batch,
            b.map_calls,
            b.preempted,
        )
        assert a.makespan == pytest.approx(b.makespan)
        assert a.mean("waste") == pytest.approx(b.mean("waste"), rel=0.02)


def test_one_request_by_hand() -> None:
    """A prompt of 100 and 30 answers in groups of 64 tokens: two blocks, then a third at token 129."""
    policy = virtual(YI, 64 << 10)
    assert (policy.block_tokens, policy.calls, policy.block_bytes) == (64, 64, 64 * 64 << 10)
    time = serving.StepTime(fixed=1.0, token=0.01, call=0.5)
    found = Server(requests([100], [30]), policy, YI, 1 << 30, step_time=time).run()
    assert found.map_calls == 3 * 64
    assert found.makespan == pytest.approx(30 * 1.0 + 0.01 * (100 + 29) + 0.5 * 3 * 64)


def test_waste_is_half_a_block_a_request() -> None:
    """Closed form: 64 MB with 2 MB groups, 2 MB with 64 KB, 0.5 MB with blocks of 16 (binary units)."""
    for name, mib in (("2 MB groups", 64), ("64 KB groups", 2), ("paged-16", 0.5), ("2 MB groups, mega-cache", 2)):
        found = served(name)
        waste = found.mean("waste") / found.mean("batch") / (1 << 20)
        assert waste == pytest.approx(mib, rel=0.08), name


def test_the_batch_is_the_closed_forms() -> None:
    for name in ("2 MB groups", "64 KB groups", "paged-256"):
        found, policy = served(name), policies(YI, 32768)[name]
        context = found.mean("used") / found.mean("batch") / YI.token_bytes
        assert found.mean("batch") == pytest.approx(serving.closed_form(YI, policy, MEMORY, context), rel=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_order_and_ratio_of_the_batches_at_every_seed(seed: int) -> None:
    runs = {name: served(name, seed=100 + seed) for name in ("static", "2 MB groups", "64 KB groups", "paged-16")}
    waste = [run.mean("waste") / run.mean("batch") for run in runs.values()]
    batch = [run.max_batch for run in runs.values()]
    assert waste == sorted(waste, reverse=True)
    assert batch == sorted(batch)
    assert 1.15 <= batch[2] / batch[1] <= 1.35


def test_when_memory_runs_out_the_youngest_is_computed_again() -> None:
    policy = serving.paged(YI, 16)
    memory = 40 * policy.block_bytes  # 640 tokens
    table = requests([200, 200], [300, 300])
    found = Server(table, policy, YI, memory, watermark=0).run()
    assert found.preempted >= 1
    assert found.finished == 2
    with pytest.raises(OutOfKVMemory, match="for one request"):
        Server(requests([1000], [300]), policy, YI, memory)


def test_tables_that_make_no_sense_are_refused() -> None:
    policy = serving.paged(YI, 16)
    for table in (
        requests([], []),
        requests([0], [5]),
        requests([5, 5], [5, 5], [2.0, 1.0]),
        pd.DataFrame({"prompt": [1]}),
    ):
        with pytest.raises(BadInput):
            Server(table, policy, YI, MEMORY)
    with pytest.raises(BadInput, match="arrival holds others"):  # it never came, and the server waited for it
        Server(requests([5, 5], [5, 5], [0.0, float("nan")]), policy, YI, MEMORY)
    with pytest.raises(BadInput, match="prompt holds others"):
        Server(requests([5, 5], [5, 5]).assign(prompt=["5", "5"]), policy, YI, MEMORY)
    with pytest.raises(BadInput, match="whole token"):
        Server(requests([5, 5], [5, 5]).assign(answer=[1.5, 2.0]), policy, YI, MEMORY)
    for limits, says in (
        ({"most": 0}, "most=0"),  # nobody came in, for ever
        ({"watermark": 1.0}, "watermark=1.0"),
        ({"memory": -1}, "memory=-1"),
        ({"memory": float("nan")}, "memory=nan"),
    ):
        with pytest.raises(BadInput, match=says):
            Server(requests([5], [5]), policy, YI, **{"memory": MEMORY, **limits})
    with pytest.raises(BadInput, match="longer than"):
        Server(requests([900], [200]), serving.static(YI, 1000), YI, MEMORY)


def test_traces_are_repeatable_and_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench_datasets import registry

    a, b = (request_traces.draw("four-thousand", 50, 7, rate=2.0) for _ in range(2))
    assert a.equals(b)
    assert a.attrs["source"] == "drawn"
    assert a["arrival"].is_monotonic_increasing
    monkeypatch.setattr(registry, "where", lambda name: dict.fromkeys(f.file for f in request_traces.TRACES.values()))
    for name, trace in request_traces.TRACES.items():
        drawn = request_traces.draw(name, 4000, 0)
        assert drawn.attrs["source"] == "drawn"
        assert drawn["prompt"].between(*trace.prompt).all()
        assert drawn["answer"].between(*trace.answer).all()
        if trace.mean:
            assert drawn["prompt"].mean() == pytest.approx(trace.mean, rel=0.05)


def test_real_traces_where_their_files_are() -> None:
    from workbench_datasets import registry

    absent = [name for name, place in registry.where("vattention").items() if place is None]
    if absent:
        pytest.skip(f"shared/data/vattention/{absent[0]} is not on this machine")
    lengths = {name: len(request_traces.load(name)) for name, trace in request_traces.TRACES.items() if trace.file}
    assert lengths == {
        "sync-vs-async": 3965,
        "arxiv-sample": 2895,
        "arxiv-long-online": 10111,
        "arxiv-long-offline": 427,
    }
    drawn = request_traces.draw("sync-vs-async", 500, 0)
    assert drawn.attrs["source"] == "real"
    assert drawn["prompt"].between(1600, 2000).all()


def test_bad_traces() -> None:
    for call in (
        lambda: request_traces.draw("four-thousnd", 5, 0),
        lambda: request_traces.load("four-thousand"),
        lambda: request_traces.draw("four-thousand", 0, 0),
        lambda: request_traces.draw("four-thousand", 5, 0, rate=0.0),
    ):
        with pytest.raises(ValueError):
            call()
