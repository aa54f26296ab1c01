"""Similarity maps against einsum; token picking; patch grids; bad input."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.probes import similarity


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 7), m=st.integers(1, 7), d=st.integers(1, 9), seed=st.integers(0, 99), centred=st.booleans())
def test_maps_equal_einsum(n, m, d, seed, centred):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    x, y = (a - a.mean(0), b - b.mean(0)) if centred else (a, b)
    dots = np.einsum("nd,md->nm", x, y)
    np.testing.assert_allclose(similarity.dot_map(a, b, centred=centred), dots, atol=1e-12)
    lengths = np.sqrt(np.einsum("nd,nd->n", x, x))[:, None] * np.sqrt(np.einsum("md,md->m", y, y))
    known = lengths > 0
    np.testing.assert_allclose(
        similarity.cosine_map(a, b, centred=centred)[known], (dots[known] / lengths[known]), atol=1e-9
    )


def test_a_zero_vector_has_no_direction_and_tensors_are_welcome():
    a = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [3.0, 4.0]]], dtype=torch.bfloat16, requires_grad=True)
    found = similarity.cosine_map(a)
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 1]).all()
    assert found[0, 2] == pytest.approx(0.6)


def test_token_similarity_of_a_real_trace(trace):
    at = similarity.pick_tokens(trace.tokens[0], "Ada")[0]
    found = similarity.token_similarity(trace.hidden, at)
    assert found.shape == (3, len(trace.tokens[0]))
    np.testing.assert_allclose(found[:, at], 1.0)
    both = similarity.pick_tokens(trace.tokens[0], "key")
    assert len(both) == 2
    assert found[0, both[0]] == pytest.approx(found[0, both[1]])  # the same embedding twice


def test_tokens_are_picked_by_place_text_pattern_and_predicate():
    tokens = [" the", " key", " of", " the", " Keys"]
    assert similarity.pick_tokens(tokens, -1) == [4]
    assert similarity.pick_tokens(tokens, "the") == [0, 3]
    assert similarity.pick_tokens(tokens, re.compile("key", re.IGNORECASE)) == [1, 4]
    assert similarity.pick_tokens(tokens, lambda token: len(token) > 4) == [4]


def test_patches_fill_their_grid_in_reading_order():
    grid = similarity.patch_grid(np.arange(12), (3, 4))
    assert grid[1, 2] == 6
    assert similarity.patch_grid(np.arange(9)).shape == (3, 3)
    np.testing.assert_allclose(similarity.min_max([[2.0, 4.0], [3.0, 2.0]]), [[0, 1], [0.5, 0]])
    assert (similarity.min_max(np.full((2, 2), 7.0)) == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: similarity.dot_map(np.ones((2, 3)), np.ones((2, 4))), "a has 3 dimensions and b 4"),
        (lambda: similarity.dot_map(np.ones(3)), r"a must be \(vectors, dimensions\), got shape \(3,\)"),
        (lambda: similarity.cosine_map([[1.0, np.nan]]), "a holds a number that is not finite in vector 0"),
        (lambda: similarity.pick_tokens(["a"], "b"), "no token matches 'b'"),
        (lambda: similarity.pick_tokens(["a"], 4), "token 4 is outside this text of 1 tokens"),
        (lambda: similarity.token_similarity([np.ones((2, 2))], 0, kind="l2"), "is not one of 'cosine', 'dot'"),
        (lambda: similarity.token_similarity([], 0), "at least one layer"),
        (lambda: similarity.patch_grid(np.arange(7)), "7 patches do not fill a grid"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(BadInput, match=message):
        call()
