"""All whole chunks of a two-layer neural memory in one launch, their gradients in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench_kernels.linear_memory.portable import launch
from workbench_kernels.linear_memory.portable.arguments import tile
from workbench_kernels.linear_memory.portable.neural import Blocks, Extent, Mixing, Tokens, neural_forward_kernel
from workbench_kernels.linear_memory.portable.neural_gradients import SCRATCH, Found, neural_backward_kernel

#: Tokens of a chunk, and the widest keys and values.
CHUNKS, WIDEST = (16, 32, 64), 128


@dataclass(frozen=True)
class Shape:
    """Hidden units of a block, warps, stages of the software pipeline (1: loads stay behind the barriers)."""

    hidden: int
    warps: int
    stages: int = 1


#: By the tokens of a chunk; keys and values wider than 64 take half the hidden units.
FORWARD = {16: Shape(32, 8), 32: Shape(32, 4), 64: Shape(32, 4)}
BACKWARD = {16: Shape(32, 8), 32: Shape(32, 4), 64: Shape(32, 4)}


def refusal(q: Tensor, v: Tensor, depth: int, chunk: int, decay_to: str) -> str | None:
    """Why the kernels cannot take a call, beginning with the argument's name; None = they can."""
    if not (q.is_cuda or launch.INTERPRETED):
        return f"q is on {q.device}, Triton kernels need a CUDA device"
    if q.dtype != torch.float32:
        return f"q is {q.dtype}, the neural memory's Triton kernels take float32"
    if q.is_cuda and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "q is on a card older than compute capability (8, 0)"
    if depth != 2:
        return f"state has a memory of depth {depth}, the Triton kernels take depth 2"
    if chunk not in CHUNKS:
        return f"chunk is {chunk}, the Triton kernels take {', '.join(map(str, CHUNKS[:-1]))} or {CHUNKS[-1]}"
    if decay_to != "zero":
        return f"decay_to is {decay_to!r}, the Triton kernels take 'zero'"
    for name, x in (("q", q), ("v", v)):
        if x.shape[3] > WIDEST:
            return f"{name} has head dim {x.shape[3]}, the neural memory's Triton kernels take 1 to {WIDEST}"
    return None


def whole_chunks(
    x: Tokens, gates: Mixing, weights: tuple[Tensor, ...], momentum: tuple[Tensor, ...], clip: float | None
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(y, weights, momentum). y: (rows, chunks, C, Dv); a state's matrices: (rows, in, out)."""
    parts = [m for pair in zip(weights, momentum, strict=True) for m in pair]
    start = torch.cat([m.flatten(1) for m in parts], 1)
    hidden = weights[0].shape[2]
    inputs = [m.contiguous() for m in (*x, *gates)]
    kept = torch.is_grad_enabled() and any(m.requires_grad for m in (*inputs, start))
    y, final = _NeuralMemory.apply(*inputs, start, hidden, torch.inf if clip is None else float(clip), kept)
    pieces = final.split([m[0].numel() for m in parts], 1)
    w1, s1, w2, s2 = (piece.view_as(m) for piece, m in zip(pieces, parts, strict=True))
    return y, (w1, w2), (s1, s2)


def _blocks(x: Tokens, hidden: int, shape: Shape) -> Blocks:
    dim, value_dim = x.q.shape[3], x.v.shape[3]
    block = tile(hidden, max(16, shape.hidden // (1 + (max(dim, value_dim) > 64))))
    sizes = (dim, hidden, value_dim, x.q.shape[2], tile(dim, WIDEST), tile(value_dim, WIDEST), block)
    return Blocks(*map(tl.constexpr, (*sizes, "tf32x3")))


class _NeuralMemory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        *tensors, start, hidden, clip, kept = given
        x, gates = Tokens(*tensors[:3]), Mixing(*tensors[3:])
        rows, chunks, size, _ = x.q.shape
        extent = Extent(chunks, chunks + 1 if kept else 2)
        states = torch.empty(rows, extent.slots, start.shape[1], dtype=start.dtype, device=start.device)
        states[:, 0] = start
        y, errors, reads = (torch.empty_like(like) for like in (x.v, x.v, gates.mixed))
        scratch = torch.empty(rows, 2, size, hidden, dtype=start.dtype, device=start.device)
        shape = FORWARD[size]
        arguments = (x, gates, states, y, errors, reads, scratch, clip, extent)
        with launch.on(start):
            flags = _blocks(x, hidden, shape)
            launch.start(neural_forward_kernel, rows, (shape.warps, shape.stages), flags, *arguments)
        if kept:
            ctx.save_for_backward(*tensors, states, errors, reads)
            ctx.extent, ctx.hidden, ctx.clip = extent, hidden, clip
        return y, states[:, chunks % extent.slots].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, last: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *tensors, states, errors, reads = ctx.saved_tensors
        x, gates, extent = Tokens(*tensors[:3]), Mixing(*tensors[3:]), ctx.extent
        rows, size = x.q.shape[0], x.q.shape[2]
        found = Found(*map(torch.empty_like, tensors))
        dstates = torch.empty_like(states[:, :2])
        dstates[:, 0] = last
        scratch = torch.empty(rows, SCRATCH, size, ctx.hidden, dtype=states.dtype, device=states.device)
        shape, turn = BACKWARD[size], extent._replace(slots=2)
        arguments = (x, gates, states, errors, reads, grad.contiguous(), dstates, scratch, found)
        with launch.on(states):
            flags = _blocks(x, ctx.hidden, shape)
            words = (shape.warps, shape.stages)
            launch.start(neural_backward_kernel, rows, words, flags, *arguments, ctx.clip, extent, turn)
        return *found, dstates[:, extent.chunks % 2], None, None, None
