"""The tiled kernel against the float64 specification: outputs, row LSE and every gradient."""

import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench_kernels import attention
from workbench_kernels.softmax_attention import tiled, tiles

BUDGET = settings(max_examples=60, deadline=None)


@st.composite
def problems(draw):
    """A random attention problem in float64 with every option on or off."""
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    queries, keys, dim = draw(st.integers(1, 70)), draw(st.integers(1, 70)), draw(st.sampled_from([1, 4, 8, 17]))
    heads = kv_heads * group
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, cols = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    words = {
        "causal": draw(st.booleans()),
        "window": draw(st.sampled_from([None, 1, 3, 20])),
        "softcap": draw(st.sampled_from([None, 5.0])),
        "scale": draw(st.sampled_from([None, 0.3])),
        "block_size": draw(st.sampled_from([None, (rows, cols)])),
        "dropout": draw(st.sampled_from([0.0, 0.0, 0.4])),
        "seed": draw(st.integers(0, 9)),
    }
    if draw(st.booleans()):
        words["key_padding"] = torch.rand(batch, keys, generator=generator) > 0.3
    kind = draw(st.sampled_from(["none", "bool", "per head", "additive"]))
    if kind == "bool":
        words["mask"] = torch.rand(queries, keys, generator=generator) > 0.4
    elif kind == "per head":
        words["mask"] = torch.rand(batch, heads, queries, keys, generator=generator) > 0.4
    elif kind == "additive":
        words["mask"] = normal(1, heads, queries, keys)
    if words["block_size"] and draw(st.booleans()):
        grid = (-(-queries // rows), -(-keys // cols))
        lead = draw(st.sampled_from([(), (1, 1), (batch, heads)]))
        words["block_mask"] = torch.rand(*lead, *grid, generator=generator) > 0.4
    leaves = [normal(batch, queries, heads, dim), normal(batch, keys, kv_heads, dim), normal(batch, keys, kv_heads, 5)]
    if draw(st.booleans()):
        words["sinks"] = normal(heads).requires_grad_()
    return [x.requires_grad_() for x in leaves], words, normal(batch, queries, heads, 5)


def run(leaves, words, grad, impl):
    out, lse = attention(*leaves, impl=impl, return_lse=True, **words)
    inputs = [*leaves, words["sinks"]] if "sinks" in words else leaves
    return [out, lse, *torch.autograd.grad(out, inputs, grad)]


@BUDGET
@given(problems())
def test_tiled_equals_the_specification(problem):
    leaves, words, grad = problem
    expected, found = (run(leaves, words, grad, impl) for impl in ("reference", "tiled"))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-10)
    assert all(torch.isfinite(x).all() for x in (found[0], *found[2:]))
    empty = torch.isneginf(found[1])
    assert (found[0][empty] == 0).all()


@BUDGET
@given(problems())
def test_no_buffer_is_read_before_it_is_written(problem):
    """Preallocated memory starts as NaN; whatever is not overwritten shows."""
    leaves, words, grad = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_OF_THREAD", threading.local())  # the kept score tile starts as NaN, too
        for name in ("new_empty",):
            plain = getattr(torch.Tensor, name)
            patch.setattr(torch.Tensor, name, lambda *a, _plain=plain, **k: _plain(*a, **k).fill_(float("nan")))
        for name in ("empty", "empty_like"):
            plain = getattr(torch, name)
            patch.setattr(torch, name, lambda *a, _plain=plain, **k: _plain(*a, **k).fill_(float("nan")))
        with torch.no_grad():
            out, lse = attention(*leaves, impl="tiled", return_lse=True, **words)
        clean = [x.detach() for x in leaves]
        sinks = words["sinks"].detach() if "sinks" in words else None
        request = _problem(clean, words)
        grads = tiled.backward(request, *clean, sinks, out, lse, grad)
    assert torch.isfinite(out).all()
    assert not torch.isnan(lse).any()
    assert all(torch.isfinite(x).all() for x in grads if x is not None)


def _problem(leaves, words):
    from workbench_kernels.masking import masking
    from workbench_kernels.softmax_attention.problem import Problem

    names = ("causal", "window", "key_padding", "mask", "block_mask", "block_size")
    masks = masking(leaves[0], leaves[1], **{name: words.get(name) for name in names})
    scale = words["scale"] or leaves[0].shape[-1] ** -0.5
    return Problem(masks, scale, words["softcap"], words["dropout"], words["seed"])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extra", [{}, {"dropout": 0.3, "seed": 3}, {"softcap": 4.0, "window": 5}])
def test_gradcheck(causal, extra):
    torch.manual_seed(0)
    leaves = [torch.randn(1, 11, h, 3, dtype=torch.float64, requires_grad=True) for h in (2, 1, 1)]
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, sinks):
        return attention(q, k, v, sinks=sinks, causal=causal, block_size=(5, 7), impl="tiled", **extra)

    assert torch.autograd.gradcheck(run, (*leaves, sinks))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [63, 100, 1000])
def test_error_stays_within_that_of_the_plain_computation(dtype, length):
    """The budget comes from the data: |fast - fp64| against |plain low precision - fp64|, for out and gradients."""
    torch.manual_seed(length)
    tensors = [torch.randn(1, length, 2, 32).to(dtype) for _ in range(4)]

    def with_gradients(function, dtype):
        *leaves, grad = (x.detach().to(dtype).requires_grad_() for x in tensors)
        out = function(*leaves)
        return [x.double() for x in (out.detach(), *torch.autograd.grad(out, leaves, grad.detach()))]

    def plain(q, k, v):
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * 32**-0.5
        return torch.einsum("bhij,bjhd->bihd", torch.softmax(scores, -1), v)

    truth = with_gradients(plain, torch.float64)
    rough = with_gradients(plain, dtype)
    ours = with_gradients(lambda *x: attention(*x, causal=False, impl="tiled"), dtype)
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), truth, rough, ours, strict=True):
        assert (c - a).square().mean() <= (b - a).square().mean() * 1.1, name


def test_float32_is_exact_to_five_digits():
    torch.manual_seed(1)
    leaves = [torch.randn(2, 300, h, 64, requires_grad=True) for h in (4, 2, 2)]
    grad = torch.randn(2, 300, 4, 64)
    single = run(leaves, {}, grad, "tiled")
    double = run([x.detach().double().requires_grad_() for x in leaves], {}, grad.double(), "reference")
    for a, b in zip(single, double, strict=True):
        assert (a.double() - b).abs().max() / b.abs().max() < 1e-5


def test_causal_is_aligned_bottom_right():
    q, k = torch.zeros(1, 2, 1, 4), torch.zeros(1, 5, 1, 4)
    v = torch.eye(5)[None, :, None]
    for impl in ("reference", "tiled"):
        seen = attention(q, k, v, impl=impl)[0, :, 0] > 0
        assert seen.tolist() == [[True] * 4 + [False], [True] * 5]
        turned = attention(torch.zeros(1, 5, 1, 4), torch.zeros(1, 2, 1, 4), v[:, :2], impl=impl)[0, :, 0]
        assert (turned[:3] == 0).all()
        assert (turned[3:].abs().sum(1) > 0).all()


@pytest.mark.parametrize("impl", ["reference", "tiled"])
def test_rows_that_see_nothing_are_zero_with_finite_gradients(impl):
    q, k, v = (torch.randn(1, 6, 2, 4, requires_grad=True) for _ in range(3))
    block_mask = torch.tensor([[True, False, False], [False, False, False], [True, True, True]])
    out, lse = attention(q, k, v, causal=False, block_mask=block_mask, block_size=2, return_lse=True, impl=impl)
    assert (out[:, 2:4] == 0).all()
    assert torch.isneginf(lse[:, 2:4]).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_a_key_head_is_never_repeated_in_memory(monkeypatch):
    """Grouped heads share one packed copy: the chunk's keys have as many rows as key heads."""
    seen = []
    load = tiles.Chunk.load
    monkeypatch.setattr(tiles.Chunk, "load", lambda self, *x: (load(self, *x), seen.append(self.k.shape[0]))[0])
    attention(torch.randn(2, 40, 8, 4), *(torch.randn(2, 40, 2, 4) for _ in range(2)), impl="tiled")
    assert sum(seen) == 2 * 2


def test_a_long_batch_is_cut_into_chunks_and_still_exact(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_CELLS", 1 << 8)
    q, k, v = (torch.randn(5, 33, h, 4, dtype=torch.float64) for h in (6, 3, 3))
    words = {"mask": torch.rand(5, 6, 33, 33) > 0.5, "sinks": torch.randn(6).double(), "dropout": 0.2}
    torch.testing.assert_close(attention(q, k, v, impl="tiled", **words), attention(q, k, v, impl="reference", **words))


def test_dead_tiles_are_not_computed(monkeypatch):
    calls = []
    scores = tiles.Chunk.scores_and_slope
    monkeypatch.setattr(
        tiles.Chunk, "scores_and_slope", lambda self, *a, **k: (calls.append(a[1:]), scores(self, *a, **k))[1]
    )
    q, k, v = (torch.randn(1, 64, 1, 4) for _ in range(3))
    attention(q, k, v, causal=False, block_mask=torch.eye(8, dtype=torch.bool), block_size=8, impl="tiled")
    assert len(calls) == 8
    calls.clear()
    attention(q, k, v, causal=True, block_size=8, impl="tiled")
    assert len(calls) == 36
    calls.clear()
    attention(q, k, v, causal=True, window=8, block_size=8, impl="tiled")
    assert len(calls) == 15


def test_dropout_keeps_the_expected_share_and_ignores_the_tiling():
    v = torch.ones(1, 200, 1, 1)
    q = k = torch.zeros(1, 200, 1, 4)
    words = {"causal": False, "dropout": 0.25, "seed": 5}
    whole, cut = (attention(q, k, v, block_size=size, impl="tiled", **words) for size in (None, (7, 13)))
    torch.testing.assert_close(whole, cut)
    assert abs(float(whole.mean()) - 1.0) < 0.01
    assert not torch.equal(whole, attention(q, k, v, causal=False, dropout=0.25, seed=6))


def test_additive_mask_is_trained_by_the_reference():
    q, k, v = (torch.randn(1, 5, 1, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: attention(q, k, v, mask=m), (mask,))


def test_everything_runs_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, workbench_kernels as wk\n"
        "q = torch.randn(1, 40, 2, 8, requires_grad=True)\n"
        "out, lse = wk.attention(q, q, q, return_lse=True); out.sum().backward()\n"
        "wk.pooled_attention(q, q, lse, shape=(8, 8)); wk.attention_statistics(q, q, lse)\n"
        "assert 'workbench' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
