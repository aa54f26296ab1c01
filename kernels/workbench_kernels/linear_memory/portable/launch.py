"""Starting a kernel, and what the kernels of this folder cannot take."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from workbench_kernels.launching import launch
from workbench_kernels.linear_memory.portable.configurations import CONFIRMED, covering
from workbench_kernels.linear_memory.portable.states import states_kernel

#: With TRITON_INTERPRET=1 the kernels run on the CPU, one program at a time: for tests and for looking inside.
INTERPRETED = not isinstance(states_kernel, triton.runtime.JITFunction)
#: Widest keys and values; for the Taylor map, whose features are 1 + f + f^2, the widest f.
WIDEST, WIDEST_TAYLOR = 256, 32
#: Tokens of a chunk. The interpreter takes 16, 32 and 64 in any type; on a card only these have been checked.
CHUNKS = {torch.bfloat16: 64, torch.float16: 32, torch.float32: 32}


def on(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def start(kernel: Any, programs: int, shape: tuple[int, int], flags: Any, *arguments: Any, **constants: Any) -> None:
    """Run a kernel with that many programs (none: nothing to do); ``shape`` is (warps, stages)."""
    if not programs:
        return
    if INTERPRETED:
        kernel[(programs,)](*arguments, flags, **constants)
    else:
        words = {"warps": shape[0], "stages": shape[1], "enable_fp_fusion": True}
        launch(kernel, (programs, 1, 1), (*arguments, flags), constants, **words)


def refusal(
    q: Tensor, v: Tensor, *, delta: bool, vector: bool, feature_map: str, normalize: bool = False,
    chunk: int | None = None,
) -> str | None:  # fmt: skip
    """Why no kernel of this folder can take the call, beginning with the argument's name; None = it can."""
    if not (q.is_cuda or INTERPRETED):
        return f"q is on {q.device}, Triton kernels need a CUDA device"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"q is {q.dtype}, Triton kernels take bfloat16, float16 and float32"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "q is on a card older than compute capability (8, 0)"
    for name, x in (("q", q), ("v", v)):
        if x.shape[3] > WIDEST:
            return f"{name} has head dim {x.shape[3]}, Triton kernels take 1 to {WIDEST}"
    if feature_map == "taylor" and q.shape[3] > WIDEST_TAYLOR:
        return f"q has head dim {q.shape[3]}, the Taylor map of the Triton kernels takes 1 to {WIDEST_TAYLOR}"
    if delta and vector:
        return "log_decay is a gate per channel, which the Triton kernels do not combine with beta"
    if feature_map == "taylor" and (delta or vector):
        return "feature_map is taylor, which the Triton kernels combine with a scalar gate at most"
    if chunk not in (None, 16, 32, 64):
        return f"chunk is {chunk}, Triton kernels take 16, 32, 64 or None"
    return None if INTERPRETED else _unchecked(q, v, delta, feature_map, normalize, chunk)


def _unchecked(q: Tensor, v: Tensor, delta: bool, feature_map: str, normalize: bool, chunk: int | None) -> str | None:
    """What no card has confirmed is not computed on one."""
    if chunk not in (None, CHUNKS[q.dtype]):
        return f"chunk is {chunk}, on a card the Triton kernels take {CHUNKS[q.dtype]} or None for {q.dtype}"
    if delta and covering(dims := (q.shape[3], v.shape[3]), q.dtype) is None:
        return (
            f"beta is given with head dims {dims}; legal for {q.dtype} are those within "
            f"{' or '.join(map(str, CONFIRMED[q.dtype]))}, because a card has run their code"
        )
    if delta and feature_map != "identity":
        return f"beta is given with feature_map {feature_map!r}, which no card has confirmed; legal is 'identity'"
    if delta and normalize:
        return "normalize is True and beta is given, which no card has confirmed; legal is normalize=False"
    return None
