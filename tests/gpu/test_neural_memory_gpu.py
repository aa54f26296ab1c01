"""The neural memory's Triton kernels on the card: reads, final state and all gradients against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from neural_memory_cases import CASES, Case, held, long_row, outcome
from torch import Tensor

from workbench.memory.layers.base import build_layer

pytest.importorskip("triton")
LAYERS = {"titans": {}, "titans-mac": {"segment": 32}, "titans-mag": {"window": 8}, "titans-mal": {"window": 8}}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one number, the chunks, with every launch of the forward kernel."""
    from workbench_kernels.linear_memory.portable import neural_call

    made: list[int] = []
    launch = neural_call.whole_chunks

    def counted(x: Any, *others: Any) -> Any:
        made.append(x.q.shape[1])
        return launch(x, *others)

    monkeypatch.setattr(neural_call, "whole_chunks", counted)
    return made


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


def leaves(case: Case) -> dict[str, Tensor]:
    return {name: x.requires_grad_() for name, x in case.draw().items()}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case(), [2]), (Case(filled=5, length=45), [2]), (Case(length=7), []), (Case(chunk=8), []),
        (Case(dims=(16, 32, 130)), []),
    ],
    ids=["whole chunks", "an open chunk", "less than a chunk", "chunk 8", "too wide"],
)  # fmt: skip
def test_auto_takes_the_kernels_where_they_can_be_had(case: Case, expected: list[int], launches: list[int]) -> None:
    automatic = case.run(case.draw(), "auto")
    assert launches == expected
    by_torch = case.run(case.draw(), "chunked")
    assert launches == expected
    for name, x in by_torch.items():
        assert (automatic[name] - x).norm() <= 1e-4 * x.norm(), name


def test_auto_leaves_float64_and_transforms_to_torch(launches: list[int]) -> None:
    case = Case(length=16)
    outcome(case, case.draw(), "auto", torch.float64)
    inputs = case.draw()

    def loss(scale: Tensor) -> Tensor:
        state = {name: inputs[name] * scale for name in ("w1", "w2")}
        q, k, v = (inputs[name] for name in "qkv")
        return _quiet(case, {**inputs, **state, "q": q, "k": k, "v": v}).square().sum()

    scales = torch.tensor([1.0, 0.5], device="cuda")
    stacked = torch.func.vmap(torch.func.grad(loss))(scales)
    assert launches == []
    alone = scales.clone().requires_grad_()
    (grads,) = torch.autograd.grad(sum(loss(scale) for scale in alone), alone)
    assert launches == [1, 1]
    torch.testing.assert_close(stacked, grads, rtol=1e-3, atol=1e-4)


def _quiet(case: Case, inputs: dict[str, Tensor]) -> Tensor:
    """The reads without a look at values, which neither ``vmap`` nor a graph allows."""
    from workbench_kernels.linear_memory import NeuralState, neural_memory

    state = NeuralState((inputs["w1"], inputs["w2"]), (inputs["s1"], inputs["s2"]))
    tokens = {name: x for name, x in inputs.items() if name not in ("w1", "w2", "s1", "s2")}
    return neural_memory(**tokens, state=state, chunk=case.chunk, check_values=False)[0]


def test_no_gradients_no_copies_of_the_states_and_the_same_bits(launches: list[int]) -> None:
    case = Case(length=80)
    trained = case.run(leaves(case), "auto")
    with torch.no_grad():
        alone = case.run(leaves(case), "auto")
    assert launches == [5, 5]
    assert all(torch.equal(trained[name], alone[name]) for name in trained)
    assert not any(x.requires_grad for x in alone.values())


def test_both_passes_as_one_graph(launches: list[int]) -> None:
    """Recorded once, replayed on other numbers; the same as without a graph."""
    case, other = Case(length=40, filled=3), Case(length=40, filled=3).draw(seed=5)
    inputs = {name: x.requires_grad_() for name, x in case.draw().items()}

    def step() -> list[Tensor]:
        y = _quiet(case, inputs)
        return [y.detach(), *torch.autograd.grad(y.square().mean(), list(inputs.values()), allow_unused=True)]

    replay = _recorded(step)
    with torch.no_grad():
        for name, x in inputs.items():
            x.copy_(other[name])
    made = [None if x is None else x.clone() for x in replay()]
    assert launches
    for one, plain in zip(made, step(), strict=True):
        assert (one is None) == (plain is None)
        assert one is None or (one - plain).norm() <= 1e-5 * plain.norm()


def _recorded(step: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()

    def replay() -> list[Any]:
        graph.replay()
        return made

    return replay


@pytest.mark.parametrize("way", ["flag", "precision"])
def test_what_torch_is_told_about_tf32_does_not_matter(way: str) -> None:
    case = Case(length=64, clip=1.0)
    exact = outcome(case, case.draw(), "chunked", torch.float64)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        if way == "flag":
            torch.backends.cuda.matmul.allow_tf32 = True
        else:
            torch.set_float32_matmul_precision("high")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        told = outcome(case, case.draw(), "auto", torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.fp32_precision = before
    for name, x in exact.items():
        assert (told[name] - x).norm() <= 1e-4 * x.norm(), name


@pytest.mark.parametrize("slug", LAYERS)
def test_the_layers_take_them(slug: str, launches: list[int]) -> None:
    """Reads and gradients of a layer through the kernels and through torch in float64; in pieces as in one pass."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"heads": 2, "chunk": 16, **LAYERS[slug]}
    layer = build_layer(slug, 64, **settings).cuda()
    exact = build_layer(slug, 64, **settings, impl="chunked").cuda().double()
    exact.load_state_dict({name: x.double() for name, x in layer.state_dict().items()})
    x = torch.randn(2, 80, 64, device="cuda")
    y = layer(x)[0]
    assert launches
    wanted = exact(x.double())[0]
    assert (y - wanted).norm() <= 1e-4 * wanted.norm()
    mine, theirs = (torch.autograd.grad(z.square().mean(), list(own.parameters())) for z, own in
                    ((y, layer), (wanted, exact)))  # fmt: skip
    whole = torch.cat([g.flatten() for g in theirs])
    assert (torch.cat([g.flatten() for g in mine]) - whole).norm() <= 1e-3 * whole.norm()
    with torch.no_grad():
        first, state = layer(x[:, :37])
        pieces = torch.cat([first, layer(x[:, 37:], state)[0]], 1)
    torch.testing.assert_close(pieces, y, rtol=1e-3, atol=1e-4)
