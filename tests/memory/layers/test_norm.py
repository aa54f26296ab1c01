"""A layer is one function: in float32 and in float64 it gives the same numbers, but for rounding."""

from __future__ import annotations

import pytest
import torch
from layer_kit import CASES, Case, tokens


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_dtype_makes_another_function_of_a_layer(case: Case) -> None:
    """What an untrained memory answers is as small as torch's own eps of a norm, which differs between dtypes."""
    layer, x = case.layer(dtype=torch.float32).eval(), tokens(dtype=torch.float32)
    with torch.no_grad():
        single, double = layer(x)[0], layer.double()(x.double())[0]
    assert (double - single).norm() < 1e-5 * double.norm()
