"""Starting a kernel: device, grid, and the one place where triton is asked what it runs on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from workbench_kernels.launching import launch
from workbench_kernels.softmax_attention.portable.configurations import Tiles
from workbench_kernels.softmax_attention.portable.forward import forward_kernel
from workbench_kernels.softmax_attention.problem import Problem

#: With TRITON_INTERPRET=1 the kernels run on the CPU, one program at a time: for tests and for looking inside.
INTERPRETED = not isinstance(forward_kernel, triton.runtime.JITFunction)
LONGEST = 2**31 - 1024  # positions are 32-bit numbers; offsets are 64-bit


def on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def capability(x: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)


def start(kernel: Any, programs: int, tiles: Tiles, *arguments: Any, **constants: Any) -> None:
    """Run a kernel with a grid of that many programs (none: nothing to do)."""
    if not programs:
        return
    if INTERPRETED:
        kernel[(programs,)](*arguments, **constants)
    else:
        words = {"warps": tiles.warps, "stages": tiles.stages, "enable_fp_fusion": True}
        launch(kernel, (programs, 1, 1), arguments, constants, **words)


def refusal(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why no kernel of this folder can take the call, beginning with the argument's name; None = it can."""
    if not (q.is_cuda or INTERPRETED):
        return f"q is on {q.device}, Triton kernels need a CUDA device"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"q is {q.dtype}, Triton kernels take bfloat16, float16 and float32"
    for name, x in (("q", q), ("v", v)):
        if x.shape[3] > 256:
            return f"{name} has head dim {x.shape[3]}, Triton kernels take 1 to 256"
    if capability(q) < (8, 0):
        return f"q is on a card of compute capability {capability(q)}, Triton kernels need (8, 0) or later"
    if max(q.shape[1], k.shape[1]) > LONGEST:
        return f"q and k may have at most {LONGEST} positions, got {q.shape[1]} and {k.shape[1]}"
    bias = problem.masking.bias
    if bias is not None and bias.requires_grad:
        return "mask requires a gradient, which only impl='reference' gives"
    return None
