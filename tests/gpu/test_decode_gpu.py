"""Decode and prefill over a cache on the card, held to float64; the budget is the error of plain low precision."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from workbench_kernels import attention, decode_attention, paged_attention

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
import decode_cases

KINDS = [
    *((torch.bfloat16, dim) for dim in (64, 128, 256)),
    *((torch.float16, dim) for dim in (80, 128)),
    *((torch.float32, dim) for dim in (16, 128, 256)),
]
LENGTHS = [1000, 0, 63, 257, 1]
HEADS = [(32, 8), (8, 8), (32, 1), (6, 2)]
WORDS = [{"window": 40}, {"softcap": 15.0}, {"scale": -0.3}, {"window": 300, "softcap": 9.0}]


def on_card(q: Any, k: Any, v: Any, where: dict[str, Any], **words: Any) -> Any:
    moved = {name: x.cuda() for name, x in where.items()}
    words = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in words.items()}
    call = paged_attention if words.pop("prefill", False) else decode_attention
    return [x.double().cpu() for x in call(q.cuda(), k.cuda(), v.cuda(), return_lse=True, **moved, **words)]


def hold(q: Any, k: Any, v: Any, where: dict[str, Any], **words: Any) -> None:
    """The Triton path against float64, with twice the error of the plain path in the same precision as budget."""
    numbers = {name: word for name, word in words.items() if name not in ("splits", "prefill")}
    reference = paged_attention(
        q.double(), k.double(), v.double(), return_lse=True, impl="reference", **where, **numbers
    )
    plain = paged_attention(q, k, v, return_lse=True, impl="reference", **where, **numbers)
    fast = on_card(q, k, v, where, impl="triton", **words)
    budget = 2 * (plain[0] - reference[0]).abs().max() + 4 * torch.finfo(q.dtype).eps * reference[0].abs().max()
    assert torch.isfinite(fast[0]).all()
    assert (fast[0] - reference[0]).abs().max() <= budget
    blind = torch.isneginf(reference[1])
    assert torch.equal(torch.isneginf(fast[1]), blind)
    assert (fast[1] - reference[1])[~blind].abs().max() <= 1e-2
    assert (fast[0][blind] == 0).all()


@pytest.mark.parametrize("layout", decode_cases.LAYOUTS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_layout_head_dim_and_dtype(layout: str, kind: tuple[torch.dtype, int]) -> None:
    case = decode_cases.draw(layout, LENGTHS, heads=8, kv_heads=2, dim=kind[1], dtype=kind[0])
    for splits in (None, 7):
        hold(*case, splits=splits)
    hold(*case, prefill=True)


@pytest.mark.parametrize("layout", ["contiguous", "paged-16"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("queries", [3, 8])
def test_head_groups_and_several_queries(layout: str, heads: tuple[int, int], queries: int) -> None:
    case = decode_cases.draw(
        layout, LENGTHS, queries=queries, heads=heads[0], kv_heads=heads[1], dim=128, dtype=torch.bfloat16
    )
    hold(*case)
    hold(*case, splits=1)


@pytest.mark.parametrize("layout", ["slots", "paged-64"])
@pytest.mark.parametrize(
    "words", [{"window": 40}, {"softcap": 15.0}, {"scale": 0.3}, {"window": 300, "softcap": 9.0}], ids=str
)
@pytest.mark.parametrize("prefill", [False, True])
def test_window_soft_cap_and_scale(layout: str, words: dict[str, Any], prefill: bool) -> None:
    hold(*decode_cases.draw(layout, LENGTHS, dim=128, dtype=torch.bfloat16), prefill=prefill, **words)


@pytest.mark.parametrize("splits", [None, 1])
@pytest.mark.parametrize("prefill", [False, True])
def test_sinks(splits: int | None, prefill: bool) -> None:
    q, k, v, where = decode_cases.draw("paged-16", LENGTHS, dim=64, dtype=torch.float16)
    sinks = torch.linspace(-2, 2, q.shape[2])
    reference = paged_attention(
        q.double(), k.double(), v.double(), impl="reference", sinks=sinks.double(), return_lse=True, **where
    )
    words = {"prefill": True} if prefill else {"splits": splits}
    fast = on_card(q, k, v, where, impl="triton", sinks=sinks, **words)
    for a, b in zip(fast, reference):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("layout", ["contiguous", "slots", "paged-16", "paged-256"])
@pytest.mark.parametrize("queries", [63, 500])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_prefill_longer_than_a_tile(layout: str, queries: int, dtype: torch.dtype) -> None:
    case = decode_cases.draw(layout, [700, 500, 130], queries=queries, heads=4, kv_heads=2, dim=128, dtype=dtype)
    hold(*case, prefill=True)
    hold(*case, prefill=True, window=100)


def test_a_captured_graph_follows_growing_lengths() -> None:
    """Lengths and tables are read on the card, so one graph serves a whole generation."""
    q, k, v, where = decode_cases.draw("paged-16", [300, 200], dim=128, dtype=torch.bfloat16)
    q, k, v, table = (x.cuda() for x in (q, k, v, where["block_table"]))
    lengths = where["lengths"].cuda()
    decode_attention(q, k, v, lengths=lengths, block_table=table)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attention(q, k, v, lengths=lengths, block_table=table)
    for now in ([300, 200], [17, 1], [150, 0]):
        lengths.copy_(torch.tensor(now, dtype=torch.int32))
        graph.replay()
        exact = decode_attention(q, k, v, lengths=lengths, block_table=table, impl="reference")
        torch.testing.assert_close(out, exact, atol=1e-2, rtol=1e-2)


def test_more_sequences_than_fit_one_share() -> None:
    """Three hundred short ragged sequences: shares cross from one into the next."""
    lengths = [int(n) for n in torch.randint(0, 90, (300,), generator=torch.Generator().manual_seed(2))]
    hold(*decode_cases.draw("paged-16", lengths, dim=64, dtype=torch.bfloat16))


@pytest.mark.parametrize("words", [{}, {"window": 50}, {"softcap": 8.0}], ids=str)
def test_attention_of_a_few_queries_is_split(words: dict[str, Any]) -> None:
    gen = torch.Generator().manual_seed(3)
    shapes = [(2, 3, 8, 128), (2, 1500, 2, 128), (2, 1500, 2, 128)]
    q, k, v = (torch.randn(shape, generator=gen).bfloat16() for shape in shapes)
    exact = attention(q.double(), k.double(), v.double(), impl="reference", **words)
    plain = attention(q, k, v, impl="reference", **words)
    split = attention(q.cuda(), k.cuda(), v.cuda(), impl="split", **words)
    assert torch.equal(split, attention(q.cuda(), k.cuda(), v.cuda(), **words))  # what "auto" picks
    budget = 2 * (plain - exact).abs().max() + 4 * torch.finfo(q.dtype).eps * exact.abs().max()
    assert (split.cpu() - exact).abs().max() <= budget


def test_offsets_beyond_31_bits() -> None:
    """A slot that starts 2^31 elements into the cache."""
    far = 2**31 // (256 * 64) + 1
    k, v = (torch.zeros(far + 1, 256, 1, 64, dtype=torch.float16, device="cuda") for _ in range(2))
    k[far].normal_()
    v[far].normal_()
    q = torch.randn(1, 1, 4, 64, device="cuda", dtype=torch.float16)
    words = {"lengths": torch.tensor([200], device="cuda"), "slots": torch.tensor([far], device="cuda")}
    table = {"lengths": words["lengths"], "block_table": torch.tensor([[far]], dtype=torch.int32, device="cuda")}
    exact = decode_attention(q, k, v, impl="reference", **words)
    for where in (words, table):
        torch.testing.assert_close(decode_attention(q, k, v, **where), exact, atol=5e-3, rtol=5e-3)
        torch.testing.assert_close(paged_attention(q, k, v, **where), exact, atol=5e-3, rtol=5e-3)


def test_lengths_beyond_the_capacity_are_refused_on_request_and_never_read_past_the_cache() -> None:
    q, k, v, _ = decode_cases.draw("contiguous", [50, 50], dim=64, dtype=torch.float16)
    q, k, v = (x.nan_to_num().cuda() for x in (q, k, v))
    lengths = torch.tensor([50, 10**6], dtype=torch.int32, device="cuda")
    with pytest.raises(ValueError, match="capacity"):
        decode_attention(q, k, v, lengths=lengths, check=True)
    cut = decode_attention(q, k, v, lengths=lengths)
    whole = torch.tensor([50, k.shape[1]], dtype=torch.int32, device="cuda")
    torch.testing.assert_close(cut, decode_attention(q, k, v, lengths=whole))
