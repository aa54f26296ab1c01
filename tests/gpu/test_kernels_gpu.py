"""The kernels on the card, held to float64 on the CPU; the budget is the error of plain low precision on the card."""

from __future__ import annotations

import pytest
import torch

from workbench_kernels import attention, attention_region, pooled_attention

SIZES = [(63, 63, 4, 2, 32), (100, 217, 6, 2, 64), (1000, 1000, 8, 8, 64), (1, 513, 8, 4, 128)]
MASKS = [{"causal": True}, {"causal": False}, {"causal": True, "window": 40}, {"causal": True, "softcap": 15.0}]


def draw(size: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    queries, keys, heads, kv_heads, dim = size
    gen = torch.Generator().manual_seed(seed)
    shapes = [(2, queries, heads, dim), (2, keys, kv_heads, dim), (2, keys, kv_heads, dim)]
    return [torch.randn(shape, generator=gen).to(dtype) for shape in shapes]


def run(
    impl: str, inputs: list[torch.Tensor], device: str, dtype: torch.dtype, **settings: object
) -> list[torch.Tensor]:
    q, k, v = (x.to(device, dtype).requires_grad_() for x in inputs)
    out = attention(q, k, v, impl=impl, **settings)  # type: ignore[arg-type]
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(device, dtype)
    (out * weight).sum().backward()
    return [x.detach().double().cpu() for x in (out, q.grad, k.grad, v.grad)]


@pytest.mark.parametrize("settings", MASKS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tiled_is_within_the_error_of_plain_low_precision(
    size: tuple[int, ...], dtype: torch.dtype, settings: dict[str, object]
) -> None:
    inputs = draw(size, dtype)
    exact = run("reference", inputs, "cpu", torch.float64, **settings)
    plain = run("reference", inputs, "cuda", dtype, **settings)
    fast = run("tiled", inputs, "cuda", dtype, **settings)
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), exact, plain, fast):
        budget = 2 * (b - a).abs().max() + 4 * torch.finfo(dtype).eps * a.abs().max()
        assert torch.isfinite(c).all(), name
        assert (c - a).abs().max() <= budget, name


def test_maps_on_the_card_equal_maps_on_the_cpu() -> None:
    q, k, v = draw((700, 700, 8, 4, 32), torch.float32)
    _, lse = attention(q, k, v, return_lse=True, impl="reference")
    pooled = pooled_attention(q, k, lse, shape=(64, 64), reduce="max")
    there = pooled_attention(q.cuda(), k.cuda(), lse.cuda(), shape=(64, 64), reduce="max").cpu()
    torch.testing.assert_close(there, pooled, atol=2e-5, rtol=1e-3)
    region = attention_region(q.cuda(), k.cuda(), lse.cuda(), rows=slice(100, 200), cols=slice(0, 700)).cpu()
    torch.testing.assert_close(region.sum(-1), torch.ones(1, 8, 100).expand(2, 8, 100), atol=1e-4, rtol=1e-4)


def test_looking_takes_memory_linear_in_length() -> None:
    peaks = []
    for length in (8192, 16384):
        q, k, v = (x.cuda() for x in draw((length, length, 8, 4, 32), torch.bfloat16))
        _, lse = attention(q, k, v, return_lse=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        pooled_attention(q, k, lse, shape=(512, 512))
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 2.5 * peaks[0]
    assert peaks[1] < 16384 * 16384  # bytes: far below one N x N map of one head
