"""The race and the tables on the card: what is timed is what was launched, and every contender is checked."""

from __future__ import annotations

import pytest
import torch

from workbench.bench import _graphs, _runner, attention, decode, layers, self_test
from workbench.systems import timing


def test_the_race_times_the_card_and_not_the_launch() -> None:
    """A product of eight times the work takes longer; one that does not fit is a row with its reason."""
    small, large = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for n in (2048, 4096))
    contenders = {
        "small": lambda: small @ small,
        "large": lambda: large @ large,
        "too large": lambda: torch.empty(1 << 45, device="cuda"),
    }
    table = timing.race(contenders, device="cuda", warmup=3, launches=10).set_index("item")
    assert 3 < table.loc["large", "median_ms"] / table.loc["small", "median_ms"] < 16
    assert "OutOfMemoryError" in table.loc["too large", "error"]


def test_ceilings_are_those_of_a_gpu() -> None:
    found = timing.ceilings("cuda")
    assert 50 < found["matmul_tflops"] < 5000
    assert 0.3 < found["copy_tb_s"] < 30


@pytest.mark.parametrize("causal", [False, True])
def test_every_contender_of_the_attention_table_is_right(causal: bool) -> None:
    limits = {"matmul_tflops": 1.0, "copy_tb_s": 1.0, "sm_mhz": 0.0}
    point = attention.Point(2, 512, 8, 64, causal, torch.bfloat16)
    for case in attention.both_passes(point, "cuda"):
        rows = _runner._case(case, "cuda", limits)
        timed = [row for row in rows if row["launches"]]
        assert len(timed) >= 4
        assert all(row["error"] < 0.02 for row in timed), [(row["item"], row["error"]) for row in timed]


def test_every_contender_of_the_decode_table_is_right() -> None:
    limits = {"matmul_tflops": 1.0, "copy_tb_s": 1.0, "sm_mhz": 0.0}
    for point in (decode.Point(1, 1024), decode.Point(3, 1024, ragged=True)):
        rows = _runner._case(decode.case(point, "cuda"), "cuda", limits)
        ours = [row for row in rows if row["ours"]]
        assert all(row["launches"] for row in ours), [row["failure"] for row in ours]
        assert all(row["error"] < 0.02 for row in rows if row["launches"])


@pytest.mark.parametrize("kernel", ["auto", "triton", "tiled", "sdpa", "flash-attention"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_self_test_passes_our_kernels(kernel: str, dtype: torch.dtype) -> None:
    table = self_test(kernel, queries=300, keys=500, heads=8, kv_heads=2, head_dim=64, dtype=dtype, launches=3)
    assert table.ok, table
    assert "cuda" in repr(table)


def test_a_recorded_call_works_on_what_is_in_memory_now() -> None:
    a = torch.randn(64, 64, device="cuda", requires_grad=True)

    def step() -> tuple[torch.Tensor, ...]:
        y = (a @ a).sin()
        return y.detach(), *torch.autograd.grad(y.sum(), [a])

    call, how = _graphs.fairly(step, "cuda")
    assert how == _graphs.GRAPH
    with torch.no_grad():
        a.mul_(0.5)
    for one, plain in zip(call(), step(), strict=True):
        torch.testing.assert_close(one, plain)


def test_a_call_that_waits_for_the_card_is_launched_and_its_neighbours_are_recorded() -> None:
    a = torch.randn(64, 64, device="cuda")
    call, how = _graphs.fairly(lambda: a * a.sum().item(), "cuda")
    assert how == _graphs.LAUNCHED
    assert call().shape == a.shape
    with pytest.raises(RuntimeError):
        _graphs.recorded(lambda: a * a.sum().item())
    assert _graphs.fairly(lambda: a * 2, "cuda")[1] == _graphs.GRAPH


@pytest.mark.parametrize("which", layers.PASSES)
def test_every_way_of_our_neural_memory_is_right(which: str) -> None:
    limits = {"matmul_tflops": 1.0, "copy_tb_s": 1.0, "sm_mhz": 0.0}
    case = layers.neural_case(layers.NeuralPoint(256, which, batch=2, dim=64, heads=2, chunk=32), "cuda")
    ours = [row for row in _runner._case(case, "cuda", limits) if row["ours"]]
    assert len(ours) == 4
    assert all(row["launches"] for row in ours), [row["failure"] for row in ours]
    assert all(row["error"] < 1e-4 for row in ours), [(row["item"], row["error"]) for row in ours]
