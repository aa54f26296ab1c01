"""The choice of events in tensors of fixed size, in torch and in Triton: what the loops of the host choose, always."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.memory.cache._event_choice import filled, neighbours
from workbench.memory.cache._event_choice_device import Budgets, DeviceChoice, choose, unpacked
from workbench.memory.cache._memory_attention import mixed

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed here")
LAYERS = 2


class Case:
    """Events and budgets drawn at random: few and many events, budgets of nothing, budgets that hold everything."""

    def __init__(self, rng: np.random.Generator, few: bool):
        self.rng, shortest = rng, int(rng.integers(1, 9))
        n = int(rng.integers(1, 4 if few else 80))
        self.lengths = rng.integers(shortest, shortest + int(rng.integers(1, 40)), n)
        self.edges = np.concatenate([[0], self.lengths.cumsum()])
        total = int(self.edges[-1])
        similar, near = (int(rng.choice([0, part, total])) for part in rng.integers(0, total + 20, 2))
        self.budgets = Budgets.of(similar, near, shortest)
        self.most = similar + near + int(self.lengths.max()) // 2

    def choice(self, launched: bool) -> DeviceChoice:
        sizes = {"layers": LAYERS, "most": self.most, "room": 5, "device": torch.device("cpu")}
        choice = DeviceChoice(self.edges, {}, self.budgets, **sizes)
        if launched:
            from workbench.memory.cache._event_choice_kernel import launcher

            longest = int(self.lengths.max())
            choice._launch = launcher(choice.edges, choice.index, choice.bias, self.budgets, longest)
        return choice

    def order(self) -> torch.Tensor:
        """By scores of which many are equal: what a top-k makes of ties is given to both."""
        scores = torch.from_numpy(self.rng.integers(0, 6, len(self.lengths)).astype(np.float32))
        return scores.topk(min(self.budgets.k, len(self.lengths))).indices

    def tokens(self) -> torch.Tensor:
        return torch.from_numpy(self.rng.random((self.edges[-1], 2, 3), dtype=np.float32))

    def expected(self, order: torch.Tensor, queue: list[int]) -> tuple[list[int], list[int]]:
        best = filled(order.tolist(), self.lengths.tolist(), self.budgets.similar)
        return best, neighbours(best, queue, self.lengths.tolist(), self.budgets.near)


def agree(case: Case, launched: bool, steps: int) -> int:
    """Steps of a stream, each layer with a queue of its own; returns how many events came from a queue."""
    choice, waited = case.choice(launched), 0
    queues: list[list[int]] = [[] for _ in range(LAYERS)]
    for step in range(steps):
        choice.begin()
        for layer in range(LAYERS):
            order = case.order()
            pool, fetched = case.tokens(), torch.full((case.most, 2, 3), torch.nan)
            choice.fetch(layer, order, pool, fetched)
            best, near = expected = case.expected(order, queues[layer])
            record = choice.record[layer].numpy()
            assert unpacked(record, case.budgets.k) == expected
            assert (record[2:] >= 0).sum() == len(best) + len(near)
            rows = [row for event in sorted([*best, *near]) for row in range(*case.edges[event : event + 2])]
            free = case.most - len(rows)
            assert choice.index[free:].tolist() == rows
            assert choice.index[:free].eq(0).all()
            assert choice.bias[:free].isneginf().all()
            assert choice.bias[free:].eq(0).all()
            assert fetched.equal(pool[choice.index])
            if step % 3 < 2:  # else the pass dies: the queue is what it was
                waited += len({*near} - {e + d for e in best for d in (1, -1)})
                queues[layer] = near
        if step % 3 < 2:
            choice.end()
    return waited


@pytest.mark.parametrize("seed", range(10))
def test_torch_chooses_what_the_host_does(seed):
    rng = np.random.default_rng(seed)
    assert sum(agree(Case(rng, few=n % 3 == 0), launched=False, steps=5) for n in range(60)) > 0


if INTERPRETED:  # in the process that the test below starts

    def test_interpreted_kernel():
        rng = np.random.default_rng(100)
        assert sum(agree(Case(rng, few=n % 3 == 0), launched=True, steps=5) for n in range(10)) > 0


@TRITON
def test_triton_chooses_what_the_host_does():
    """The kernel's own code, interpreted."""
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-k", "interpreted_kernel", "-p", "no:cacheprovider"]
    environment, root = os.environ | {"TRITON_INTERPRET": "1"}, Path(__file__).parent.parent.parent
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "1 passed" in done.stdout


@TRITON
@pytest.mark.skipif(INTERPRETED, reason="an interpreted kernel is not compiled")
@pytest.mark.parametrize("n_mem", [256, 2048, 4096, 8192])
def test_the_kernel_compiles_for_hopper_at_the_published_budgets(n_mem):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from workbench.memory.cache import _event_choice_kernel as kernels

    budgets = Budgets.of(n_mem, int(0.3 * n_mem), 8)
    assert budgets.width % 4 == 0  # a layer's record begins where wide loads may begin
    shape = (budgets.k, budgets.queue, *kernels.sizes(budgets), 512, kernels.columns(512))
    constants = dict(zip(("K", "Q", "KP", "P", "R", "T", "W", "C"), shape))
    types = dict.fromkeys(kernels._choose.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types |= dict.fromkeys(("before", "record", "edges", "index", "taken"), "*i32") | {"order": "*i64", "bias": "*fp32"}
    types |= dict.fromkeys(("pool", "rows"), "*bf16")
    source = ASTSource(kernels._choose, signature=types, constexprs=constants)
    options = {"num_warps": kernels.warps(budgets), "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert kernels.takes(budgets)
    assert not kernels.takes(Budgets.of(20_000, 6_000, 8))
    assert made.metadata.shared < 48 << 10


def test_the_reference_needs_no_events_that_fit():
    """Every event is longer than the budget: nothing is fetched, and the rows that are gathered are hidden."""
    edges = torch.tensor([0, 9, 20], dtype=torch.int32)
    budgets = Budgets.of(4, 0, 9)
    record, before = torch.full((2, budgets.width), 7, dtype=torch.int32).unbind(0)
    before[:] = -1
    index, bias = torch.full((8,), 5, dtype=torch.int32), torch.zeros(10)
    choose(torch.tensor([1, 0]), edges, before, budgets, index, bias, record)
    assert unpacked(record.numpy(), budgets.k) == ([], [])
    assert record[2:].eq(-1).all()
    assert index.eq(0).all()
    assert bias.isneginf().tolist() == [True] * 8 + [False] * 2


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_hidden_row_weighs_nothing(softcap, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 1, 12, generator=generator).to(dtype)
    values = torch.randn(2, 12, 4, generator=generator).to(dtype)
    bias, how = torch.zeros(12), {"scaling": 0.3, "softcap": softcap, "sinks": torch.ones(6)}
    bias[:5] = -torch.inf
    out, weights = mixed(scores, values, bias=bias, **how)
    fewer, others = mixed(scores[..., 5:], values[:, 5:], **how)
    assert weights[..., :5].eq(0).all()
    torch.testing.assert_close(weights[..., 5:], others)
    torch.testing.assert_close(out, fewer)
