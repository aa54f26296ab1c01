"""Forward and backward pass: in which order a call's launches are issued, and which may run beside each other.

The delta rules' rows can be cut into pieces that follow each other (``configurations.pieces_of``): while the state
walks over one piece, the card makes the next piece's systems or the last one's reads, backward the gradients of what
the walk has left behind. A piece starts from the float32 state with which the one before it ended, so the numbers are
those of the whole row, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench_kernels.linear_memory.portable import launch
from workbench_kernels.linear_memory.portable.arguments import States
from workbench_kernels.linear_memory.portable.call import Call, outputs_of
from workbench_kernels.linear_memory.portable.configurations import fused
from workbench_kernels.linear_memory.portable.inputs import Gradients, aligned, tokens_of
from workbench_kernels.linear_memory.portable.lanes import OneLane, TwoLanes

Walked = tuple[States, torch.cuda.Event | None]


def forward(call: Call) -> tuple[Tensor, Tensor, list[States]]:
    """(y, final state, what the backward pass needs of every piece)."""
    y, final = outputs_of(call.plan, call.inputs)
    if fused(call.plan):
        call.fused(y, final)
        return y, final, []
    parts = call.pieces()
    with lanes_of(parts) as lanes:
        found = walked(parts, final, lanes)
        for part, (states, mark) in zip(parts, found, strict=True):
            lanes.meet(mark)
            part.reads(states.h, states.written, part.own(y))
    return y, final, [states for states, _ in found]


def backward(call: Call, kept: list[States], grad: Tensor | None, last: Tensor | None) -> Gradients:
    """The gradients of the inputs; ``grad`` and ``last`` are those of y and of the final state, None = zero."""
    if grad is None:
        grad = torch.zeros(*call.inputs.q.shape[:3], call.sizes.value_dim, **call.kind())
    grad = grad if grad.stride(3) == 1 else grad.contiguous()
    grad = grad if call.inputs.beta is None else aligned(grad)
    last = None if last is None else last.contiguous()
    made = call.gradients_like()
    parts = call.pieces(len(kept))  # as the forward pass cut them, be this one alone captured
    with lanes_of(parts) as lanes:
        states = kept or [states for states, _ in walked(parts, call.final_like(), lanes)]
        _walk_back(parts, states, grad, last, made, lanes)
    return made


def lanes_of(parts: list[Call]) -> OneLane:
    device = parts[0].inputs.q.device
    beside = len(parts) > 1 and device.type == "cuda" and not launch.INTERPRETED
    return TwoLanes(device) if beside else OneLane()


def walked(parts: list[Call], final: Tensor, lanes: OneLane) -> list[Walked]:
    """The states of every piece, and where to meet its walk; the last one ends in ``final``."""
    found = []
    start = parts[0].inputs.state
    for part in parts:
        end = final if part is parts[-1] else torch.empty_like(final)
        found.append(part.states(start, end, lanes))
        start = end
    return found


def _walk_back(
    parts: list[Call], states: list[States], grad: Tensor, last: Tensor | None, made: Gradients, lanes: OneLane
) -> None:
    walks = []
    for part, known in zip(reversed(parts), reversed(states), strict=True):
        first = made.state if part is parts[0] else part.final_like()
        own_grad, written = part.own(grad), part.written_like()
        if written is not None:
            part.value_gradients(own_grad, None, written)
        dh, mark = part.state_gradients(own_grad, last, first, known, written, lanes)
        walks.append((part, known, own_grad, written, dh, mark))
        last = first
    for part, known, own_grad, written, dh, mark in walks:
        lanes.meet(mark)
        own = tokens_of(made, part.at)
        if written is None:
            part.value_gradients(own_grad, dh, own.v)
        part.gradients(own_grad, known, dh, own)
        if written is not None:
            part.prepare_gradients(known, written, own)
