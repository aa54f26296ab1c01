"""The Triton attention kernels without a GPU: run by Triton's interpreter, and compiled for the cards they ship for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import compile_kit
import pytest
import torch

from workbench_kernels import attention
from workbench_kernels.masking import masking
from workbench_kernels.softmax_attention.problem import Problem

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["test_second_order", "test_first_order", "not test_second and not test_first"])
def test_kernels_in_the_interpreter(part: str) -> None:
    compile_kit.run_in_the_interpreter("interpreted_attention.py", part)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``compiled(capability, run)``: what the launches inside ``run`` compile to, for a card that is not here."""
    import triton

    from workbench_kernels.softmax_attention.portable import launch

    def compile_launches(capability: int, run: Callable[[], Any]) -> list[Any]:
        made = []

        def start(kernel: Any, programs: int, tiles: Any, *arguments: Any, **constants: Any) -> None:
            words = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
            made.append(kernel.warmup(*arguments, grid=(1,), **words, **constants))

        monkeypatch.setattr(launch, "start", start)
        monkeypatch.setattr(launch, "capability", lambda _: divmod(capability, 10))
        monkeypatch.setattr(triton.runtime.driver, "_active", compile_kit.NoCard(capability))
        run()
        return made

    return compile_launches


def call(dim: int, dtype: torch.dtype, **words: Any) -> tuple[Any, ...]:
    """(problem, q, k, v) of zeros; only shapes, strides and types are looked at."""
    q, k, v = (torch.zeros(1, 256, heads, dim, dtype=dtype) for heads in (4, 2, 2))
    masks = masking(q, k, **{"causal": True, "window": None, "key_padding": None, "mask": None, **words})
    return Problem(masks, dim**-0.5), q, k, v


@pytest.mark.parametrize(
    ("capability", "most", "dim", "dtype"),
    [
        (90, 227, 128, torch.bfloat16),
        (90, 227, 64, torch.float16),
        (80, 163, 128, torch.bfloat16),
        (86, 99, 256, torch.float16),
    ],
)
def test_frozen_tiles_compile_and_fit_the_card(compiled, capability, most, dim, dtype) -> None:
    from workbench_kernels.softmax_attention.portable import flash2

    problem, q, k, v = call(dim, dtype)
    lse = torch.zeros(1, 4, 256)

    def run() -> None:
        flash2.forward(problem, q, k, v, None, (False, {}))
        flash2.backward(problem, q, k, v, None, q, lse, q, None, (False, {}))

    for kernel in compiled(capability, run):
        assert kernel.metadata.shared <= most << 10, kernel.name
        assert compile_kit.usage(kernel.asm["cubin"])[1] == 0, f"{kernel.name} spills registers"


def test_additive_masks_leave_room_for_the_other_tiles(compiled) -> None:
    from workbench_kernels.softmax_attention.portable import flash2

    for dim, dtype in ((64, torch.float32), (256, torch.float64)):
        problem, q, k, v = call(dim, torch.bfloat16, mask=torch.zeros(256, 256, dtype=dtype))
        (kernel,) = compiled(90, partial(flash2.forward, problem, q, k, v, None, (False, {})))
        assert kernel.metadata.shared <= 227 << 10


def test_the_first_order_compiles(compiled) -> None:
    from workbench_kernels.softmax_attention.portable import flash1

    problem, q, k, v = call(64, torch.bfloat16)
    statistics = torch.zeros(1, 4, 256)

    def run() -> None:
        flash1.forward(problem, q, k, v, None, {})
        flash1.backward(problem, q, k, v, None, q, statistics, statistics, q, {})

    for kernel in compiled(90, run):
        assert "wgmma" in kernel.asm["ptx"]
        assert compile_kit.usage(kernel.asm["cubin"])[1] == 0, f"{kernel.name} spills registers"


def test_every_tile_of_the_tables_is_legal() -> None:
    from workbench_kernels.softmax_attention.portable.configurations import FIRST, PASSES, TABLE, tiles_for

    for tiles in (*TABLE.values(), *FIRST.values()):
        for size in (tiles.rows, tiles.cols, tiles.warps):
            assert size & (size - 1) == 0
        assert min(tiles.rows, tiles.cols) >= 16
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        for size in (2, 4):
            for dim in (16, 64, 128, 256):
                assert all(tiles_for(capability, size, dim, which) for which in PASSES)


def test_a_call_that_triton_cannot_take_is_told_why() -> None:
    q, k, v = (torch.randn(1, 8, 2, 16) for _ in range(3))
    if not torch.cuda.is_available():
        for impl in ("triton", "triton-v1"):
            with pytest.raises(ValueError, match=r"^q is on cpu, Triton kernels need a CUDA device"):
                attention(q, k, v, impl=impl)
    assert attention(q, k, v, impl=("triton", "tiled")).shape == q.shape
    with pytest.raises(ValueError, match=r"^impl must be one of"):
        attention(q, k, v, impl=("triton", "tilled"))
    with pytest.raises(ValueError, match=r"^seed must lie"):
        attention(q, k, v, dropout=0.1, seed=2**40)


def test_a_deterministic_call_does_not_train_through_gradients_of_varying_order(monkeypatch) -> None:
    from workbench_kernels.softmax_attention import api, tiled

    monkeypatch.setitem(api.IMPLEMENTATIONS, "hopper", tiled.__name__)  # one that takes calls here
    problem, q, k, v = call(16, torch.float32)
    assert api.refusal("hopper", problem, q, k, v, None) is None
    q.requires_grad_()
    assert str(api.refusal("hopper", problem, q, k, v, None)).startswith("deterministic")
    assert api.refusal("hopper", replace(problem, deterministic=False), q, k, v, None) is None
    with torch.no_grad():
        assert api.refusal("hopper", problem, q, k, v, None) is None
    with pytest.raises(ValueError, match=r"^deterministic"):
        attention(q, k, v, impl="hopper", deterministic=True)
    attention(q, k, v, impl="hopper")
