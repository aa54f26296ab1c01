"""Decode over a cache: the plain paths against attention over each sequence's own tokens, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import decode_cases
import pytest
import torch

from workbench_kernels import attention, decode_attention, paged_attention

LENGTHS = [70, 0, 33, 1]


def by_hand(case: tuple, b: int, **words: Any) -> torch.Tensor:
    """Attention over the tokens that ``decode_cases`` drew for sequence b, by the attention kernel's specification."""
    q, k, v, where = case
    n = int(where["lengths"][b])
    if "slots" in where:
        rows = [x[where["slots"][b], :n] for x in (k, v)]
    elif "block_table" in where:
        token = torch.arange(n)
        block = where["block_table"][b, token // k.shape[1]].long()
        rows = [x[block, token % k.shape[1]] for x in (k, v)]
    else:
        rows = [x[b, :n] for x in (k, v)]
    return attention(q[b : b + 1], rows[0][None], rows[1][None], causal=True, impl="reference", **words)


@pytest.mark.parametrize("layout", decode_cases.LAYOUTS)
@pytest.mark.parametrize("impl", ["reference", "tiled", "auto"])
@pytest.mark.parametrize("words", [{}, {"window": 9}, {"softcap": 3.0}, {"scale": 0.2}], ids=str)
def test_each_sequence_attends_to_its_own_tokens(layout: str, impl: str, words: dict[str, Any]) -> None:
    case = decode_cases.draw(layout, LENGTHS, queries=3, dtype=torch.float64)
    q, k, v, where = case
    out, lse = decode_attention(q, k, v, return_lse=True, impl=impl, **where, **words)
    for b in range(len(LENGTHS)):
        torch.testing.assert_close(out[b : b + 1], by_hand(case, b, **words), atol=1e-10, rtol=1e-10)
    assert torch.isneginf(lse[1]).all()
    assert (out[1] == 0).all()
    assert torch.isneginf(lse[3, :2]).all()  # of three queries over one token, two see nothing
    assert torch.isfinite(lse[3, 2]).all()


@pytest.mark.parametrize("layout", decode_cases.LAYOUTS)
def test_decode_and_prefill_say_the_same(layout: str) -> None:
    q, k, v, where = decode_cases.draw(layout, LENGTHS, queries=4)
    sinks = torch.linspace(-1, 1, q.shape[2])
    torch.testing.assert_close(
        decode_attention(q, k, v, sinks=sinks, **where), paged_attention(q, k, v, sinks=sinks, **where)
    )


def test_layouts_of_equal_tokens_give_equal_bits() -> None:
    """Addressing must not change a single bit on the plain path: the same tokens, wherever they lie."""
    found = []
    for layout in decode_cases.LAYOUTS:
        q, k, v, where = decode_cases.draw(layout, LENGTHS, queries=2, seed=4)
        found.append(decode_attention(q, k, v, **where))
    for other in found[1:]:
        assert torch.equal(found[0], other)


def test_an_empty_batch_is_an_empty_answer() -> None:
    q, cache = torch.zeros(0, 1, 4, 16), torch.zeros(0, 8, 2, 16)
    out, lse = decode_attention(q, cache, cache, lengths=torch.zeros(0, dtype=torch.int32), return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (0, 1, 4)


def cache(**changes: Any) -> dict[str, Any]:
    q, k, v, where = decode_cases.draw("contiguous", [5, 3], dtype=torch.float32)
    return {"q": q, "k_cache": k, "v_cache": v, **where, **changes}


def blocks(**changes: Any) -> dict[str, Any]:
    q, k, v, where = decode_cases.draw("paged-4", [5, 3])
    return {"q": q, "k_cache": k, "v_cache": v, **where, **changes}


OUTSIDE = torch.tensor([[0, 99], [1, 0]], dtype=torch.int32)
WIDE = torch.zeros(2, 1, 8, 300)
BAD: list[tuple[str, Callable[[], dict[str, Any]]]] = [
    (r"^q must have 4 dimensions", lambda: cache(q=torch.zeros(2, 8, 32))),
    (r"^q needs at least one query", lambda: cache(q=torch.zeros(2, 0, 8, 32))),
    (r"q has 9 queries.*1\.\.8.*paged_attention", lambda: cache(q=torch.zeros(2, 9, 8, 32))),
    (r"q holds NaN", lambda: cache(q=torch.full((2, 1, 8, 32), torch.nan))),
    (r"k_cache is torch.float64 but q is torch.float32", lambda: cache(k_cache=cache()["k_cache"].double())),
    (r"v_cache has shape", lambda: cache(v_cache=cache()["v_cache"][:, :4])),
    (r"k_cache has head dim", lambda: cache(q=torch.zeros(2, 1, 8, 16))),
    (r"k_cache has 2 heads, which does not divide the 3", lambda: cache(q=torch.zeros(2, 1, 3, 32))),
    (r"k_cache has 2 rows but q has batch 1", lambda: cache(q=torch.zeros(1, 1, 8, 32), lengths=torch.tensor([1]))),
    (r"at most 256, got 300", lambda: cache(q=WIDE, k_cache=WIDE, v_cache=WIDE)),
    (r"lengths must be an int32 or int64 tensor, got torch.float32", lambda: cache(lengths=torch.zeros(2))),
    (r"lengths must be an int32 or int64 tensor, got list", lambda: cache(lengths=[5, 3])),
    (r"lengths must have shape \(2,\)", lambda: cache(lengths=torch.tensor([5]))),
    (r"lengths must lie in 0\.\.8.*sequence 1 has 9", lambda: cache(lengths=torch.tensor([5, 9]))),
    (r"lengths must lie in 0\.\.8.*sequence 0 has -1", lambda: cache(lengths=torch.tensor([-1, 3]))),
    (r"slots or block_table, not both", lambda: blocks(slots=torch.tensor([0, 1]))),
    (r"slots must have shape", lambda: cache(slots=torch.tensor([0]))),
    (r"slots entries must lie in 0\.\.1.*\(1,\) is 2", lambda: cache(slots=torch.tensor([0, 2]))),
    (r"block_table must be an int32 tensor", lambda: blocks(block_table=torch.zeros(2, 2, dtype=torch.int64))),
    (r"block_table must have shape \(batch, max blocks\)", lambda: blocks(block_table=torch.zeros(3, 2).int())),
    (
        r"block_table entries must lie in 0\.\.\d.*\(0, 1\) is 99",
        lambda: blocks(block_table=torch.tensor([[0, 99], [1, 0]]).int()),
    ),
    (r"power of two.*got 3", lambda: blocks(k_cache=blocks()["k_cache"][:, :3], v_cache=blocks()["v_cache"][:, :3])),
    (r"window must be at least 1", lambda: cache(window=0)),
    (r"window must be at least 1", lambda: cache(window=1.5)),
    (r"softcap must be greater than 0 and finite", lambda: cache(softcap=float("inf"))),
    (r"splits must be at least 1", lambda: cache(splits=1.5)),
    (r"sinks must be a torch.Tensor", lambda: cache(sinks=[0.0, 0.0])),
    (r"softcap must be greater than 0", lambda: cache(softcap=0.0)),
    (r"scale must be finite", lambda: cache(scale=float("nan"))),
    (r"splits must be at least 1", lambda: cache(splits=0)),
    (r"sinks must be floating point of shape", lambda: cache(sinks=torch.zeros(3))),
    (r"impl must be one of 'auto', 'reference', 'tiled', 'triton'", lambda: cache(impl="cuda")),
]


@pytest.mark.parametrize(("told", "words"), BAD, ids=[told[:40] for told, _ in BAD])
def test_bad_input_is_a_value_error_that_names_the_argument(told: str, words: Callable[[], dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match=told):
        decode_attention(**words())


def test_entries_that_no_token_needs_may_hold_anything() -> None:
    words = blocks()
    assert (words["block_table"] == 2**30).any()
    assert torch.isfinite(decode_attention(**words)).all()


def test_contents_are_read_on_request_only() -> None:
    words = cache(slots=torch.tensor([0, 1]), lengths=torch.tensor([2, 3]))
    torch.testing.assert_close(decode_attention(**words, check=False), decode_attention(**words, check=True))
