"""A layer is one function: in float32, float64 and mixed precision it gives the same numbers, but for rounding."""

from __future__ import annotations

import pytest
import torch
from layer_kit import CASES, Case, tokens

from workbench.errors import BadInput
from workbench.memory.layers.base import build_layer
from workbench.models.mixer import MixerConfig, MixerLM


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_dtype_makes_another_function_of_a_layer(case: Case) -> None:
    """What an untrained memory answers is as small as torch's own eps of a norm, which differs between dtypes."""
    layer, x = case.layer(dtype=torch.float32).eval(), tokens(dtype=torch.float32)
    with torch.no_grad():
        single, double = layer(x)[0], layer.double()(x.double())[0]
    assert (double - single).norm() < 1e-5 * double.norm()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mixed_precision_leaves_a_memory_in_its_own(case: Case) -> None:
    layer, x = case.layer(dtype=torch.float32).eval(), tokens(dtype=torch.float32)
    wanted, state = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        got, after = layer(x)
        more = layer(x, after)[0]
        assert torch.equal(layer(x.bfloat16())[0], layer(x.bfloat16().float())[0])
    assert torch.equal(got, wanted)
    assert torch.equal(more, layer(x, state)[0])


def test_a_model_trains_under_mixed_precision() -> None:
    torch.manual_seed(0)
    model = MixerLM(MixerConfig(19, 8, [{"mixer": slug, "heads": 2} for slug in ("titans-mac", "just-read-twice")]))
    ids = torch.randint(1, 19, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(loss, model(ids, labels=ids).loss, rtol=0.05, atol=0)
    layer = build_layer("gla", 8)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(BadInput, match=r"x is torch\.float64"):
        layer(torch.zeros(1, 2, 8, dtype=torch.float64))
