"""Bad input at the kernels' doors: a ValueError that names the argument."""

import numpy as np
import pytest
import torch

from workbench_kernels import (
    attention,
    attention_mass,
    attention_region,
    attention_statistics,
    checks,
    pooled_attention,
    predicted_cost,
    row_lse,
)
from workbench_kernels.masking import masking


def tensors(heads=4, kv_heads=2, dtype=torch.float32):
    return torch.randn(2, 6, heads, 8, dtype=dtype), *(torch.randn(2, 7, kv_heads, 8, dtype=dtype) for _ in range(2))


NAN = torch.full((2, 7, 2, 8), float("nan"))
BAD = {
    "q": [
        ("q", lambda q, k, v: ((q[0], k, v), {})),
        ("q", lambda q, k, v: ((q.int(), k, v), {})),
        ("q", lambda q, k, v: (("no tensor", k, v), {})),
        ("q", lambda q, k, v: ((q.transpose(1, 3), k, v), {})),
        ("q", lambda q, k, v: ((q[..., :0], k[..., :0], v), {})),
        ("q", lambda q, k, v: ((q * float("nan"), k, v), {})),
    ],
    "k": [
        ("k", lambda q, k, v: ((q, k.double(), v), {})),
        ("k", lambda q, k, v: ((q, k.to("meta"), v), {})),
        ("k", lambda q, k, v: ((q, k[:1], v), {})),
        ("k", lambda q, k, v: ((q, k[..., :4], v), {})),
        ("k", lambda q, k, v: ((q[:, :, :3].contiguous(), k, v), {})),
        ("k", lambda q, k, v: ((q, NAN, v), {})),
    ],
    "v": [
        ("v", lambda q, k, v: ((q, k, v[:, :5]), {})),
        ("v", lambda q, k, v: ((q, k, v.half()), {})),
        ("v", lambda q, k, v: ((q, k, NAN), {})),
    ],
    "options": [
        ("window", lambda *x: (x, {"window": 0})),
        ("softcap", lambda *x: (x, {"softcap": -1.0})),
        ("scale", lambda *x: (x, {"scale": float("inf")})),
        ("dropout", lambda *x: (x, {"dropout": 1.0})),
        ("impl", lambda *x: (x, {"impl": "tilled"})),
        ("sinks", lambda *x: (x, {"sinks": torch.zeros(3)})),
        ("key_padding", lambda *x: (x, {"key_padding": torch.ones(2, 6, dtype=torch.bool)})),
        ("key_padding", lambda *x: (x, {"key_padding": torch.ones(2, 7)})),
        ("mask", lambda *x: (x, {"mask": torch.ones(6, 6, dtype=torch.bool)})),
        ("mask", lambda *x: (x, {"mask": torch.ones(6, 7, dtype=torch.long)})),
        ("mask", lambda *x: (x, {"mask": torch.zeros(6, 7, requires_grad=True), "impl": "tiled"})),
        ("block_mask", lambda *x: (x, {"block_mask": torch.ones(2, 2, dtype=torch.bool), "block_size": 2})),
        ("block_mask", lambda *x: (x, {"block_mask": torch.ones(3, 4), "block_size": 2})),
        ("block_size", lambda *x: (x, {"block_mask": torch.ones(3, 4, dtype=torch.bool)})),
        ("block_size", lambda *x: (x, {"block_size": (0, 4)})),
        ("block_size", lambda *x: (x, {"block_size": 2.5})),
        ("block_size", lambda *x: (x, {"block_size": (4, 4, 4)})),
        ("block_mask", lambda *x: (x, {"block_mask": [[True]], "block_size": 8})),
        ("causal", lambda *x: (x, {"causal": "no"})),
        ("window", lambda *x: (x, {"window": 1.5})),
        ("window", lambda *x: (x, {"window": True})),
        ("softcap", lambda *x: (x, {"softcap": float("inf")})),
        ("scale", lambda *x: (x, {"scale": "1"})),
        ("dropout", lambda *x: (x, {"dropout": "0.1"})),
        ("seed", lambda *x: (x, {"seed": 1.5, "dropout": 0.1})),
        ("seed", lambda *x: (x, {"seed": True, "dropout": 0.1})),
        ("dropout", lambda *x: (x, {"dropout": False})),
        ("scale", lambda *x: (x, {"scale": True})),
        ("impl", lambda *x: (x, {"impl": None})),
        ("sinks", lambda *x: (x, {"sinks": [0.0] * 4})),
        ("sinks", lambda *x: (x, {"sinks": torch.full((4,), float("nan"))})),
        ("key_padding", lambda *x: (x, {"key_padding": [[True] * 7] * 2})),
        ("mask", lambda *x: (x, {"mask": [[True] * 7] * 6})),
        ("mask", lambda *x: (x, {"mask": torch.full((6, 7), float("nan"))})),
        ("mask", lambda *x: (x, {"mask": torch.full((6, 7), float("inf"))})),
    ],
}


@pytest.mark.parametrize(("name", "make"), [case for group in BAD.values() for case in group])
def test_attention_names_the_argument(name, make):
    args, words = make(*tensors())
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        attention(*args, **words)


def test_numpys_whole_numbers_become_plain_ones_which_a_launch_knows():
    q, k, _ = tensors()
    asked = masking(q, k, causal=True, window=np.int64(3), key_padding=None, mask=None)
    assert asked.window == 3
    assert type(asked.window) is type(checks.whole("topk", np.int32(8))) is int


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("lse", lambda q, k, lse: attention_region(q, k, lse[:, :3])),
        ("rows", lambda q, k, lse: attention_region(q, k, lse, rows=[0, 6])),
        ("rows", lambda q, k, lse: attention_region(q, k, lse, rows=slice(4, 4))),
        ("cols", lambda q, k, lse: attention_region(q, k, lse, cols=torch.ones(6, dtype=torch.bool))),
        ("heads", lambda q, k, lse: attention_region(q, k, lse, heads=[4])),
        ("heads", lambda q, k, lse: attention_region(q, k, lse, heads=1.5)),
        ("heads", lambda q, k, lse: attention_region(q, k, lse, heads=[True, False, True, False])),
        ("heads", lambda q, k, lse: attention_region(q, k, lse, heads="first")),
        ("heads", lambda q, k, lse: attention_region(q, k, lse, heads=slice(4, 9))),
        ("rows", lambda q, k, lse: attention_region(q, k, lse, rows=[0.5])),
        ("keys", lambda q, k, lse: attention_mass(q, k, lse, keys="all")),
        ("lse", lambda q, k, lse: attention_region(q, k, lse.tolist())),
        ("lse", lambda q, k, lse: attention_region(q, k, lse.long())),
        ("sinks", lambda q, k, lse: row_lse(q, k, sinks=torch.zeros(1), impl="triton")),
        ("shape", lambda q, k, lse: pooled_attention(q, k, lse, shape=5)),
        ("shape", lambda q, k, lse: pooled_attention(q, k, lse, shape=(2.5, 3))),
        ("topk", lambda q, k, lse: attention_statistics(q, k, lse, topk=1.5)),
        ("sink_keys", lambda q, k, lse: attention_statistics(q, k, lse, sink_keys="4")),
        ("keys", lambda q, k, lse: attention_mass(q, k, lse, keys=[])),
        ("shape", lambda q, k, lse: pooled_attention(q, k, lse, shape=(0, 4))),
        ("reduce", lambda q, k, lse: pooled_attention(q, k, lse, reduce="median")),
        ("rows", lambda q, k, lse: pooled_attention(q, k, lse, rows=slice(0, 6, 2))),
        ("topk", lambda q, k, lse: attention_statistics(q, k, lse, topk=0)),
        ("sink_keys", lambda q, k, lse: attention_statistics(q, k, lse, sink_keys=-1)),
        ("impl", lambda q, k, lse: pooled_attention(q, k, lse, impl="dense")),
        ("kind", lambda *x: predicted_cost("maps", batch=1, queries=1, keys=1, heads=1, head_dim=8)),
        ("keys", lambda *x: predicted_cost("map", batch=1, queries=1, keys=0, heads=1, head_dim=8)),
        ("batch", lambda *x: predicted_cost("map", batch=1.5, queries=1, keys=1, heads=1, head_dim=8)),
        ("kv_heads", lambda *x: predicted_cost("map", batch=1, queries=1, keys=1, heads=4, head_dim=8, kv_heads=3)),
    ],
)
def test_maps_name_the_argument(name, call):
    q, k, v = tensors()
    _, lse = attention(q, k, v, return_lse=True)
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        call(q, k, lse)
