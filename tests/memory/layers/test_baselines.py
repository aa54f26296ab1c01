"""The baselines against their papers' formulas, written out token by token or as one masked matrix."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch import Tensor

from tests.memory.layers.layer_kit import tokens
from workbench.errors import BadInput
from workbench.memory.layers._conv import ShortConv
from workbench.memory.layers._rotary import rotate
from workbench.memory.layers.base import MemoryLayer, build_layer, effective_rank


def _parts(layer: MemoryLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, _ = layer._project(x, layer.start(len(x)), None)
    return q, k, v


def _read(layer: MemoryLayer, x: Tensor) -> Tensor:
    """What the memory answered, before norm, gate and output projection."""
    return layer._recur(*_parts(layer, x), *layer.gates(x), layer.start(len(x))["memory"], None)[0]


def _delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None = None) -> Tensor:
    memory, reads = torch.zeros(*q.shape[:1], q.shape[2], q.shape[3], v.shape[3], dtype=q.dtype), []
    for t in range(q.shape[1]):
        memory = memory if decay is None else memory * decay[:, t, :, None, None]
        old = torch.einsum("bhk,bhkv->bhv", k[:, t], memory)
        memory = memory + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], v[:, t] - old)
        reads.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory) * q.shape[-1] ** -0.5)
    return torch.stack(reads, 1)


def test_linear_attention_is_normalised_kernel_attention() -> None:
    layer, x = build_layer("linear-attention", 8, heads=2).double(), tokens()
    q, k, v = _parts(layer, x)
    weights = torch.einsum("bihd,bjhd->bhij", torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1).tril()
    wanted = torch.einsum("bhij,bjhd->bihd", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(_read(layer, x), wanted, rtol=1e-5, atol=1e-6)  # epsilon in the denominator


def test_delta_net_is_the_delta_rule_and_a_rewrite_replaces() -> None:
    layer, x = build_layer("delta-net", 8, heads=2).double(), tokens()
    q, k, v = _parts(layer, x)
    assert torch.allclose(k.norm(dim=-1), torch.ones(()).double())
    torch.testing.assert_close(_read(layer, x), _delta(q, k, v, layer.gates(x)[1]), rtol=1e-9, atol=1e-11)
    key, pair = k[:, :1].expand(-1, 2, -1, -1), v[:, :2]
    twice = _delta(key, key, pair, torch.ones(2, 2, 2).double())
    torch.testing.assert_close(twice[:, 1] * 2, pair[:, 1])  # head dim 4: the read is halved


def test_gated_delta_net_fades_before_it_writes() -> None:
    layer, x = build_layer("gated-delta-net", 8, heads=2).double(), tokens()
    log_decay, beta = layer.gates(x)
    wanted = _delta(*_parts(layer, x), beta, log_decay.exp())
    torch.testing.assert_close(_read(layer, x), wanted, rtol=1e-9, atol=1e-11)
    step = torch.nn.functional.softplus(layer.to_step.bias)
    assert (step > 9e-4).all()
    assert (step < 0.11).all()


def test_gla_fades_every_row_by_its_own_gate() -> None:
    layer, x = build_layer("gla", 8, heads=2, key_dim=3).double(), tokens()
    (q, k, v), decay = _parts(layer, x), layer.gates(x)[0].exp()
    memory, reads = torch.zeros(2, 2, 3, 4).double(), []
    for t in range(x.shape[1]):
        memory = decay[:, t, :, :, None] * memory + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        reads.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory) * 3**-0.5)
    torch.testing.assert_close(_read(layer, x), torch.stack(reads, 1), rtol=1e-9, atol=1e-11)


def test_retention_is_its_parallel_form() -> None:
    layer, x = build_layer("retnet", 8, heads=2).double(), tokens()
    q, k, v = _parts(layer, x)
    gap = torch.arange(13)[:, None] - torch.arange(13)
    rates = 1 - 2.0 ** (-5 - torch.arange(2).double())
    decay = (rates[:, None, None] ** gap.clamp_min(0)).tril()
    wanted = torch.einsum("bihd,bjhd,hij,bjhe->bihe", q, k, decay, v) / 2
    torch.testing.assert_close(_read(layer, x), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("window", [1, 4, 5, 13, 40, None])
def test_window_attention_is_masked_softmax(window: int | None) -> None:
    layer, x = build_layer("sliding-window-attention", 8, heads=2, window=window).double(), tokens()
    q, k, v = (part.unflatten(-1, (2, 4)) for part in layer.to_qkv(x).chunk(3, -1))
    places = torch.arange(13)
    gap = places[:, None] - places
    mask = (gap >= 0) & (gap < (window or 99))
    scores = torch.einsum("bihd,bjhd->bhij", rotate(q, places), rotate(k, places)) / 2
    y = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~mask, -math.inf).softmax(-1), v)
    torch.testing.assert_close(layer(x)[0], layer.to_out(y.flatten(2)), rtol=1e-9, atol=1e-11)


def test_rotary_products_know_only_the_distance() -> None:
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64)
    near = (rotate(q, torch.tensor([5])) * rotate(k, torch.tensor([2]))).sum()
    far = (rotate(q, torch.tensor([1005])) * rotate(k, torch.tensor([1002]))).sum()
    torch.testing.assert_close(near, far)


def test_the_short_convolution_is_torchs_own() -> None:
    conv, x = ShortConv(6, 4).double(), torch.randn(2, 9, 6, dtype=torch.float64)
    y, _ = conv(x, torch.zeros(conv.shape(2)).double())
    padded = torch.nn.functional.pad(x.transpose(1, 2), (3, 0))
    wanted = torch.nn.functional.conv1d(padded, conv.weight.T[:, None], groups=6)
    torch.testing.assert_close(y, torch.nn.functional.silu(wanted.transpose(1, 2)))


def test_effective_rank_counts_equal_directions() -> None:
    matrices = torch.stack([torch.eye(4), torch.diag(torch.tensor([1.0, 1, 0, 0])), torch.zeros(4, 4)])
    torch.testing.assert_close(effective_rank(matrices), torch.tensor([4.0, 2, 0], dtype=torch.float64))


def test_contents_has_a_line_for_every_head() -> None:
    layer = build_layer("linear-attention", 8, heads=2)
    layer.write(torch.randn(5, 8))
    table = layer.contents()
    assert isinstance(table, pd.DataFrame)
    assert list(table["head"]) == [0, 1]
    assert list(table["shape"]) == ["4x5", "4x5"]
    assert (table["effective_rank"] > 1).all()


@pytest.mark.parametrize(
    ("slug", "settings", "match"),
    [
        ("linear-attention", {"feature_map": "exp"}, "feature_map"),
        ("linear-attention", {"conv": -1}, "conv"),
        ("delta-net", {"chunk": 0}, "chunk"),
        ("delta-net", {"key_dim": 0}, "key_dim"),
        ("gla", {"tau": 0}, "tau"),
        ("gla", {"rank": 0}, "rank"),
        ("retnet", {"heads": 8}, "even"),
        ("sliding-window-attention", {"window": 0}, "window"),
        ("sliding-window-attention", {"heads": 8}, "even"),
    ],
)
def test_settings_outside_their_range_are_named(slug: str, settings: dict, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        build_layer(slug, 8, **settings)


def test_a_gate_begins_open() -> None:
    gate, x = build_layer("gated-delta-net", 64).to_gate, torch.randn(500, 64)
    opened = torch.nn.functional.silu(gate(x)).detach()
    assert opened.mean() == pytest.approx(1, abs=0.05)
    assert opened.std() < 0.2
