"""The map kernels on the card, held to float64 on the CPU; the budget is the error of the plain float32 path there.

Low-precision inputs are rounded first and are exact from there on, so that only the arithmetic is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench_kernels import (
    attention,
    attention_mass,
    attention_region,
    attention_statistics,
    pooled_attention,
    row_lse,
)

#: (batch, queries, keys, heads, key heads, head dim), dtype, masks; sizes are ragged against every tile.
CASES: dict[str, tuple[tuple[int, ...], torch.dtype, dict[str, Any]]] = {
    "causal bf16 128": ((1, 1000, 1000, 4, 1, 128), torch.bfloat16, {}),
    "causal bf16 64": ((2, 700, 1063, 4, 2, 64), torch.bfloat16, {}),
    "full fp16 128": ((1, 513, 900, 2, 2, 128), torch.float16, {"causal": False}),
    "window bf16 64": ((1, 1000, 1000, 4, 2, 64), torch.bfloat16, {"window": 300}),
    "window alone fp16 32": ((1, 300, 700, 2, 1, 32), torch.float16, {"window": 40, "causal": False}),
    "soft cap bf16 256": ((1, 400, 600, 2, 1, 256), torch.bfloat16, {"softcap": 15.0}),
    "padding bf16 80": ((2, 600, 600, 4, 2, 80), torch.bfloat16, {"padded": True}),
    "causal fp32 64": ((1, 500, 500, 4, 2, 64), torch.float32, {}),
    "window and padding fp32 128": ((2, 300, 333, 2, 1, 128), torch.float32, {"padded": True, "window": 130}),
    "aligned bf16 128": ((1, 1024, 1024, 8, 2, 128), torch.bfloat16, {}),
    "one query bf16 128": ((2, 1, 777, 8, 2, 128), torch.bfloat16, {}),
}
#: Rows x columns of pooled maps: wide even and uneven bins, narrow ones, single cells, one bin.
SHAPES = [(1, 1), (8, 8), (4, 3), (60, 50), (300, 9), (2000, 2000)]
#: Those of them that are also compared by their maxima (each is a kernel to compile).
BY_MAXIMUM = [(8, 8), (4, 3), (300, 9)]


class Sample:
    """One case: inputs on the card, the exact answer of the plain path in float64 on the CPU, its float32 answer."""

    def __init__(self, name: str, layout: str = "bshd"):
        (batch, queries, keys, heads, kv_heads, dim), dtype, words = CASES[name]
        gen = torch.Generator().manual_seed(len(name))
        words = dict(words)
        if words.pop("padded", False):
            words["key_padding"] = torch.rand(batch, keys, generator=gen) > 0.3
        sizes = ((queries, heads), (keys, kv_heads))
        q, k = (torch.randn(batch, length, h, dim, generator=gen).to(dtype) for length, h in sizes)
        self.cpu = (q.double(), k.double())
        self.plain = tuple(x.float().cuda() for x in (q, k))
        self.fast = tuple(laid_out(x.cuda(), layout) for x in (q, k))
        self.words = words
        self.cuda_words = {key: x.cuda() if isinstance(x, Tensor) else x for key, x in words.items()}
        self.lse = attention(*self.cpu, self.cpu[1][..., :1], impl="reference", return_lse=True, **words)[1]

    def holds(self, function: Callable[..., Any], read: Callable[[Any], Tensor] = lambda found: found, **extra) -> None:
        """|fast - exact| <= 2 |plain float32 - exact| and eight roundings of the largest value."""
        exact = read(function(*self.cpu, self.lse, impl="torch", **extra, **self.words))
        plain, fast = (
            read(function(*inputs, self.lse.float().cuda(), impl=impl, **extra, **self.cuda_words)).double().cpu()
            for inputs, impl in ((self.plain, "torch"), (self.fast, "triton"))
        )
        assert torch.isfinite(fast).all()
        budget = 2 * (plain - exact).abs().max() + 8 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert (fast - exact).abs().max() <= budget


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values as a view of another memory layout."""
    if layout == "bhsd":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "gaps":
        return torch.nn.functional.pad(x, (0, 8, 0, 1))[:, :, :-1, :-8]
    return x


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kernel leaves unwritten is NaN (or an absurd key)."""
    empty = torch.empty

    def poison(*size: Any, **words: Any) -> Tensor:
        made = empty(*size, **words)
        return made.fill_(torch.nan if made.is_floating_point() else -77)

    monkeypatch.setattr(torch, "empty", poison)


@pytest.fixture(params=CASES, scope="module")
def sample(request: pytest.FixtureRequest) -> Sample:
    return Sample(request.param)


def test_pooled_maps(sample: Sample) -> None:
    for shape in SHAPES:
        sample.holds(pooled_attention, shape=shape, reduce="sum")
    for shape in BY_MAXIMUM:
        sample.holds(pooled_attention, shape=shape, reduce="max")


def test_regions_and_mass(sample: Sample) -> None:
    queries, keys = sample.cpu[0].shape[1], sample.cpu[1].shape[1]
    rows, cols = torch.arange(0, queries, 3).flip(0), torch.arange(keys - 1, 0, -2)
    sample.holds(attention_region, rows=rows, cols=cols, heads=[1, 0])
    sample.holds(attention_region, rows=slice(0, min(100, queries)), cols=slice(5, 300))
    for chosen in (slice(0, 200), [3, 3, 50, 7], torch.arange(keys) % 5 == 0):
        sample.holds(attention_mass, keys=chosen)


def test_statistics(sample: Sample) -> None:
    for name in ("entropy", "mass", "mean_distance", "sink_mass", "top_probs", "distance_profile"):
        sample.holds(attention_statistics, lambda found, name=name: found[name], topk=5, sink_keys=3)
    found = attention_statistics(*sample.fast, sample.lse.float().cuda(), topk=5, **sample.cuda_words)
    dense = attention_region(*sample.cpu, sample.lse, **sample.words)
    keys = found["top_keys"].cpu()
    kept = dense.gather(-1, keys.clamp(min=0)).masked_fill(keys < 0, 0.0)
    torch.testing.assert_close(kept, found["top_probs"].double().cpu(), atol=1e-5, rtol=1e-4)


def test_row_lse(sample: Sample) -> None:
    found = row_lse(*sample.fast, impl="triton", **sample.cuda_words).double().cpu()
    plain = row_lse(*sample.plain, impl="torch", **sample.cuda_words).double().cpu()
    real = torch.isfinite(sample.lse)
    assert torch.equal(torch.isfinite(found), real)
    worst = (plain - sample.lse)[real].abs().max() if bool(real.any()) else torch.zeros(())
    assert (found - sample.lse)[real].abs().max() <= 2 * worst + 1e-5


@pytest.mark.parametrize("layout", ["bhsd", "gaps"])
def test_other_layouts_of_memory(layout: str) -> None:
    sample = Sample("causal bf16 64", layout)
    for shape in ((8, 8), (4, 3), (60, 50)):
        sample.holds(pooled_attention, shape=shape, reduce="sum")
    sample.holds(attention_mass, keys=slice(0, 100))


def test_the_same_look_gives_the_same_bits() -> None:
    sample = Sample("causal bf16 128")
    lse = sample.lse.float().cuda()
    for shape in ((8, 8), (3, 7), (60, 50)):
        first, second = (pooled_attention(*sample.fast, lse, shape=shape, impl="triton") for _ in range(2))
        assert torch.equal(first, second)


def test_a_long_map_beyond_32_bit_offsets() -> None:
    """Keys that fill more than 2^31 elements; compared on a strip that plain float64 can afford."""
    free, _ = torch.cuda.mem_get_info()
    if free < 30 << 30:
        pytest.skip("needs 30 GB of free memory on the card")
    heads, dim, length = 130, 128, 1 << 17
    k = torch.empty(1, length, heads, dim, device="cuda", dtype=torch.bfloat16).normal_()
    assert k.numel() > 1 << 31
    q = torch.randn(1, 256, heads, dim, device="cuda", dtype=torch.bfloat16)
    lse = row_lse(q, k)
    found = pooled_attention(q, k, lse, shape=(2, 64), reduce="sum", heads=[heads - 1], impl="triton")
    last = (q[:, :, -1:].double(), k[:, :, -1:].double())
    exact = pooled_attention(*last, row_lse(*last), shape=(2, 64), reduce="sum", impl="torch")
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-4)


def test_a_long_look_takes_memory_linear_in_length() -> None:
    peaks = []
    for length in (16384, 32768):
        q = torch.randn(1, length, 8, 64, device="cuda", dtype=torch.bfloat16)
        k = torch.randn(1, length, 2, 64, device="cuda", dtype=torch.bfloat16)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        lse = row_lse(q, k)
        pooled_attention(q, k, lse, shape=(500, 500))
        attention_statistics(q, k, lse)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 2.2 * peaks[0]
    assert peaks[1] < 32768 * 32768  # bytes: a quarter of one float32 map of one head
