"""The neural memory's Triton kernels in Triton's interpreter: reads, final state and every gradient against float64.

A process of its own runs this file (``test_neural_memory_triton.py``), because the interpreter is chosen when Triton
is imported (``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from neural_memory_cases import CASES, Case, held

from workbench_kernels.linear_memory import NeuralState, neural_memory
from workbench_kernels.linear_memory.portable import launch, neural_call

assert launch.INTERPRETED


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    held(CASES[name])


def test_clipped_errors_and_hard_resets_together() -> None:
    held(Case(clip=0.9, reset=True), seed=1)


def leaves(case: Case) -> dict[str, Any]:
    return {name: x.requires_grad_() for name, x in case.draw().items()}


def test_without_gradients_two_copies_of_the_states_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    case, slots = Case(length=80), []
    plain = neural_call.Extent

    def watched(chunks: int, copies: int) -> Any:
        slots.append(copies)
        return plain(chunks, copies)

    monkeypatch.setattr(neural_call, "Extent", watched)
    trained = case.run(leaves(case), "triton")
    with torch.no_grad():
        alone = case.run(leaves(case), "triton")
    assert slots == [6, 2]
    assert all(torch.equal(trained[name], alone[name]) for name in trained)


def test_gradients_of_the_reads_alone_and_of_the_state_alone() -> None:
    case = Case(length=32)
    for name in ("y", "W1", "S2"):
        grads = []
        for impl in ("triton", "chunked"):
            inputs = leaves(case)
            found = case.run(inputs, impl)[name].square().sum()
            grads.append(torch.autograd.grad(found, list(inputs.values()), allow_unused=True, materialize_grads=True))
        for mine, theirs in zip(*grads, strict=True):
            assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


def test_the_state_that_was_given_stays_as_it_was() -> None:
    case = Case()
    inputs = case.draw()
    before = {name: x.clone() for name, x in inputs.items()}
    case.run(inputs, "triton")
    assert all(torch.equal(inputs[name], before[name]) for name in before)


def test_what_the_kernels_cannot_take_is_refused_by_name() -> None:
    def told(*, layers: int = 2, double: bool = False, dims: tuple[int, int] = (4, 4), **words: Any) -> str:
        kind = torch.float64 if double else torch.float32
        q, v = (torch.zeros(1, 4, 1, d, dtype=kind) for d in dims)
        gate = torch.zeros(1, 4, 1, dtype=kind)
        sizes = (dims[0], *(8,) * (layers - 1), dims[1])
        weights = tuple(torch.zeros(1, 1, a, b, dtype=kind) for a, b in itertools.pairwise(sizes))
        given: dict[str, Any] = {"theta": gate, "eta": gate, "alpha": gate, "state": NeuralState(weights, weights)}
        with pytest.raises(ValueError) as error:
            neural_memory(q, q, v, **given, **{"impl": "triton", **words})
        return str(error.value)

    assert told(double=True).startswith("q is torch.float64, the neural memory's Triton kernels take float32 (impl=")
    assert told(layers=1).startswith("state has a memory of depth 1, the Triton kernels take depth 2")
    assert told(layers=3).startswith("state has a memory of depth 3")
    assert told(chunk=8).startswith("chunk is 8, the Triton kernels take 16, 32 or 64")
    assert told(dims=(129, 4)).startswith("q has head dim 129, the neural memory's Triton kernels take 1 to 128")
    assert told(dims=(4, 130)).startswith("v has head dim 130")
    assert told(chunk=8).endswith("impl='chunked' takes this call")
    initial = tuple(torch.zeros(1, a, b) for a, b in ((4, 8), (8, 4)))
    assert told(decay_to="init", initial=initial).startswith("decay_to is 'init', the Triton kernels take 'zero'")


def test_torch_func_is_refused() -> None:
    case = Case(length=16)
    inputs = case.draw()

    def loss(q: torch.Tensor) -> torch.Tensor:
        return case.run({**inputs, "q": q}, "triton")["y"].sum()

    with pytest.raises(ValueError, match=r"^torch.func transforms do not go through"):
        torch.func.grad(loss)(inputs["q"])
