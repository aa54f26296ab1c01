"""The linear memories' Triton kernels without a GPU: run by Triton's interpreter, and compiled for Hopper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import compile_kit
import pytest
import torch
from linear_memory_cases import Case

from workbench_kernels import linear_recurrence

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["test_case and delta", "test_case and not delta", "not test_case"])
def test_kernels_in_the_interpreter(part: str) -> None:
    compile_kit.run_in_the_interpreter("interpreted_linear_memory.py", part)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``compiled(case, dtype)``: what a forward and a backward pass launch, compiled for Hopper."""
    import triton

    from workbench_kernels.linear_memory.portable import launch

    made: list[Any] = []

    def start(kernel: Any, programs: int, shape: tuple[int, int], flags: Any, *arguments: Any, **more: Any) -> None:
        words = {"num_warps": shape[0], "num_stages": shape[1], "enable_fp_fusion": True}
        made.append(kernel.warmup(*arguments, flags, grid=(1,), **words, **more))

    def compile_launches(case: Case, dtype: torch.dtype) -> list[Any]:
        drawn = {n: x.cpu().requires_grad_() for n, x in case.draw(dtype).items()}
        y, final = linear_recurrence(**drawn, **case.words, impl="triton")
        (y.float().sum() + final.sum()).backward()
        return made

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(launch, "refusal", lambda *_, **__: None)
    monkeypatch.setattr(triton.runtime.driver, "_active", compile_kit.NoCard())
    return compile_launches


WIDE = {"dims": (128, 128), "length": 64}


@pytest.mark.parametrize("rule", ["linear", "scalar", "vector", "gated-delta"])
def test_half_precision_compiles_for_hopper(compiled: Any, rule: str) -> None:
    for kernel in compiled(Case(rule, **WIDE), torch.bfloat16):
        assert kernel.metadata.shared <= compile_kit.SHARED_MOST, kernel.name
        most = 96 if kernel.name == "forward_kernel" else 0  # a few numbers of its prologue
        assert compile_kit.usage(kernel.asm["cubin"])[1] <= most, f"{kernel.name} spills registers"
        assert kernel.name == "running_kernel" or "wgmma" in kernel.asm["ptx"], kernel.name


@pytest.mark.parametrize(
    "case",
    [
        Case("linear", feature_map="taylor", normalize=True, dims=(16, 64), length=64),
        Case("gated-delta", dims=(256, 256), length=64),
        Case("vector", dims=(256, 256), length=64),
    ],
    ids=["taylor", "gated delta 256", "vector 256"],
)
def test_other_half_precision_fits_the_card(compiled: Any, case: Case) -> None:
    for kernel in compiled(case, torch.bfloat16):
        assert kernel.metadata.shared <= compile_kit.SHARED_MOST, kernel.name


@pytest.mark.parametrize("rule", ["scalar", "gated-delta"])
def test_float32_fits_the_card(compiled: Any, rule: str) -> None:
    for kernel in compiled(Case(rule, **WIDE), torch.float32):
        assert kernel.metadata.shared <= compile_kit.SHARED_MOST, kernel.name
        assert compile_kit.usage(kernel.asm["cubin"])[1] < 512, f"{kernel.name} spills most of its registers"


def test_a_call_that_triton_cannot_take_is_told_why() -> None:
    x = torch.randn(1, 8, 2, 16)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^q is on cpu, Triton kernels need a CUDA device"):
            linear_recurrence(x, x, x, impl="triton")
    assert linear_recurrence(x, x, x)[0].shape == x.shape


def test_what_no_card_has_confirmed_is_refused() -> None:
    from workbench_kernels.linear_memory.portable import launch

    def told(dims: tuple[int, int], dtype: torch.dtype, **words: Any) -> str | None:
        q, v = (torch.zeros(1, 4, 2, d, dtype=dtype) for d in dims)
        given: dict[str, Any] = {"delta": True, "feature_map": "identity", "chunk": None}
        return launch._unchecked(q, v, **(given | words))

    for dims in ((20, 24), (16, 40), (32, 32), (1, 1), (128, 64)):
        assert str(told(dims, torch.bfloat16)).startswith(f"beta is given with head dims {dims}")
        assert told(dims, torch.bfloat16, delta=False) is None
    assert told((64, 128), torch.bfloat16) is None
    assert told((32, 32), torch.float32) is None
    assert "feature_map 'elu+1'" in str(told((64, 64), torch.bfloat16, feature_map="elu+1"))
    assert "chunk is 32" in str(told((64, 64), torch.bfloat16, chunk=32))
    assert told((64, 64), torch.bfloat16, chunk=64) is None
