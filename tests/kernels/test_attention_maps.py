"""The microscope's functions against the dense probability matrix, and their memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.systems.meter import peak_bytes
from workbench_kernels import (
    attention,
    attention_mass,
    attention_region,
    attention_statistics,
    pooled_attention,
    predicted_cost,
    row_lse,
)
from workbench_kernels.maps.problem import distance_edges

BUDGET = settings(max_examples=40, deadline=None)


@st.composite
def looks(draw):
    """(q, k, lse, words, dense probabilities (B, H, Nq, Nk)) in float64."""
    batch, kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    queries, keys, heads = draw(st.integers(1, 60)), draw(st.integers(1, 60)), kv_heads * group
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    q = torch.randn(batch, queries, heads, 8, generator=generator, dtype=torch.float64)
    k = torch.randn(batch, keys, kv_heads, 8, generator=generator, dtype=torch.float64)
    words = {
        "causal": draw(st.booleans()),
        "window": draw(st.sampled_from([None, 3, 20])),
        "softcap": draw(st.sampled_from([None, 5.0])),
    }
    if draw(st.booleans()):
        words["key_padding"] = torch.rand(batch, keys, generator=generator) > 0.3
    if draw(st.booleans()):
        words["mask"] = torch.rand(batch, heads, queries, keys, generator=generator) > 0.4
    sinks = {"sinks": torch.randn(heads, generator=generator)} if draw(st.booleans()) else {}
    eye = torch.eye(keys, dtype=torch.float64)[None, :, None].repeat(batch, 1, kv_heads, 1)
    dense, lse = attention(q, k, eye, impl="reference", return_lse=True, **words, **sinks)
    return q, k, lse, words, dense.transpose(1, 2), sinks


@BUDGET
@given(looks(), st.data())
def test_region_mass_and_lse(look, data):
    q, k, lse, words, dense, sinks = look
    torch.testing.assert_close(row_lse(q, k, **words, **sinks), lse)
    torch.testing.assert_close(attention_region(q, k, lse, **words), dense)
    pick = st.lists(st.integers(0, q.shape[2] - 1), min_size=1, max_size=4)
    heads, rows = data.draw(pick), data.draw(st.lists(st.integers(0, q.shape[1] - 1), min_size=1, max_size=5))
    found = attention_region(q, k, lse, heads=heads, rows=rows, cols=slice(0, k.shape[1], 2), **words)
    torch.testing.assert_close(found, dense[:, heads][:, :, rows][..., ::2])
    keys = data.draw(st.lists(st.integers(0, k.shape[1] - 1), min_size=1, max_size=6))
    torch.testing.assert_close(attention_mass(q, k, lse, keys=keys, **words), dense[..., keys].sum(-1))


@BUDGET
@given(looks(), st.integers(1, 70), st.integers(1, 70), st.sampled_from(["mean", "sum", "max"]))
def test_pooled_map_is_the_pooled_dense_map(look, rows, cols, reduce):
    q, k, lse, words, dense, _ = look
    found = pooled_attention(q, k, lse, shape=(rows, cols), reduce=reduce, **words)
    assert found.shape[2:] == (min(rows, q.shape[1]), min(cols, k.shape[1]))
    over = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[reduce]
    edges = [[i * n // m for i in range(m + 1)] for n, m in zip(dense.shape[2:], found.shape[2:], strict=True)]
    for i, (top, bottom) in enumerate(zip(edges[0], edges[0][1:], strict=False)):
        for j, (left, right) in enumerate(zip(edges[1], edges[1][1:], strict=False)):
            torch.testing.assert_close(found[:, :, i, j], over(dense[:, :, top:bottom, left:right], dim=(2, 3)))


@BUDGET
@given(looks())
def test_statistics_are_those_of_the_dense_map(look):
    q, k, lse, words, dense, _ = look
    found = attention_statistics(q, k, lse, topk=5, sink_keys=2, **words)
    torch.testing.assert_close(found["entropy"], -torch.special.xlogy(dense, dense).sum(-1))
    torch.testing.assert_close(found["mass"], dense.sum(-1))
    torch.testing.assert_close(found["top_probs"], dense.topk(min(5, k.shape[1])).values)
    kept = dense.gather(-1, found["top_keys"].clamp(min=0)).where(found["top_keys"] >= 0, 0)
    torch.testing.assert_close(kept, found["top_probs"])
    real = words.get("key_padding", torch.ones(q.shape[0], k.shape[1], dtype=torch.bool))
    first = real & (real.cumsum(1) <= 2)
    torch.testing.assert_close(found["sink_mass"], (dense * first[:, None, None]).sum(-1))
    distances_are_those_of(dense, found)


def distances_are_those_of(dense: torch.Tensor, found: dict[str, torch.Tensor]) -> None:
    queries, keys = dense.shape[2:]
    away = (torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)[None]).abs()
    torch.testing.assert_close(found["mean_distance"] * found["mass"], (dense * away).sum(-1))
    which = torch.bucketize(away, distance_edges(keys), right=True) - 1
    for b in range(len(found["distance_edges"])):
        expected = (dense * (which == b)).sum(-1).mean(-1)
        torch.testing.assert_close(found["distance_profile"][..., b], expected)


@pytest.mark.parametrize(("queries", "keys"), [(40, 3000), (3000, 40), (300, 1700)])
def test_distances_far_from_the_diagonal(queries, keys):
    """Long enough that most tiles lie where a tile meets at most one power of two."""
    q, k = torch.randn(1, queries, 2, 8, dtype=torch.float64), torch.randn(1, keys, 1, 8, dtype=torch.float64)
    words = {"causal": queries < keys}
    lse = row_lse(q, k, **words)
    distances_are_those_of(attention_region(q, k, lse, **words), attention_statistics(q, k, lse, **words))


def test_rows_that_see_few_keys_name_no_others():
    q = torch.randn(1, 6, 1, 8)
    found = attention_statistics(q, q, row_lse(q, q), topk=4)
    assert found["top_keys"][0, 0, 0].tolist() == [0, -1, -1, -1]
    assert sorted(found["top_keys"][0, 0, 2].tolist()) == [-1, 0, 1, 2]
    assert found["top_probs"][0, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])
    assert found["mean_distance"][0, 0, 0] == 0


def test_a_part_of_the_map_at_full_resolution():
    q, k = torch.randn(1, 96, 2, 8), torch.randn(1, 96, 2, 8)
    lse = row_lse(q, k)
    part = pooled_attention(q, k, lse, rows=slice(32, 64), cols=slice(10, 20), heads=1)
    torch.testing.assert_close(part, attention_region(q, k, lse, rows=slice(32, 64), cols=slice(10, 20), heads=1))


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_memory_is_linear_in_the_sequence(reduce):
    """From 2k to 8k tokens the dense map grows 16 times; what is held must not grow 4.5 times."""

    def held(n):
        q, k = torch.randn(1, n, 2, 16), torch.randn(1, n, 1, 16)
        lse = torch.zeros(1, n, 2)
        return peak_bytes(lambda: pooled_attention(q, k, lse, shape=(64, 64), reduce=reduce))

    small, large = held(2048), held(8192)
    assert large < 4.5 * small
    assert large < 8192 * 8192 * 4 / 8


def test_progress_is_told_and_reaches_one():
    told = []
    q = torch.randn(1, 64, 1, 8)
    pooled_attention(q, q, row_lse(q, q), shape=(16, 16), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_predicted_bytes_bound_what_is_held_and_cost_grows():
    for n in (512, 2048):
        q, k = torch.randn(1, n, 4, 32), torch.randn(1, n, 2, 32)
        lse = torch.zeros(1, n, 4)
        words = {"batch": 1, "queries": n, "keys": n, "heads": 4, "head_dim": 32, "kv_heads": 2}
        cost = predicted_cost("map", **words)
        held = peak_bytes(lambda q=q, k=k, lse=lse: pooled_attention(q, k, lse))
        assert 0.25 * cost.bytes < held < 2.5 * cost.bytes
    long = predicted_cost("map", **{**words, "queries": 2 * n, "keys": 2 * n})
    assert long.flops == pytest.approx(4 * cost.flops, rel=0.01)
    assert long.seconds > 3 * cost.seconds > 0
