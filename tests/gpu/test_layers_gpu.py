"""Every sequence memory on the card: against float64 on the CPU, outputs, states and gradients; and in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.memory.layers.layer_kit import CASES, Case, tensors, tokens
from workbench.memory.layers.base import MemoryLayer

FIRST = [case for case in CASES if case.number == 0]
first_example = pytest.mark.parametrize("case", FIRST, ids=str)


def _everything(layer: MemoryLayer, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """y, the state, and the gradients of one weighted sum by x and by every parameter."""
    x = x.requires_grad_()
    y, state = layer(x)
    (y * weight).sum().backward()
    grads = {f"d {name}": value.grad for name, value in layer.named_parameters() if value.grad is not None}
    held = {name: value for name, value in tensors(state) if value.is_floating_point()}
    found = {"y": y, **held, "d x": x.grad, **grads}
    return {name: value.detach().cpu().double() for name, value in found.items() if value is not None}


@first_example
def test_the_card_gives_what_float64_gives(case: Case) -> None:
    x, weight = tokens(2, 70), tokens(2, 70, seed=5)
    exact = _everything(case.layer(), x.clone(), weight)
    layer = case.layer(dtype=torch.float32)
    low = _everything(layer, x.float(), weight.float())
    layer.zero_grad()
    card = _everything(layer.cuda(), x.float().cuda(), weight.float().cuda())
    for name, wanted in exact.items():
        size = wanted.abs().max() + 1e-6
        plain = ((low[name] - wanted).abs().max() / size).item()
        error = ((card[name] - wanted).abs().max() / size).item()
        assert error <= 10 * plain + 2e-5, (name, error, plain)


@first_example
def test_pieces_on_the_card_equal_one_pass(case: Case) -> None:
    layer, x = case.layer(dtype=torch.float32).cuda(), tokens(2, 40, torch.float32).cuda()
    with torch.no_grad():
        whole = layer(x)[0]
        a, state = layer(x[:, :17])
        b, state = layer(x[:, 17:18], state)
        c, _ = layer(x[:, 18:], state)
    torch.testing.assert_close(torch.cat([a, b, c], 1), whole, rtol=1e-3, atol=1e-4)


@first_example
def test_a_training_step_can_be_recorded(case: Case) -> None:
    layer, x = case.layer(dtype=torch.float32).cuda(), tokens(2, 32, torch.float32).cuda()
    if not layer.static:
        pytest.fail("the first example of a layer is the one that trains: it must not depend on values")
    parameters = [value for value in layer.parameters() if value.numel()]

    def step() -> list[Tensor]:
        return [grad for grad in torch.autograd.grad(layer(x)[0].square().mean(), parameters, allow_unused=True)
                if grad is not None]  # fmt: skip

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            plain = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    graph.replay()
    for one, other in zip(recorded, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
