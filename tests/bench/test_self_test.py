"""The self-test tells a right kernel from a wrong one, on shapes of the caller's choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workbench.bench import self_test
from workbench.bench._self_test import SelfTest
from workbench.errors import BadInput, UnknownName
from workbench_kernels import attention

SMALL: dict[str, Any] = {"queries": 33, "heads": 4, "head_dim": 16, "device": "cpu", "launches": 2}


@pytest.mark.parametrize("kernel", ["auto", "tiled", "reference", "flash-attention", "sdpa", "eager"])
@pytest.mark.parametrize("words", [{}, {"keys": 70, "kv_heads": 2}, {"causal": False, "batch": 2}], ids=str)
def test_kernels_are_right_on_every_kind_of_shape(kernel: str, words: dict[str, Any]) -> None:
    table = self_test(kernel, **SMALL, **words)
    assert table.ok, table
    assert table["quantity"].tolist() == ["out", "dq", "dk", "dv", "forward", "backward"]


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, "float64"])
def test_low_precision_is_held_to_plain_low_precision(dtype: Any) -> None:
    table = self_test("tiled", **SMALL, dtype=dtype).set_index("quantity")
    assert bool(table["ok"].dropna().astype(bool).all())
    assert table.loc["out", "error"] <= table.loc["out", "budget"]
    assert table.loc["out", "plain_error"] > 0


def test_queries_that_see_nothing_do_not_spoil_the_test() -> None:
    assert self_test("tiled", **SMALL, keys=20).ok


def test_a_wrong_output_and_a_wrong_gradient_are_told() -> None:
    def one_row_off(q, k, v, *, causal):
        out = attention(q, k, v, causal=causal)
        return torch.cat([out[:, :-1], out[:, :1]], 1)

    class _TwiceTheGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    def wrong_gradient(q, k, v, *, causal):
        return attention(q, _TwiceTheGradient.apply(k), v, causal=causal)

    assert not self_test(one_row_off, **SMALL).ok
    table = self_test(wrong_gradient, **SMALL).set_index("quantity")
    assert table["ok"].dropna().to_dict() == {"out": True, "dq": True, "dk": False, "dv": True}
    assert "NOT within" in repr(self_test(one_row_off, **SMALL))


def test_times_and_rates_follow_the_flop_convention() -> None:
    table = self_test("tiled", **{**SMALL, "queries": 32, "keys": 32}).set_index("quantity")
    cells = 32 * 33 // 2
    seconds = table.loc["forward", "median_ms"] * 1e-3
    assert table.loc["forward", "tflops"] == pytest.approx(4 * 4 * cells * 16 / seconds / 1e12)
    seconds = table.loc["backward", "median_ms"] * 1e-3
    assert table.loc["backward", "tflops"] == pytest.approx(2.5 * 4 * 4 * cells * 16 / seconds / 1e12)


def test_it_prints_the_call_the_device_and_the_verdict() -> None:
    table = self_test("tiled", **SMALL, keys=70, kv_heads=2, backward=False)
    assert isinstance(table, SelfTest)
    for text in (repr(table), table._repr_html_()):
        for told in (
            "tiled",
            "33 queries, 70 keys, 4 heads (2 key heads)",
            "cpu",
            "plain error",
            "median, ms",
            "TFLOP/s",
            "within",
        ):
            assert told in text
    assert table["quantity"].tolist() == ["out", "forward"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"queries": 0}, "queries must be a whole number of at least 1"),
        ({"kv_heads": 3}, "kv_heads must divide heads"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"dtype": "nothing"}, "dtype must be"),
    ],
)
def test_bad_input_is_named(words: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        self_test("tiled", **{**SMALL, **words})


def test_an_unknown_kernel_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="tiled"):
        self_test("tilde", **SMALL)
