"""A layer is one function: in float32, float64 and mixed precision it gives the same numbers, but for rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from layer_kit import CASES, Case, stream, tokens

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


@pytest.mark.parametrize(("dtype", "budget"), [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_is_rounding_alone(case: Case, dtype: torch.dtype, budget: float) -> None:
    """The same rounded weights and tokens in float64; fed in pieces."""
    layer, x = case.layer(dtype=dtype).eval(), tokens().to(dtype)
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        (y, state), wanted = stream(layer, x, [3, 1, 4, 5]), exact(x.double())[0]
    assert y.dtype == dtype
    layer.check_state(state, 2)
    assert (y.double() - wanted).norm() < budget * wanted.norm()


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
