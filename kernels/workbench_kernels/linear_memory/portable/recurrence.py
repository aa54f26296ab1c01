"""``impl="triton"``: the linear recurrence chunk by chunk on a GPU, any rule, forward and backward.

Three launches a pass (five with the delta rule): the states at the chunks' starts, one row after the other; then all
chunks at once. The plain rules keep nothing but their inputs and make the states again in the backward pass; the delta
rules, whose states are a long walk, keep them and their triangular systems where that is a small part of the card.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench_kernels.linear_memory.portable import launch, passes
from workbench_kernels.linear_memory.portable.arguments import (
    GATES,
    MAPS,
    Plan,
    Sizes,
    States,
    flags_of,
    rows_of,
    strided,
    tile,
)
from workbench_kernels.linear_memory.portable.call import Call, outputs_of, tiles_of
from workbench_kernels.linear_memory.portable.configurations import covering, keeps
from workbench_kernels.linear_memory.portable.inputs import Inputs, aligned, contiguous, evened_heads
from workbench_kernels.linear_memory.portable.step import step_kernel

#: Calls of at most so many tokens a row, without gradients, go token by token.
STEPS = 8
#: Of a row whose sum alone is asked for.
PIECES = 16


def recurrence(
    inputs: Inputs,
    *,
    feature_map: str,
    ones: bool,
    scale: float,
    offsets: Tensor | None,
    chunk: int | None = None,
    tokens: bool | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, final state): y in float32 with the column of ``ones``, else in the dtype of q.

    ``tokens``: go token by token (no gradients); None decides by length. ``options`` replace frozen tiles and say

    - ``keep``: whether the states stay in memory for the backward pass (True) or are made again there (False), with
      the same numbers. Left out, the delta rules keep them where they take at most 1/16 of the card's memory (a chunk
      and head of D = Dv = 128 in bfloat16 takes 82 kB: 16 heads and 32k tokens .67 GB), the other rules never.
    - ``pieces``: into how many pieces the delta rules cut every row, so that the states of one run beside the other
      launches of the next, with the same numbers (packed rows are not cut). Left out, one long row alone is cut.
    - ``factors=False``: the gated delta rule's walks over the chunks add up the gates of each chunk themselves
      instead of reading decays that were made beside each other.
    - ``padded=False``: the delta rule's heads and tiles are as narrow as they are given instead of a width that a card
      has confirmed.
    """
    options = options or {}
    blank = feature_map == "identity" and not ones  # else zeros would be mapped, or stand between values and ones
    evened = evened_heads(inputs) if options.get("padded", blank) else None
    if evened is not None:
        y, final = recurrence(
            evened, feature_map=feature_map, ones=ones, scale=scale, offsets=offsets, chunk=chunk, tokens=tokens,
            options=options,
        )  # fmt: skip
        dim, value_dim = inputs.q.shape[3], inputs.v.shape[3]
        return y[..., :value_dim], final[..., :dim, :value_dim]
    ready = contiguous if inputs.beta is None else aligned
    inputs = Inputs(*(None if x is None else ready(x) for x in inputs))
    plan = _plan(inputs, feature_map, ones, scale, offsets, chunk, options)
    if tokens is None:
        trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
        tokens = not trained and offsets is None and inputs.q.shape[1] <= STEPS
    with launch.on(inputs.q):
        if tokens:
            return _steps(plan, inputs)
        return _Recurrence.apply(*inputs, plan)  # type: ignore[no-any-return]


def summed(k: Tensor, v: Tensor, *, feature_map: str, ones: bool) -> Tensor:
    """The sum of phi(k)' v over all tokens, (B, H, D', Dv or Dv + 1) in float32, without gradients.

    Pieces of a row are added up beside each other, so it is one pass over k and v.
    """
    inputs = Inputs(contiguous(k), contiguous(k), contiguous(v), None, None, None)
    plan = _plan(inputs, feature_map, ones, 1.0, None, None, {})
    with launch.on(k):
        return Call(plan, inputs).sums(PIECES, None, None).sum(1)


def _plan(
    inputs: Inputs,
    feature_map: str,
    ones: bool,
    scale: float,
    offsets: Tensor | None,
    chunk: int | None,
    options: dict[str, Any],
) -> Plan:
    q, k, v, log_decay, beta, _ = inputs
    raw = q.shape[3]
    sizes = Sizes(
        heads=q.shape[2],
        group=q.shape[2] // k.shape[2],
        dim=1 + raw + raw * raw if feature_map == "taylor" else raw,
        raw=raw,
        value_dim=v.shape[3] + ones,
        width=v.shape[3],
    )
    chunk = chunk or (64 if q.dtype == torch.bfloat16 else 32)
    rows, count, chunks = rows_of(offsets, q.shape[0], q.shape[1], chunk)
    gate = GATES["none" if log_decay is None else "vector" if log_decay.dim() == 4 else "scalar"]
    wide = torch.bfloat16 if q.dtype == torch.bfloat16 else torch.float32
    precision = "tf32x3" if q.dtype == torch.float32 else "tf32"
    kinds = (MAPS[feature_map], gate, beta is not None, wide, precision)
    tiled = dims = (sizes.dim, sizes.value_dim)
    if beta is not None and options.get("padded", True):
        tiled = covering(dims, q.dtype) or dims
    return Plan(rows, sizes, count, chunks, chunk, *kinds, scale, tiled, q.device, options)


def _steps(plan: Plan, x: Inputs) -> tuple[Tensor, Tensor]:
    y, final = outputs_of(plan, x)
    keys = max(16, triton.next_power_of_2(plan.tiled[0]))
    flags = flags_of(plan, keys=keys, values=tile(plan.tiled[1], max(4096 // keys, 16)))
    count = plan.count * plan.sizes.heads * tiles_of(plan.sizes.value_dim, flags.BV)
    tensors = *map(strided, (x.q, x.k, x.v, x.log_decay, x.beta)), x.state, strided(y), final
    launch.start(step_kernel, count, (4, 1), flags, *tensors, plan.rows, plan.sizes, plan.scale)
    return y, final


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        beta: Tensor | None,
        state: Tensor | None,
        plan: Plan,
    ) -> tuple[Tensor, Tensor]:
        inputs = Inputs(q, k, v, log_decay, beta, state)
        y, final, states = passes.forward(Call(plan, inputs))
        kept = states if keeps(plan) else []
        ctx.save_for_backward(*inputs, *(x for piece in kept for x in piece))
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, last: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved, plan = ctx.saved_tensors, ctx.plan
        inputs, size = Inputs(*saved[:6]), len(States._fields)
        kept = [States(*saved[first : first + size]) for first in range(6, len(saved), size)]
        with launch.on(inputs.q):
            found = passes.backward(Call(plan, inputs), kept, grad, last)
        found = found._replace(v=found.v[..., : plan.sizes.width])
        shared = [None if x is None else _shared(x, like) for x, like in zip(found, inputs, strict=True)]
        return *shared, None


def _shared(grad: Tensor, like: Tensor) -> Tensor:
    """Summed over the query heads that share a key head; in the dtype of the input."""
    if grad.shape[2:3] != like.shape[2:3] and grad.dim() == 4 and like.dim() == 4:
        batch, length, heads, width = like.shape
        grad = grad.view(batch, length, heads, -1, width).float().sum(3)
    return grad.to(like.dtype)
