"""The neural memory's Triton kernels on the card: reads, final state and all gradients against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from neural_memory_cases import CASES, Case, held, long_row

pytest.importorskip("triton")


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    held(CASES[name])


@pytest.mark.parametrize("chunk", [16, 32, 64])
@pytest.mark.parametrize("dims", [(16, 64, 16), (32, 128, 32), (64, 256, 64), (128, 256, 128)], ids=str)
def test_every_shape_that_ships(dims: tuple[int, int, int], chunk: int) -> None:
    case = Case(length=4 * chunk + 7, chunk=chunk, dims=dims, heads=3, batch=2, clip=1.5)
    held(case)
    held(replace(case, clip=None, reset=True), seed=1)


@pytest.mark.parametrize("chunk", [16, 64])
def test_a_long_row_of_many_programs(chunk: int) -> None:
    """Every chunk reads what other threads of its program wrote: a barrier that is missing shows here."""
    held(long_row(chunk, dims=(32, 128, 32), heads=8, batch=20))


def test_two_runs_are_the_same_bits() -> None:
    case = long_row(16, dims=(64, 256, 64), heads=4, batch=2)
    made = []
    for _ in range(2):
        inputs = {name: x.requires_grad_() for name, x in case.draw().items()}
        found = case.run(inputs, "triton")
        loss = torch.stack([x.square().sum() for x in found.values()]).sum()
        made.append([*found.values(), *torch.autograd.grad(loss, list(inputs.values()))])
    assert all(torch.isfinite(x).all() for x in made[0]), "the case itself diverges: NaN equals nothing"
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
