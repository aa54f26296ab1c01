"""Launches the Hopper kernels: what they take, their frozen configurations, and the autograd function around them."""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench_kernels.launching import launch
from workbench_kernels.softmax_attention.hopper.binding import copyable, descriptor, row_descriptor
from workbench_kernels.softmax_attention.problem import Problem

LOG2_E = math.log2(math.e)
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Forward:
    """Frozen forward configuration: keys a block, consumer warpgroups, ring stages, registers of a consumer."""

    keys: int = 128
    groups: int = 2
    stages: int = 2
    registers: int = 240


#: (padded head dim, causal) -> configuration.
FORWARD: dict[tuple[int, bool], Forward] = {
    (64, True): Forward(stages=4),
    (64, False): Forward(stages=4),
    (128, True): Forward(),
    (128, False): Forward(),
}


#: Backward: keys and ring stages are fixed by shared memory, queries a block by the (padded) head dim.
BACKWARD_KEYS, BACKWARD_STAGES, BACKWARD_REGISTERS = 128, 2, 240
BACKWARD_QUERIES = {64: 128, 128: 64}
#: Bytes of keys and values that heads worked on at one time may hold: a good half of the L2 cache.
SECTION_BYTES = 32 << 20


def attention(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns out (B, Nq, H, D) in q's dtype and lse (B, Nq, H) float32; differentiable in q, k, v through both."""
    return _HopperAttention.apply(q, k, v, problem)


def refuses(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> str | None:
    """Why these kernels cannot take the call, or ``None`` when they can."""
    masks = problem.masking
    if not _on_hopper(q.device):
        return "needs a Hopper card (compute capability 9.0) and a Triton with Gluon"
    if q.dtype not in HALVES:
        return f"needs bfloat16 or float16, got {q.dtype}"
    if q.shape[3] > 128 or q.shape[3] % 8:
        return f"needs a head dim up to 128 that is a multiple of 8, got {q.shape[3]}"
    if v.shape[3] != q.shape[3]:
        return f"needs v's head dim to be q's, got {v.shape[3]} and {q.shape[3]}"
    masked = masks.key_padding, masks.allowed, masks.bias, masks.blocks
    if masks.window is not None or any(part is not None for part in masked):
        return "knows the causal mask alone: no window, padding, bias, boolean or block mask"
    if sinks is not None or problem.softcap is not None or problem.dropout:
        return "has no sinks, soft cap or dropout"
    if not problem.scale > 0:
        return f"needs a scale above 0, got {problem.scale}"
    if 0 in (*q.shape, *k.shape):
        return "needs at least one query and one key"
    if not all(copyable(x) for x in (q, k, v)):
        return "needs 16-byte aligned tensors with strides that are multiples of 8 elements and no broadcast"
    return None


class _HopperAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, problem: Problem
    ) -> tuple[Tensor, Tensor]:
        out, lse = forward(problem, q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.problem = problem
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        return (*backward(ctx.problem, q, k, v, out, lse, grad_out, grad_lse), None)


def forward(problem: Problem, q: Tensor, k: Tensor, v: Tensor, config: Forward | None = None) -> tuple[Tensor, Tensor]:
    """(out, lse) as in :func:`attention`; ``config`` overrides the frozen configuration (for measuring)."""
    from workbench_kernels.softmax_attention.hopper.forward import attention_forward

    batch, queries, heads, dim = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    causal, padded = problem.masking.causal, _padded(dim)
    use = config or FORWARD[padded, causal]
    out = torch.empty(batch, queries, heads, dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, queries, heads, dtype=torch.float32, device=q.device)
    rows = 64 * use.groups
    blocks = -(-queries // rows)
    section = max(1, SECTION_BYTES * group // (2 * q.element_size() * keys * dim))
    tiles, others = blocks * heads * batch, heads * batch
    counter = _counter(q.device, torch.cuda.current_stream(q.device).stream_id)
    tensors = descriptor(q, 64, padded), descriptor(k, use.keys, padded), descriptor(v, use.keys, padded)
    sizes = tiles, blocks, heads, others, min(section, others), group, queries, keys, problem.scale * LOG2_E
    constants = {
        "BM": rows, "BN": use.keys, "D": padded, "WGS": use.groups, "STAGES": use.stages,
        "CAUSAL": causal, "REGS": use.registers,
    }  # fmt: skip
    grid = min(tiles, _processors(q.device)), 1, 1
    launch(attention_forward, grid, (*tensors, descriptor(out, 64, padded), lse, counter, *sizes), constants)
    return out, lse


def backward(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    grad_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. dQ is summed by atomic additions: its last bits differ between runs."""
    from workbench_kernels.softmax_attention.hopper.backward import attention_backward
    from workbench_kernels.softmax_attention.hopper.passes import row_terms, scaled_cast

    batch, queries, heads, dim = q.shape
    keys, kv_heads, padded = k.shape[1], k.shape[2], _padded(dim)
    rows = BACKWARD_QUERIES[padded]
    whole = -(-queries // rows) * rows
    grad = grad if copyable(grad) else grad.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    stats = torch.empty(2, batch * heads, whole, dtype=torch.float32, device=q.device)
    sums = torch.zeros(batch, queries, heads, padded, dtype=torch.float32, device=q.device)
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    launch(
        row_terms,
        (whole // 64, batch * heads, 1),
        (
            out, grad, lse, lse if grad_lse is None else grad_lse, stats[0], stats[1], queries, heads, dim, whole,
            *out.stride()[:3], *grad.stride()[:3],
        ),
        {"HAS_GRAD_LSE": grad_lse is not None, "ROWS": 64, "D": padded},
    )  # fmt: skip
    launch(
        attention_backward,
        (-(-keys // BACKWARD_KEYS), kv_heads, batch),
        (
            descriptor(q, rows, padded),
            descriptor(k, BACKWARD_KEYS, padded),
            descriptor(v, BACKWARD_KEYS, padded),
            descriptor(grad, rows, padded),
            row_descriptor(stats[0], rows),
            row_descriptor(stats[1], rows),
            descriptor(dk, 64, padded),
            descriptor(dv, 64, padded),
            descriptor(sums, 64, 64),
            queries, keys, heads // kv_heads, problem.scale * LOG2_E, problem.scale,
        ),
        {
            "BM": rows, "BN": BACKWARD_KEYS, "D": padded, "STAGES": BACKWARD_STAGES,
            "CAUSAL": problem.masking.causal, "REGS": BACKWARD_REGISTERS,
        },
    )  # fmt: skip
    count = dq.numel()
    constants = {"D": padded, "BLOCK": 4096}
    launch(scaled_cast, (-(-count // 4096), 1, 1), (sums, dq, problem.scale, count, dim), constants, warps=8)
    return dq, dk, dv


def _padded(dim: int) -> int:
    return 64 if dim <= 64 else 128


@functools.cache
def _counter(device: torch.device, stream: int) -> Tensor:
    """The tile counter of a stream; every launch leaves it at zero."""
    return torch.zeros(1, dtype=torch.int32, device=device)


@functools.cache
def _on_hopper(device: torch.device) -> bool:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    try:
        return importlib.util.find_spec("triton.experimental.gluon.language.nvidia.hopper") is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
