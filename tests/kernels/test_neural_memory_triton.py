"""The neural memory's Triton kernels without a GPU: run by Triton's interpreter, and compiled for Hopper."""

from __future__ import annotations

from typing import Any

import compile_kit
import machine_code
import pytest
import torch
from neural_memory_cases import Case, outcome

from workbench_kernels import neural_memory
from workbench_kernels.linear_memory import NeuralState

pytest.importorskip("triton")


@pytest.mark.slow
def test_kernels_in_the_interpreter() -> None:
    compile_kit.run_in_the_interpreter("interpreted_neural_memory.py", "test_")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``compiled(case)``: what a forward and a backward pass launch, compiled for Hopper."""
    import triton

    from workbench_kernels.linear_memory.portable import launch

    made: list[Any] = []

    def start(kernel: Any, programs: int, shape: tuple[int, int], flags: Any, *arguments: Any) -> None:
        words = {"num_warps": shape[0], "num_stages": shape[1], "enable_fp_fusion": True}
        made.append(kernel.warmup(*arguments, flags, grid=(1,), **words))

    def compile_launches(case: Case) -> list[Any]:
        made.clear()
        outcome(case, case.draw(), "triton", torch.float32)
        return list(made)

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(launch, "INTERPRETED", True)  # so that it is not refused on a CPU
    monkeypatch.setattr(triton.runtime.driver, "_active", compile_kit.NoCard())
    return compile_launches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "spilled"),
    [
        (Case(chunk=16, dims=(64, 256, 64), heads=1, length=32), 512),
        (Case(chunk=32, dims=(32, 128, 32), heads=1, length=64), 1280),
    ],
    ids=["16, 64-256-64", "32, 32-128-32"],
)
def test_they_compile_for_hopper(compiled: Any, case: Case, spilled: int) -> None:
    """Both launches fit the card; what they spill is written down here so that it does not grow unseen."""
    kernels = compiled(case)
    assert [kernel.name for kernel in kernels] == ["neural_forward_kernel", "neural_backward_kernel"]
    for kernel in kernels:
        assert kernel.metadata.shared <= compile_kit.SHARED_MOST, kernel.name
        assert compile_kit.usage(kernel.asm["cubin"])[1] <= spilled, kernel.name
        assert not machine_code.wrong_descriptors(kernel), kernel.name


def call(**words: Any) -> Any:
    x, gate = torch.zeros(1, 16, 1, 4), torch.zeros(1, 16, 1)
    weights = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 8, 4)
    state = NeuralState(weights, weights)
    return neural_memory(x, x, x, theta=gate, eta=gate, alpha=gate, state=state, **words)


def test_no_card_no_triton_and_auto_is_torch() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^q is on cpu, Triton kernels need a CUDA device \(impl='triton'\)"):
            call(impl="triton")
    assert call(impl="auto")[0].shape == (1, 16, 1, 4)


def test_an_unknown_implementation_is_told_which_there_are() -> None:
    with pytest.raises(ValueError, match=r"^impl must be one of .*'auto', 'chunked', 'triton'"):
        call(impl="cuda")
