"""Linear memories: chunk form against the naive recurrence, packing, streaming, causality, bad input."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench_kernels.linear_memory import api, chunked, linear_recurrence, prefix_state

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


BAD = [
    ("chunk must be", {"chunk": 0}),
    ("chunk must be", {"chunk": True}),
    ("keep must be", {"keep": "yes"}),
    ("normalize must be", {"normalize": "yes"}),
    ("scale must be", {"scale": float("nan")}),
    ("epsilon must be", {"normalize": True, "epsilon": -1.0}),
    ("log_decay must be a tensor", {"log_decay": -0.5}),
    ("beta must be a tensor", {"beta": torch.ones(1, 8, 2, dtype=torch.complex64)}),
    ("log_decay must lie in", {"log_decay": torch.ones(1, 8, 2)}),
    ("log_decay must have shape", {"log_decay": torch.zeros(1, 8, 3)}),
    ("beta must lie in", {"beta": torch.full((1, 8, 2), 1.5)}),
    ("beta must lie in", {"beta": torch.full((1, 8, 2), float("nan"))}),
    ("state must be", {"state": torch.zeros(2, 2, 5, 4, dtype=torch.float64)}),
    ("state must be", {"state": torch.zeros(1, 2, 5, 4, dtype=torch.float32)}),
    ("state must be", {"state": torch.zeros(1, 2, 5, 4, dtype=torch.float64, device="meta")}),
    ("state must be .* got tuple", {"state": (torch.zeros(1, 2, 5, 4).double(),)}),
    ("offsets must be", {"offsets": [0, 8]}),
    ("offsets must be", {"offsets": torch.tensor([0.0, 8.0])}),
    ("offsets must be", {"offsets": torch.tensor([False, True])}),
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


@pytest.mark.parametrize("rule", RULES)
def test_without_looks_at_values_it_runs_under_vmap(rule: str) -> None:
    words = draw(rule, 9)
    names = list(words)

    def one(*xs: Tensor) -> Tensor:
        y, state = linear_recurrence(**dict(zip(names, xs, strict=True)), chunk=4, check_values=False)
        return y.square().sum() + state.sum()

    stacked = [torch.stack([x, 0.5 * x]) for x in words.values()]
    every = tuple(range(len(names)))
    grads = torch.func.vmap(torch.func.grad(one, every))(*stacked)
    for row in range(2):
        expected = torch.func.grad(one, every)(*(x[row] for x in stacked))
        for found, exact in zip(grads, expected, strict=True):
            torch.testing.assert_close(found[row], exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 64])
def test_block_substitution_is_the_inverse(size: int) -> None:
    """Also where powers of L explode: equal keys, beta = 1."""
    gen = torch.Generator().manual_seed(size)
    for lower in (
        torch.randn(3, size, size, generator=gen).double().tril(-1) * 0.3,
        torch.ones(1, size, size).double(),
    ):
        lower = lower.tril(-1)
        product = chunked._inverse(lower) @ (lower + torch.eye(size))
        torch.testing.assert_close(product, torch.eye(size).double().expand_as(product), rtol=0, atol=1e-9)


def test_rows_longer_than_what_is_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "SIDE_BY_SIDE", 3)
    for rule in RULES:
        words = draw(rule, 33)
        for a, b in zip(linear_recurrence(**words, chunk=4), linear_recurrence(**words, impl="reference"), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_looks_at_values_can_be_left_out() -> None:
    words = draw("delta", 8, batch=1) | {"beta": torch.full((1, 8, 2), 1.5, dtype=torch.float64)}
    linear_recurrence(**words, check_values=False)
    with pytest.raises(ValueError, match=r"^beta must have shape"):
        linear_recurrence(**(words | {"beta": torch.zeros(1, 8, 3).double()}), check_values=False)
    prefix_state(words["k"] * torch.nan, words["v"], check_values=False)
    with pytest.raises(ValueError, match="offsets must increase"):  # reads past the end would follow
        linear_recurrence(**words, offsets=torch.tensor([0, 9]), check_values=False)


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("k holds NaN", {"k": torch.full((1, 8, 2, 5), torch.nan).double()}),
        ("k must be a torch.Tensor", {"k": [1.0]}),
        ("v is torch.float32 but k is torch.float64", {"v": torch.zeros(1, 8, 2, 4)}),
        ("v has shape", {"v": torch.zeros(1, 7, 2, 4).double()}),
        ("keep must be bool", {"keep": torch.ones(1, 8)}),
        ("keep must be bool .* got list", {"keep": [True]}),
        ("keep must be bool .* on cpu, got .* on meta", {"keep": torch.ones(1, 8, dtype=torch.bool, device="meta")}),
        ("normalize must be", {"normalize": 1}),
        ("feature_map must be", {"feature_map": "softmax"}),
    ],
)
def test_bad_prefixes_are_told(told: str, change: dict[str, Any]) -> None:
    words = draw("linear", 8, batch=1)
    with pytest.raises(ValueError, match=f"^{told}"):
        prefix_state(**({"k": words["k"], "v": words["v"]} | change))


def test_auto_asks_for_kernels_on_a_card_for_half_precision_and_long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No card is needed to see which implementation a call is given to."""
    words: dict[str, Any] = {
        "log_decay": None, "beta": None, "feature_map": "identity", "normalize": False, "chunk": None,
    }  # fmt: skip

    def pick(device: str, dtype: torch.dtype, length: int) -> str:
        x: Any = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, length, 2, 16))
        return api._pick("auto", x, x, **words)

    asked: list[str | None] = [None]
    monkeypatch.setattr(api, "_triton_refuses", lambda *_: asked[0])
    for dtype in (torch.bfloat16, torch.float16):
        assert pick("cuda", dtype, 1) == "triton"
    assert [pick("cuda", torch.float32, n) for n in (api.LONG - 1, api.LONG)] == ["chunked", "triton"]
    assert [pick("cpu", dtype, 4096) for dtype in (torch.bfloat16, torch.float32)] == ["chunked"] * 2
    asked[0] = "beta is given"
    assert pick("cuda", torch.bfloat16, 4096) == "chunked"
