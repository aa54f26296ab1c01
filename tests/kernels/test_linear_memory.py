"""Linear and neural memories: chunk form against the naive recurrence, packing, streaming, causality, bad input."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench_kernels.linear_memory import NeuralState, linear_recurrence, neural_memory, prefix_state

RULES = ["linear", "scalar", "vector", "delta", "gated-delta", "vector-delta"]


def draw(rule: str, length: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(batch, length, 2, d, generator=gen, dtype=dtype) for d in (5, 5, 4))
    words: dict[str, Any] = {"q": q, "k": torch.nn.functional.normalize(k, dim=-1), "v": v}
    gates = torch.rand(batch, length, 2, 6, generator=gen, dtype=dtype)
    if "delta" in rule:
        words["beta"] = gates[..., 5]
    if rule in ("scalar", "gated-delta"):
        words["log_decay"] = -3 * gates[..., 0]
    if "vector" in rule:
        words["log_decay"] = -3 * gates[..., :5]
    return words


def cut(words: dict[str, Any], a: int, b: int) -> dict[str, Any]:
    return {name: x[:, a:b] for name, x in words.items()}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (23, 1), (23, 7), (64, 16), (63, 100)])
def test_chunk_form_is_the_recurrence(rule: str, length: int, chunk: int) -> None:
    words = draw(rule, length)
    start = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    for fast, naive in zip(
        linear_recurrence(**words, state=start, chunk=chunk),
        linear_recurrence(**words, state=start, impl="reference"),
        strict=True,
    ):
        torch.testing.assert_close(fast, naive, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_packed_is_separate_and_streaming_is_one_pass(rule: str) -> None:
    words, ends = draw(rule, 20, batch=1), [0, 7, 7, 8, 20]
    y, state = linear_recurrence(**words, offsets=torch.tensor(ends), chunk=4)
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        alone, final = linear_recurrence(**cut(words, a, b), chunk=4)
        torch.testing.assert_close(y[:, a:b], alone)
        torch.testing.assert_close(state[i : i + 1], final)
    whole, last = linear_recurrence(**words)
    carried: Tensor | None = None
    for a, b in ((0, 1), (1, 6), (6, 20)):
        part, carried = linear_recurrence(**cut(words, a, b), state=carried)
        torch.testing.assert_close(part, whole[:, a:b])
    torch.testing.assert_close(carried, last)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_and_causality(rule: str) -> None:
    words = draw(rule, 5, batch=1)
    names, inputs = list(words), [x.clone().requires_grad_() for x in words.values()]
    assert torch.autograd.gradcheck(lambda *xs: linear_recurrence(**dict(zip(names, xs, strict=True)), chunk=2), inputs)
    later = {name: torch.cat([x[:, :3], x[:, 3:] * 0.5], 1) for name, x in words.items()}
    assert torch.equal(linear_recurrence(**words, chunk=4)[0][:, :3], linear_recurrence(**later, chunk=4)[0][:, :3])


@pytest.mark.parametrize("name", ["elu+1", "relu", "taylor"])
def test_normalised_linear_attention_is_its_quadratic_form(name: str) -> None:
    from workbench_kernels.linear_memory import FEATURE_MAPS

    w = draw("linear", 19)
    m = draw("linear", 6)
    keep = torch.ones(2, 6, dtype=torch.bool)
    keep[0, :2] = False
    start = prefix_state(m["k"], m["v"], feature_map=name, keep=keep)
    y, final = linear_recurrence(**w, feature_map=name, normalize=True, state=start, chunk=4)
    f = FEATURE_MAPS[name]
    own = torch.einsum("bihd,bjhd->bhij", f(w["q"]), f(w["k"])).tril()
    pre = torch.einsum("bihd,bjhd->bhij", f(w["q"]), f(m["k"])) * keep[:, None, None]
    top = own @ w["v"].transpose(1, 2) + pre @ m["v"].transpose(1, 2)
    expected = top / (own.sum(-1) + pre.sum(-1) + 1e-6)[..., None]
    torch.testing.assert_close(y, expected.transpose(1, 2), rtol=1e-8, atol=1e-9)
    assert final.shape == start.shape


def test_taylor_products() -> None:
    from workbench_kernels.linear_memory import FEATURE_MAPS

    w = draw("linear", 9)
    s = (w["q"] * w["k"]).sum(-1) / 5**0.5
    f = FEATURE_MAPS["taylor"]
    torch.testing.assert_close((f(w["q"]) * f(w["k"])).sum(-1), 1 + s + s * s / 2)


def neural(layers: int, length: int) -> tuple[dict[str, Tensor], NeuralState]:
    gen = torch.Generator().manual_seed(layers)
    words = draw("delta", length)
    words.pop("beta")
    gates = torch.rand(3, 2, length, 2, generator=gen, dtype=torch.float64)
    words |= {"theta": gates[0] * 0.2, "eta": gates[1], "alpha": gates[2] * 0.3}
    sizes = [5, 4] if layers == 1 else [5, 7, 4]
    pairs = list(itertools.pairwise(sizes))
    weights = [torch.randn(2, 2, a, b, generator=gen, dtype=torch.float64) * 0.3 for a, b in pairs]
    return words, NeuralState(tuple(weights), tuple(0.1 * torch.randn_like(w) for w in weights))


def online(words: dict[str, Tensor], state: NeuralState, chunk: int) -> tuple[Tensor, NeuralState]:
    """Token by token; the gradient is automatic, at the weights of the chunk's start."""

    def memory(ws: list[Tensor], x: Tensor) -> Tensor:
        z = (x[:, :, None] @ ws[0])[:, :, 0]
        return z if len(ws) == 1 else (torch.nn.functional.gelu(z)[:, :, None] @ ws[1])[:, :, 0]

    ws, ss, reads = list(state.weights), list(state.momentum), []
    for t in range(words["q"].shape[1]):
        if t % chunk == 0:
            first = [w.detach().requires_grad_() for w in ws]
        loss = (memory(first, words["k"][:, t]) - words["v"][:, t]).square().sum()
        grads = torch.autograd.grad(loss, first)
        theta, eta, alpha = (words[n][:, t, :, None, None] for n in ("theta", "eta", "alpha"))
        ss = [eta * s - theta * g for s, g in zip(ss, grads, strict=True)]
        ws = [(1 - alpha) * w + s for w, s in zip(ws, ss, strict=True)]
        reads.append(memory(ws, words["q"][:, t]))
    return torch.stack(reads, 1), NeuralState(tuple(ws), tuple(ss))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("chunk", [1, 4, 32])
def test_neural_chunk_form_is_the_token_recurrence(layers: int, chunk: int) -> None:
    words, state = neural(layers, 18)
    words["alpha"][:, 5] = 1.0
    words["eta"][:, 3] = 0.0
    y, final = neural_memory(**words, state=state, chunk=chunk)
    expected, end = online(words, state, chunk)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)
    for mine, theirs in zip([*final.weights, *final.momentum], [*end.weights, *end.momentum], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("layers", [1, 2])
def test_neural_streaming_causality_and_gradients(layers: int) -> None:
    words, state = neural(layers, 6)
    whole, _ = neural_memory(**words, state=state, chunk=2)
    a, middle = neural_memory(**cut(words, 0, 4), state=state, chunk=2)
    b, _ = neural_memory(**cut(words, 4, 6), state=middle, chunk=2)
    torch.testing.assert_close(torch.cat([a, b], 1), whole)
    later = {n: torch.cat([x[:, :3], x[:, 3:] * 0.5], 1) for n, x in words.items()}
    torch.testing.assert_close(neural_memory(**later, state=state, chunk=2)[0][:, :3], whole[:, :3], rtol=0, atol=0)
    names, short = list(words), cut(words, 0, 3)
    inputs = [x[:1].clone().requires_grad_() for x in short.values()]
    one = NeuralState(tuple(w[:1] for w in state.weights), tuple(s[:1] for s in state.momentum))
    assert torch.autograd.gradcheck(
        lambda *xs: neural_memory(**dict(zip(names, xs, strict=True)), state=one, chunk=2)[0], inputs
    )


def test_delta_rule_is_the_neural_memory_with_half_the_step() -> None:
    words, beta = draw("delta", 11), draw("delta", 11)["beta"]
    zero = torch.zeros(2, 2, 5, 4, dtype=torch.float64)
    q, k, v = words["q"], words["k"], words["v"]
    none = torch.zeros_like(beta)
    y, _ = neural_memory(q, k, v, theta=beta / 2, eta=none, alpha=none, state=NeuralState((zero,), (zero,)), chunk=1)
    torch.testing.assert_close(y, linear_recurrence(**words)[0])


BAD = [
    ("chunk must be", {"chunk": 0}),
    ("log_decay must lie in", {"log_decay": torch.ones(1, 8, 2)}),
    ("log_decay must have shape", {"log_decay": torch.zeros(1, 8, 3)}),
    ("beta must lie in", {"beta": torch.full((1, 8, 2), 1.5)}),
    ("beta must lie in", {"beta": torch.full((1, 8, 2), float("nan"))}),
    ("state must be", {"state": torch.zeros(2, 2, 5, 4, dtype=torch.float64)}),
    ("state must be", {"state": torch.zeros(1, 2, 5, 4, dtype=torch.float32)}),
    ("state must be", {"state": torch.zeros(1, 2, 5, 4, dtype=torch.float64, device="meta")}),
    ("offsets must increase", {"offsets": torch.tensor([0, 5, 3, 8])}),
    ("offsets must increase", {"offsets": torch.tensor([0, 5])}),
    ("feature_map must be", {"feature_map": "softmax"}),
    ("impl must be", {"impl": "magic"}),
    ("does not divide", {"k": torch.zeros(1, 8, 3, 5, dtype=torch.float64)}),
    ("every token", {"k": torch.zeros(1, 7, 2, 5).double(), "v": torch.zeros(1, 7, 2, 4).double()}),
]


@pytest.mark.parametrize(("told", "words"), BAD)
def test_bad_input_is_told(told: str, words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=told):
        linear_recurrence(**(draw("linear", 8, batch=1) | words))


@pytest.mark.parametrize(("name", "value"), [("eta", 1.5), ("alpha", -0.1), ("theta", -1.0)])
def test_neural_bad_gates(name: str, value: float) -> None:
    words, state = neural(1, 4)
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        neural_memory(**(words | {name: torch.full_like(words["eta"], value)}), state=state)
    with pytest.raises(ValueError, match="chunk must be"):
        neural_memory(**words, state=state, chunk=0)
