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

from workbench_kernels.linear_memory.portable import launch
from workbench_kernels.linear_memory.portable.arguments import (
    GATES,
    MAPS,
    Plan,
    Sizes,
    States,
    Systems,
    flags_of,
    optional,
    rows_of,
    strided,
    tile,
)
from workbench_kernels.linear_memory.portable.configurations import covering, fused, keeps, pick, segments_of
from workbench_kernels.linear_memory.portable.delta import prepare_gradients_kernel, prepare_kernel
from workbench_kernels.linear_memory.portable.fused import forward_kernel
from workbench_kernels.linear_memory.portable.inputs import Inputs, aligned, contiguous, evened_heads
from workbench_kernels.linear_memory.portable.reads import gradients_kernel, reads_kernel, value_gradients_kernel
from workbench_kernels.linear_memory.portable.states import running_kernel, state_gradients_kernel, states_kernel
from workbench_kernels.linear_memory.portable.step import step_kernel
from workbench_kernels.linear_memory.portable.taylor import taylor_gradients_kernel

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
        return _Call(plan, inputs).sums(PIECES, None, None).sum(1)


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


def _outputs(plan: Plan, x: Inputs) -> tuple[Tensor, Tensor]:
    s = plan.sizes
    kind = torch.float32 if s.value_dim > s.width else x.q.dtype
    y = torch.empty(*x.q.shape[:3], s.value_dim, dtype=kind, device=x.q.device)
    final = torch.empty(plan.count, s.heads, s.dim, s.value_dim, dtype=torch.float32, device=x.q.device)
    return y, final


def _steps(plan: Plan, x: Inputs) -> tuple[Tensor, Tensor]:
    y, final = _outputs(plan, x)
    keys = max(16, triton.next_power_of_2(plan.tiled[0]))
    flags = flags_of(plan, keys=keys, values=tile(plan.tiled[1], max(4096 // keys, 16)))
    count = plan.count * plan.sizes.heads * _tiles(plan.sizes.value_dim, flags.BV)
    tensors = *map(strided, (x.q, x.k, x.v, x.log_decay, x.beta)), x.state, strided(y), final
    launch.start(step_kernel, count, (4, 1), flags, *tensors, plan.rows, plan.sizes, plan.scale)
    return y, final


def _tiles(size: int, width: Any) -> int:
    return triton.cdiv(size, width.value)


class _Call:
    """One call's tensors and launches; what forward and backward share."""

    def __init__(self, plan: Plan, inputs: Inputs) -> None:
        self.plan, self.inputs, self.sizes = plan, inputs, plan.sizes
        self.like = {"device": inputs.q.device, "dtype": torch.float32}
        self.gate = inputs.log_decay
        if plan.gate == GATES["vector"] and inputs.log_decay is not None:
            self.gate = torch.empty(inputs.log_decay.shape, **self.like)
            flags, shape = self.flags("running")
            count = plan.chunks * self.sizes.heads * _tiles(self.sizes.dim, flags.BK)
            arguments = strided(inputs.log_decay), strided(self.gate), plan.rows, self.sizes
            launch.start(running_kernel, count, shape, flags, *arguments)

    def flags(self, which: str) -> tuple[Any, tuple[int, int]]:
        tiles = pick(self.plan, which)
        dim, value_dim = self.plan.tiled
        keys, values = tile(dim, tiles.keys), tile(value_dim, tiles.values)
        if which in ("states", "state_gradients") and self.plan.delta:
            keys = tile(dim, 256)
        if self.plan.map == MAPS["taylor"]:
            keys = max(keys, tile(self.sizes.raw, 32))
        flags = flags_of(self.plan, keys=keys, values=values)
        return flags, (tiles.warps, tiles.stages)

    def empty(self, *shape: int, wide: bool = False) -> Tensor:
        return torch.empty(*shape, device=self.like["device"], dtype=self.plan.wide if wide else torch.float32)

    def states_like(self) -> Tensor:
        return self.empty(self.plan.chunks, self.sizes.heads, self.sizes.dim, self.sizes.value_dim, wide=True)

    def tokens_like(self, width: int, wide: bool = True) -> Tensor:
        return self.empty(*self.inputs.q.shape[:3], width, wide=wide)

    def prepare(self) -> Systems:
        x, s, plan = self.inputs, self.sizes, self.plan
        wanted = plan.gate == GATES["scalar"] and plan.given.get("factors", True)
        made = Systems(
            self.empty(plan.chunks, s.heads, plan.chunk, plan.chunk),
            self.tokens_like(s.dim),
            self.tokens_like(s.value_dim),
            *(self.empty(*x.q.shape[:3]) if wanted else None for _ in range(2)),
        )
        flags, shape = self.flags("prepare")
        tensors = *map(strided, (x.k, x.v, self.gate, x.beta)), made.inverses, *map(strided, made[1:3])
        factors = optional(made.grown, made.left)
        launch.start(prepare_kernel, plan.chunks * s.heads, shape, flags, *tensors, *factors, plan.rows, s)
        return made

    def states(self) -> tuple[States, Tensor]:
        """What the reads need, and the final state."""
        x, s, plan = self.inputs, self.sizes, self.plan
        made = self.prepare() if plan.delta else Systems(None, None, x.v, None, None)
        segments = segments_of(plan)
        s = s._replace(segments=segments)
        flags, shape = self.flags("states")
        h, final = self.states_like(), self.empty(plan.count, s.heads, s.dim, s.value_dim)
        new_v = self.tokens_like(s.value_dim) if plan.delta else None
        totals, decays = self.segment_sums(segments)
        count = plan.count * s.heads * segments * _tiles(s.dim, flags.BK) * _tiles(s.value_dim, flags.BV)
        leading = *map(strided, (x.k, made.u, made.w, self.gate)), *optional(made.grown, made.left)
        tensors = *leading, x.state, totals, decays, h, strided(new_v), final, plan.rows, s
        for first in (True, False)[segments == 1 :]:
            launch.start(states_kernel, count, shape, flags, *tensors, TOTALS=first)
        kept = made.inverses, made.w, made.grown, made.left
        return States(*kept, h, made.u if new_v is None else new_v, decays), final

    def fused(self, y: Tensor, final: Tensor) -> None:
        """Reads and the final state; of long rows the segments' sums first."""
        x, s, plan = self.inputs, self.sizes, self.plan
        segments = segments_of(plan, "fused")
        s = s._replace(segments=segments)
        totals, decays = self.segment_sums(segments)
        if totals is not None:
            self.sums(segments, totals, decays, last=False)
        flags, shape = self.flags("fused")
        count = plan.count * s.heads * segments * _tiles(s.value_dim, flags.BV)
        leading = *map(strided, (x.q, x.k, x.v, self.gate)), x.state, totals, decays
        tensors = *leading, strided(y), final, plan.rows, s, plan.scale
        launch.start(forward_kernel, count, shape, flags, *tensors)

    def sums(self, segments: int, totals: Tensor | None, decays: Tensor | None, last: bool = True) -> Tensor:
        """Every segment's own sum (and log decay), all beside each other; of the last one if it is wanted."""
        x, s, plan = self.inputs, self.sizes._replace(segments=segments), self.plan
        if totals is None:
            totals, decays = self.empty(plan.count, segments, s.heads, s.dim, s.value_dim), None
        flags, shape = self.flags("states")
        count = plan.count * s.heads * segments * _tiles(s.dim, flags.BK) * _tiles(s.value_dim, flags.BV)
        leading = *map(strided, (x.k, x.v, None, self.gate)), None, None, None, totals, decays
        tensors = *leading, None, strided(None), None, plan.rows, s
        launch.start(states_kernel, count, shape, flags, *tensors, TOTALS=1 if last else 2)
        return totals

    def segment_sums(self, segments: int) -> tuple[Tensor | None, Tensor | None]:
        if segments == 1:
            return None, None
        lead = (self.plan.count, segments, self.sizes.heads)
        width = {0: None, 1: (), 2: (self.sizes.dim,)}[self.plan.gate]
        decays = None if width is None else self.empty(*lead, *width)
        return self.empty(*lead, self.sizes.dim, self.sizes.value_dim), decays

    def reads(self, h: Tensor, written: Tensor, y: Tensor) -> None:
        x, s, plan = self.inputs, self.sizes, self.plan
        flags, shape = self.flags("reads")
        count = plan.chunks * s.heads * _tiles(s.value_dim, flags.BV)
        tensors = *map(strided, (x.q, x.k, written, self.gate)), h, strided(y)
        launch.start(reads_kernel, count, shape, flags, *tensors, plan.rows, s, plan.scale)

    def value_gradients(self, grad: Tensor, dh: Tensor | None, dv: Tensor) -> None:
        x, s, plan = self.inputs, self.sizes, self.plan
        flags, shape = self.flags("values")
        count = plan.chunks * s.heads * _tiles(s.value_dim, flags.BV)
        tensors = *map(strided, (x.q, x.k, self.gate, grad)), dh, strided(dv)
        launch.start(value_gradients_kernel, count, shape, flags, *tensors, plan.rows, s, plan.scale)

    def state_gradients(
        self, grad: Tensor, last: Tensor | None, states: States, dv: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        x, s, plan = self.inputs, self.sizes, self.plan
        segments = segments_of(plan)
        s = s._replace(segments=segments)
        flags, shape = self.flags("state_gradients")
        dh, first_grad = self.states_like(), None if x.state is None else torch.empty_like(x.state)
        count = plan.count * s.heads * segments * _tiles(s.dim, flags.BK) * _tiles(s.value_dim, flags.BV)
        totals = self.segment_sums(segments)[0]
        leading = *map(strided, (x.q, x.k, states.w, self.gate, grad)), *optional(states.grown, states.left)
        tensors = *leading, last, totals, states.decays, dh, strided(dv), first_grad, plan.rows, s, plan.scale
        for first in (True, False)[segments == 1 :]:
            launch.start(state_gradients_kernel, count, shape, flags, *tensors, TOTALS=first)
        return dh, first_grad

    def gradients(self, grad: Tensor, states: States, dh: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, s, plan = self.inputs, self.sizes, self.plan
        flags, shape = self.flags("gradients")
        dq, dk = torch.empty(x.q.shape, **self.kind()), self.tokens_like(s.raw)
        taylor = plan.map == MAPS["taylor"]
        tiles = 1 if taylor else _tiles(s.dim, flags.BK)
        dg = None
        if plan.gate == GATES["scalar"]:
            dg = self.empty(tiles, *x.q.shape[:3])
        elif plan.gate == GATES["vector"]:
            dg = self.tokens_like(s.dim, wide=False)
        step = 0 if dg is None else dg.stride(0)
        view = dg[0] if dg is not None and plan.gate == GATES["scalar"] else dg
        leading = *map(strided, (x.q, x.k, states.written, self.gate, grad)), states.h, dh
        tensors = *leading, *map(strided, (dq, dk, view))
        kernel = taylor_gradients_kernel if taylor else gradients_kernel
        launch.start(kernel, plan.chunks * s.heads * tiles, shape, flags, *tensors, step, plan.rows, s, plan.scale)
        return dq, dk, dg.sum(0) if dg is not None and plan.gate == GATES["scalar"] else dg

    def kind(self) -> dict[str, Any]:
        return {"device": self.inputs.q.device, "dtype": self.inputs.q.dtype}

    def prepare_gradients(self, states: States, du: Tensor, dk: Tensor, dg: Tensor | None) -> tuple[Tensor, Tensor]:
        x, s, plan = self.inputs, self.sizes, self.plan
        flags, shape = self.flags("prepare_gradients")
        dv, dbeta = self.tokens_like(s.value_dim), self.empty(*x.q.shape[:3])
        leading = *map(strided, (x.k, x.v, self.gate, x.beta)), states.inverses, states.h
        tensors = *leading, *map(strided, (states.written, du, dk, dv, dg, dbeta))
        launch.start(prepare_gradients_kernel, plan.chunks * s.heads, shape, flags, *tensors, plan.rows, s)
        return dv, dbeta


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
        y, final, states = _forward(_Call(plan, inputs))
        ctx.save_for_backward(*inputs, *((states or ()) if keeps(plan) else ()))
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, last: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, kept, plan = Inputs(*ctx.saved_tensors[:6]), ctx.saved_tensors[6:], ctx.plan
        with launch.on(inputs.q):
            found = _backward(_Call(plan, inputs), States(*kept) if kept else None, grad, last)
        shared = [None if x is None else _shared(x, like) for x, like in zip(found, inputs, strict=True)]
        return *shared, None


def _forward(call: _Call) -> tuple[Tensor, Tensor, States | None]:
    y, final = _outputs(call.plan, call.inputs)
    if fused(call.plan):
        call.fused(y, final)
        return y, final, None
    states, final = call.states()
    call.reads(states.h, states.written, y)
    return y, final, states


def _backward(
    call: _Call, states: States | None, grad: Tensor | None, last: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, s = call.inputs, call.sizes
    if grad is None:
        grad = torch.zeros(*x.q.shape[:3], s.value_dim, **call.kind())
    grad = grad if grad.stride(3) == 1 else grad.contiguous()
    grad = grad if x.beta is None else aligned(grad)
    last = None if last is None else last.contiguous()
    states = states or call.states()[0]
    dv, dbeta = call.tokens_like(s.value_dim), None
    if states.inverses is None:
        dh, first = call.state_gradients(grad, last, states, None)
        call.value_gradients(grad, dh, dv)
    else:
        call.value_gradients(grad, None, dv)
        dh, first = call.state_gradients(grad, last, states, dv)
    dq, dk, dg = call.gradients(grad, states, dh)
    if states.inverses is not None:
        dv, dbeta = call.prepare_gradients(states, dv, dk, dg)
    return dq, dk, dv[..., : s.width], dg, dbeta, first


def _shared(grad: Tensor, like: Tensor) -> Tensor:
    """Summed over the query heads that share a key head; in the dtype of the input."""
    if grad.shape[2:3] != like.shape[2:3] and grad.dim() == 4 and like.dim() == 4:
        batch, length, heads, width = like.shape
        grad = grad.view(batch, length, heads, -1, width).float().sum(3)
    return grad.to(like.dtype)
