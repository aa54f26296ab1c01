"""Titans' neural memory: chunk form against automatic gradients token by token, streaming, causality, bad input."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench_kernels.linear_memory import NeuralState, linear_recurrence, neural_memory, read_memory, surprise

SIZES = {1: [5, 4], 2: [5, 7, 4], 3: [5, 7, 6, 4]}


def neural(layers: int, length: int) -> tuple[dict[str, Tensor], NeuralState]:
    gen = torch.Generator().manual_seed(layers)
    words = {n: torch.randn(2, length, 2, d, generator=gen, dtype=torch.float64) for n, d in zip("qkv", (5, 5, 4))}
    words["k"] = torch.nn.functional.normalize(words["k"], dim=-1)
    gates = torch.rand(3, 2, length, 2, generator=gen, dtype=torch.float64)
    words |= {"theta": gates[0] * 0.2, "eta": gates[1], "alpha": gates[2] * 0.3}
    pairs = list(itertools.pairwise(SIZES[layers]))
    weights = [torch.randn(2, 2, a, b, generator=gen, dtype=torch.float64) * 0.3 for a, b in pairs]
    return words, NeuralState(tuple(weights), tuple(0.1 * torch.randn_like(w) for w in weights))


def cut(words: dict[str, Any], a: int, b: int) -> dict[str, Any]:
    return {name: x[:, a:b] for name, x in words.items()}


def memory(ws: list[Tensor], x: Tensor) -> Tensor:
    x = x[:, :, None]
    for i, w in enumerate(ws):
        x = (torch.nn.functional.gelu(x) if i else x) @ w
    return x[:, :, 0]


def online(
    words: dict[str, Tensor],
    state: NeuralState,
    chunk: int,
    read: str = "post",
    initial: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, NeuralState]:
    """Token by token; the gradient is automatic, at the weights of the chunk's start."""
    ws, ss, reads = list(state.weights), list(state.momentum), []
    targets = [torch.zeros_like(w) for w in ws] if initial is None else initial
    for t in range(words["q"].shape[1]):
        if t % chunk == 0:
            first = [w.detach().requires_grad_() for w in ws]
        loss = (memory(first, words["k"][:, t]) - words["v"][:, t]).square().sum()
        grads = torch.autograd.grad(loss, first)
        theta, eta, alpha = (words[n][:, t, :, None, None] for n in ("theta", "eta", "alpha"))
        before = ws
        ss = [eta * s - theta * g for s, g in zip(ss, grads, strict=True)]
        ws = [(1 - alpha) * w + alpha * x + s for w, x, s in zip(ws, targets, ss, strict=True)]
        reads.append(memory({"post": ws, "pre": before, "prev_chunk": first}[read], words["q"][:, t]).detach())
    return torch.stack(reads, 1), NeuralState(tuple(ws), tuple(ss))


def same(found: NeuralState, expected: NeuralState) -> None:
    for mine, theirs in zip([*found.weights, *found.momentum], [*expected.weights, *expected.momentum], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 4, 32])
def test_chunk_form_is_the_token_recurrence(layers: int, chunk: int) -> None:
    words, state = neural(layers, 18)
    words["alpha"][:, 5] = 1.0
    words["eta"][:, 3] = 0.0
    y, final = neural_memory(**words, state=state, chunk=chunk)
    expected, end = online(words, state, chunk)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)
    same(final, end)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("read", ["post", "pre", "prev_chunk"])
def test_reading_orders_and_decay_to_the_initial_weights(layers: int, read: str) -> None:
    words, state = neural(layers, 11)
    initial = tuple(w[0] for w in state.weights)
    words["alpha"][:, 5] = 1.0
    y, final = neural_memory(**words, state=state, chunk=4, read=read, decay_to="init", initial=initial)
    expected, end = online(words, state, 4, read, initial)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)
    same(final, end)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("read", ["post", "pre", "prev_chunk"])
def test_a_stream_may_be_split_anywhere(layers: int, read: str) -> None:
    words, state = neural(layers, 19)
    options: dict[str, Any] = {"chunk": 5, "read": read, "decay_to": "init", "initial": state.weights}
    whole, last = neural_memory(**words, state=state, **options)
    assert last.filled == 4
    for bounds in (range(20), (0, 3, 3, 4, 12, 19), (0, 5, 19), (0, 7, 10, 19)):
        parts, carried = [], state
        for a, b in itertools.pairwise(bounds):
            part, carried = neural_memory(**cut(words, a, b), state=carried, **options)
            parts.append(part)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-11)
        same(carried, last)
        assert carried.filled == last.filled
        assert carried.anchor is not None
        assert last.anchor is not None
        for mine, theirs in zip(carried.anchor, last.anchor, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_causality_and_gradients(layers: int) -> None:
    words, state = neural(layers, 6)
    whole, _ = neural_memory(**words, state=state, chunk=2)
    later = {n: torch.cat([x[:, :3], x[:, 3:] * 0.5], 1) for n, x in words.items()}
    torch.testing.assert_close(neural_memory(**later, state=state, chunk=2)[0][:, :3], whole[:, :3], rtol=0, atol=0)
    names, short = list(words), cut(words, 0, 3)
    inputs = [x[:1].clone().requires_grad_() for x in (*short.values(), *state.weights, *state.momentum)]

    def run(*xs: Tensor) -> tuple[Tensor, ...]:
        y, end = neural_memory(
            **dict(zip(names, xs, strict=False)),
            state=NeuralState(xs[6 : 6 + layers], xs[6 + layers :]),
            chunk=2,
            decay_to="init",
            initial=xs[6 : 6 + layers],
        )
        return y, *end.weights, *end.momentum

    assert torch.autograd.gradcheck(run, inputs)


def test_it_runs_under_vmap() -> None:
    words, state = neural(2, 7)
    names = list(words)

    def loss(scale: Tensor, *xs: Tensor) -> Tensor:
        start = NeuralState(tuple(w * scale for w in state.weights), state.momentum)
        y, end = neural_memory(**dict(zip(names, xs, strict=True)), state=start, chunk=3, check_values=False)
        return y.square().sum() + sum(w.sum() for w in end.weights)

    scales, inputs = torch.tensor([1.0, 0.3], dtype=torch.float64), list(words.values())
    stacked = [torch.stack([x, 0.5 * x]) for x in inputs]
    grads = torch.func.vmap(torch.func.grad(loss, tuple(range(7))))(scales, *stacked)
    for row in range(2):
        alone = torch.func.grad(loss, tuple(range(7)))(scales[row], *(x[row] for x in stacked))
        for found, exact in zip(grads, alone, strict=True):
            torch.testing.assert_close(found[row], exact, rtol=1e-9, atol=1e-10)


def test_delta_rule_is_the_neural_memory_with_half_the_step() -> None:
    words, _ = neural(1, 11)
    q, k, v, beta = words["q"], words["k"], words["v"], words["eta"]
    zero, none = torch.zeros(2, 2, 5, 4, dtype=torch.float64), torch.zeros_like(beta)
    y, _ = neural_memory(q, k, v, theta=beta / 2, eta=none, alpha=none, state=NeuralState((zero,), (zero,)), chunk=1)
    torch.testing.assert_close(y, linear_recurrence(q, k, v, beta=beta)[0])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_reads_and_surprise_are_those_of_the_network(layers: int) -> None:
    words, state = neural(layers, 3)
    leaves = [w.clone().requires_grad_() for w in state.weights]
    norms = surprise(state.weights, words["k"], words["v"])
    reads = read_memory(state.weights, words["q"])
    for t in range(3):
        torch.testing.assert_close(reads[:, t], memory(list(state.weights), words["q"][:, t]))
        loss = (memory(leaves, words["k"][:, t]) - words["v"][:, t]).square().sum()
        grads = torch.autograd.grad(loss, leaves)
        squares = sum(g.square().sum((-1, -2)) for g in grads)
        torch.testing.assert_close(norms[:, t], torch.as_tensor(squares).sqrt())


@pytest.mark.parametrize(
    ("name", "value"), [("eta", 1.5), ("alpha", -0.1), ("theta", -1.0), ("theta", torch.inf), ("theta", torch.nan)]
)
def test_bad_gates(name: str, value: float) -> None:
    words, state = neural(1, 4)
    bad = words | {name: torch.full_like(words["eta"], value)}
    with pytest.raises(ValueError, match=f"^{name} must lie in"):
        neural_memory(**bad, state=state)
    neural_memory(**bad, state=state, check_values=False)


W, S = neural(2, 4)[1][:2]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("chunk must be", {"chunk": 0}),
    ("chunk must be", {"chunk": True}),
    ("clip must be", {"clip": 0.0}),
    ("clip must be", {"clip": "short"}),
    ("theta must be .* got float", {"theta": 0.1}),
    ("read must be one of", {"read": "before"}),
    ("decay_to must be one of", {"decay_to": "mean"}),
    ("decay_to='init' needs initial", {"decay_to": "init"}),
    ("initial is for", {"initial": W}),
    (r"initial\[1\] must be", {"decay_to": "init", "initial": (W[0], W[0])}),
    (r"initial\[0\] must be .* got int", {"decay_to": "init", "initial": (1, 2)}),
    ("state must be a NeuralState", {"state": None}),
    ("state must be a NeuralState", {"state": (W, S)}),
    ("the memory needs one layer .* got int", {"state": NeuralState((1, 2), S)}),
    ("the memory needs one layer", {"state": NeuralState((), ())}),
    ("the memory needs one layer", {"state": NeuralState(W, S[:1])}),
    ("layer 0 of the state", {"state": NeuralState(tuple(w[:1] for w in W), S)}),
    ("layer 1 of the state", {"state": NeuralState(W, (S[0], S[1].float()))}),
    ("state.filled must be", {"state": NeuralState(W, S, W, 16)}),
    ("state.filled is 3", {"state": NeuralState(W, S, None, 3)}),
    ("the inner loop diverges", {n: x.bfloat16() for n, x in neural(2, 4)[0].items()}),
]


@pytest.mark.parametrize(("told", "options"), BAD)
def test_bad_input_is_told(told: str, options: dict[str, Any]) -> None:
    words, state = neural(2, 4)
    before = [x.clone() for x in (*state.weights, *state.momentum)]
    with pytest.raises(ValueError, match=f"^{told}"):
        neural_memory(**({**words, "state": state} | options))
    assert all(torch.equal(a, b) for a, b in zip(before, (*state.weights, *state.momentum), strict=True))


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("layer 0 of the state", {"q": torch.zeros(2, 4, 2, 6).double()}),
        ("layer 0 of the state", {"q": torch.zeros(2, 4, 2, 5)}),
        ("layer 0 of the state", {"q": torch.zeros(1, 4, 2, 5).double()}),
        ("layer 1 of the state", {"weights": (W[0], W[0])}),
        ("the memory needs one layer", {"weights": ()}),
        ("q must be a torch.Tensor", {"q": [1.0]}),
    ],
)
def test_reads_that_do_not_fit_are_told(told: str, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        read_memory(**({"weights": W, "q": neural(2, 4)[0]["q"]} | change))


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("layer 1 of the state", {"v": torch.zeros(2, 4, 2, 3).double()}),
        ("v has shape", {"v": torch.zeros(2, 1, 2, 4).double()}),  # would be taken for every token's
        ("layer 0 of the state", {"weights": tuple(w[:1] for w in W)}),
        ("the memory needs one layer", {"weights": ()}),
    ],
)
def test_surprises_that_do_not_fit_are_told(told: str, change: dict[str, Any]) -> None:
    words, _ = neural(2, 4)
    with pytest.raises(ValueError, match=f"^{told}"):
        surprise(**({"weights": W, "k": words["k"], "v": words["v"]} | change))
