"""The Hopper kernels without a card: they compile to warpgroup matrix products, fit, and refuse what they cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compile_kit import SHARED_MOST, NoCard, usage

from workbench_kernels import attention
from workbench_kernels.masking import masking
from workbench_kernels.softmax_attention.hopper import launch, refuses
from workbench_kernels.softmax_attention.hopper.binding import copyable, descriptor, row_descriptor
from workbench_kernels.softmax_attention.problem import Problem


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", NoCard())


def _check(compiled: Any, products: int) -> None:
    ptx = compiled.asm["ptx"]
    assert ptx.count("wgmma.mma_async") >= products
    assert "setmaxnreg.inc.sync.aligned.u32" in ptx
    assert compiled.metadata.shared <= SHARED_MOST
    _registers, stack = usage(compiled.asm["cubin"])
    assert stack <= 128, f"{stack} bytes of registers are spilled"


@pytest.mark.parametrize(("dim", "causal"), [(64, False), (128, True)])
def test_forward_compiles_for_hopper(hopper: None, dim: int, causal: bool) -> None:
    from workbench_kernels.softmax_attention.hopper.forward import attention_forward

    use, q = launch.FORWARD[dim, causal], torch.empty(1, 256, 2, dim, dtype=torch.bfloat16)
    tensors = [descriptor(q, rows, dim) for rows in (64, use.keys, use.keys, 64)]
    counter, lse = torch.zeros(1, dtype=torch.int32), torch.empty(1, 256, 2)
    made = attention_forward.warmup(
        *tensors, lse, counter, 4, 2, 2, 2, 2, 1, 256, 256, 1.0,
        BM=64 * use.groups, BN=use.keys, D=dim, WGS=use.groups, STAGES=use.stages, CAUSAL=causal, REGS=use.registers,
        grid=(1,), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    _check(made, products=use.groups * dim // 16 * 3)


@pytest.mark.parametrize(("dim", "causal"), [(64, True), (128, False)])
def test_backward_compiles_for_hopper(hopper: None, dim: int, causal: bool) -> None:
    from workbench_kernels.softmax_attention.hopper.backward import attention_backward

    q, rows, keys = (
        torch.empty(1, 256, 2, dim, dtype=torch.bfloat16),
        launch.BACKWARD_QUERIES[dim],
        launch.BACKWARD_KEYS,
    )
    stats = row_descriptor(torch.empty(2, 256), rows)
    made = attention_backward.warmup(
        descriptor(q, rows, dim), descriptor(q, keys, dim), descriptor(q, keys, dim), descriptor(q, rows, dim),
        stats, stats, descriptor(q, 64, dim), descriptor(q, 64, dim), descriptor(q.float(), 64, 64),
        256, 256, 1, 1.0, 1.0,
        BM=rows, BN=keys, D=dim, STAGES=launch.BACKWARD_STAGES, CAUSAL=causal,
        REGS=launch.BACKWARD_REGISTERS, grid=(1, 1, 1), num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    _check(made, products=5 * 2 * 4)
    assert "cp.reduce.async.bulk.tensor" in made.asm["ptx"]


def _problem(
    q: torch.Tensor, k: torch.Tensor, scale: float = 0.1, softcap: float | None = None, **words: Any
) -> Problem:
    none = {"causal": True, "window": None, "key_padding": None, "mask": None}
    return Problem(masking(q, k, **{**none, **words}), scale, softcap)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "window": ({"window": 8}, "window"),
    "padding": ({"key_padding": torch.ones(2, 32, dtype=torch.bool)}, "padding"),
    "mask": ({"mask": torch.ones(32, 32, dtype=torch.bool)}, "mask"),
    "soft cap": ({"softcap": 2.0}, "soft cap"),
    "negative scale": ({"scale": -1.0}, "scale above 0"),
}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_on_hopper", lambda _device: True)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_what_is_missing(card: None, name: str) -> None:
    words, told = REFUSED[name]
    q = torch.randn(2, 32, 4, 64, dtype=torch.bfloat16)
    assert refuses(_problem(q, q), q, q, q, None) is None
    assert told in (refuses(_problem(q, q, **words), q, q, q, None) or "")


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((2, 32, 4, 256), torch.bfloat16, "head dim up to 128"),
        ((2, 32, 4, 60), torch.bfloat16, "multiple of 8"),
        ((2, 32, 4, 64), torch.float32, "bfloat16 or float16"),
        ((2, 0, 4, 64), torch.bfloat16, "at least one query"),
    ],
)
def test_refused_tensors(card: None, shape: tuple[int, ...], dtype: torch.dtype, told: str) -> None:
    x = torch.zeros(shape, dtype=dtype)
    assert told in (refuses(_problem(x, x), x, x, x, None) or "")


def test_strides_the_copy_engine_cannot_walk_are_refused(card: None) -> None:
    q = torch.zeros(2, 32, 4, 64, dtype=torch.bfloat16)
    odd = torch.zeros(2, 32, 4, 67, dtype=torch.bfloat16)[..., :64]
    broadcast = q[:, :1].expand(2, 32, 4, 64)
    for bad in (odd, broadcast):
        assert not copyable(bad)
        assert "16-byte aligned" in (refuses(_problem(bad, q), bad, q, q, None) or "")
    assert copyable(q.transpose(1, 2).contiguous().transpose(1, 2))


def test_sinks_and_another_value_dim_are_refused(card: None) -> None:
    q, v = torch.zeros(2, 32, 4, 64, dtype=torch.bfloat16), torch.zeros(2, 32, 4, 32, dtype=torch.bfloat16)
    assert "sinks" in (refuses(_problem(q, q), q, q, q, torch.zeros(4)) or "")
    assert "v's head dim" in (refuses(_problem(q, q), q, q, v, None) or "")


def test_without_a_card_the_name_is_refused_with_the_reason() -> None:
    q = torch.randn(1, 16, 2, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"Hopper card .*impl='hopper'"):
        attention(q, q, q, impl="hopper")
