"""A compact plan says exactly what transformers' full mask says, or there is no plan."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import masking_utils as mu

from workbench.models.masks import MaskPlan, compact_mask, compact_plan, plan_of, recognise

PATTERNS = {
    "causal": mu.causal_mask_function,
    "bidirectional": mu.bidirectional_mask_function,
    "window": mu.sliding_window_causal_mask_function(4),
    "both-ways window": mu.sliding_window_bidirectional_mask_function(4),
    "chunked": mu.chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.int)),
    "packed": mu.and_masks(mu.causal_mask_function, mu.packed_sequence_mask_function(torch.zeros(2, 40))),
    "mine": lambda b, h, q, k: (k <= q) & (k % 2 == 0),
}
PLAIN = {"causal": (True, None), "bidirectional": (False, None), "window": (True, 4)}


def spelled_out(plan: MaskPlan, queries: int, keys: int) -> torch.Tensor:
    """(B|1, 1, Nq, Nk) of a plan, by its documented meaning."""
    i, j = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)[None, :]
    see = (j <= i) if plan.causal else torch.ones(queries, keys, dtype=torch.bool)
    if plan.window is not None:
        see = see & (j > i - plan.window)
    see = see[None, None]
    return see if plan.padding is None else see & plan.padding[:, None, None, :]


@pytest.mark.parametrize("name", PATTERNS)
def test_only_plain_patterns_are_recognised(name):
    assert recognise(PATTERNS[name]) == PLAIN.get(name)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(PATTERNS)),
    new=st.integers(1, 9),
    past=st.integers(0, 9),
    beyond=st.integers(0, 3),
    dropped=st.integers(0, 3),
    real=st.integers(0, 2**36),
    padded=st.booleans(),
)
def test_plans_equal_full_masks(name, new, past, beyond, dropped, real, padded):
    """``beyond``: a static cache's unused keys; ``dropped``: keys that a window cache no longer holds."""
    dropped = min(dropped, past)
    keys = past + new + beyond - dropped
    bits = torch.tensor(
        [[(real >> (row * 18 + column)) & 1 for column in range(past + new)] for row in range(2)]
    ).bool()
    call = {
        "q_length": new,
        "kv_length": keys,
        "q_offset": past,
        "kv_offset": dropped,
        "mask_function": PATTERNS[name],
        "attention_mask": bits if padded else None,
    }
    full = mu.sdpa_mask(batch_size=2, **call, allow_is_causal_skip=False).expand(2, 1, new, keys)
    plan = compact_plan(**call)
    made = compact_mask(batch_size=2, **call)
    read = plan_of(made, causal=True, window=None)
    if plan is None:
        assert name not in PLAIN or beyond
        assert torch.equal(made.expand(2, 1, new, keys), full)
        assert read.dense is made
    else:
        assert torch.equal(spelled_out(plan, new, keys).expand(2, 1, new, keys), full)
        assert torch.equal(spelled_out(read, new, keys).expand(2, 1, new, keys), full)
        assert made is None or made.shape == (2, keys)


def test_a_mask_without_a_plan_is_read_by_its_shape():
    assert plan_of(None, causal=True, window=3) == MaskPlan(True, 3)
    padding = torch.ones(2, 5)
    assert plan_of(padding, causal=False, window=None).padding.dtype == torch.bool
    dense = torch.zeros(1, 1, 5, 5)
    assert plan_of(dense, causal=True, window=None).dense is dense
