"""One call's tensors and launches, or those of a piece of its rows: what forward and backward pass share."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from workbench_kernels.linear_memory.portable import launch
from workbench_kernels.linear_memory.portable.arguments import (
    GATES,
    MAPS,
    Plan,
    States,
    Systems,
    flags_of,
    optional,
    strided,
    tile,
)
from workbench_kernels.linear_memory.portable.configurations import pick, pieces_of, segments_of
from workbench_kernels.linear_memory.portable.delta import prepare_gradients_kernel, prepare_kernel
from workbench_kernels.linear_memory.portable.fused import forward_kernel
from workbench_kernels.linear_memory.portable.inputs import Gradients, Inputs, tokens_of
from workbench_kernels.linear_memory.portable.lanes import OneLane
from workbench_kernels.linear_memory.portable.reads import gradients_kernel, reads_kernel, value_gradients_kernel
from workbench_kernels.linear_memory.portable.states import running_kernel, state_gradients_kernel, states_kernel
from workbench_kernels.linear_memory.portable.taylor import taylor_gradients_kernel


def tiles_of(size: int, width: Any) -> int:
    return triton.cdiv(size, width.value)


def outputs_of(plan: Plan, x: Inputs) -> tuple[Tensor, Tensor]:
    """(y, final state)."""
    s = plan.sizes
    kind = torch.float32 if s.value_dim > s.width else x.q.dtype
    y = torch.empty(*x.q.shape[:3], s.value_dim, dtype=kind, device=x.q.device)
    final = torch.empty(plan.count, s.heads, s.dim, s.value_dim, dtype=torch.float32, device=x.q.device)
    return y, final


class Call:
    """``at``: the tokens that are this call's own, where it is a piece of another one."""

    def __init__(self, plan: Plan, inputs: Inputs, at: slice = slice(None)) -> None:
        self.plan, self.inputs, self.sizes, self.at = plan, inputs, plan.sizes, at
        self.like = {"device": inputs.q.device, "dtype": torch.float32}
        self.gate = inputs.log_decay
        if plan.gate == GATES["vector"] and inputs.log_decay is not None:
            self.gate = torch.empty(inputs.log_decay.shape, **self.like)
            flags, shape = self.flags("running")
            count = plan.chunks * self.sizes.heads * tiles_of(self.sizes.dim, flags.BK)
            arguments = strided(inputs.log_decay), strided(self.gate), plan.rows, self.sizes
            launch.start(running_kernel, count, shape, flags, *arguments)

    def pieces(self, count: int = 0) -> list[Call]:
        """The call, or its rows cut into ``count`` pieces of whole chunks (0: as the configuration says); but for the
        first they have no initial state."""
        count, length, chunk = count or pieces_of(self.plan), self.plan.rows.length, self.plan.chunk
        if count == 1:
            return [self]
        ends = [min(triton.cdiv(length, chunk) * n // count * chunk, length) for n in range(count + 1)]
        return [self._piece(slice(*pair)) for pair in pairwise(ends)]

    def _piece(self, at: slice) -> Call:
        length = at.stop - at.start
        rows = self.plan.rows._replace(length=length)
        plan = replace(self.plan, rows=rows, chunks=self.plan.count * triton.cdiv(length, self.plan.chunk))
        inputs = tokens_of(self.inputs, at)
        return Call(plan, inputs._replace(state=None) if at.start else inputs, at)

    def own(self, x: Tensor) -> Tensor:
        """Of a tensor of the whole call's tokens, those of this piece."""
        return x[:, self.at]

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

    def kind(self) -> dict[str, Any]:
        return {"device": self.inputs.q.device, "dtype": self.inputs.q.dtype}

    def empty(self, *shape: int, wide: bool = False) -> Tensor:
        return torch.empty(*shape, device=self.like["device"], dtype=self.plan.wide if wide else torch.float32)

    def states_like(self) -> Tensor:
        return self.empty(self.plan.chunks, self.sizes.heads, self.sizes.dim, self.sizes.value_dim, wide=True)

    def tokens_like(self, width: int, wide: bool = True) -> Tensor:
        return self.empty(*self.inputs.q.shape[:3], width, wide=wide)

    def final_like(self) -> Tensor:
        s = self.sizes
        return self.empty(self.plan.count, s.heads, s.dim, s.value_dim)

    def gradients_like(self) -> Gradients:
        x, s, gate = self.inputs, self.sizes, self.plan.gate
        rates = x.q.shape[:3]
        dg = self.tokens_like(s.dim, wide=False) if gate == GATES["vector"] else None
        return Gradients(
            torch.empty(x.q.shape, **self.kind()),
            self.tokens_like(s.raw),
            self.tokens_like(s.value_dim),
            self.empty(*rates) if gate == GATES["scalar"] else dg,
            None if x.beta is None else self.empty(*rates),
            None if x.state is None else torch.empty_like(x.state),
        )

    def written_like(self) -> Tensor | None:
        """For the delta rule's written values, or their gradient."""
        return self.tokens_like(self.sizes.value_dim) if self.plan.delta else None

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

    def states(self, start: Tensor | None, final: Tensor, lanes: OneLane) -> tuple[States, Any]:
        """What the reads need, and where to meet the walk from ``start`` to ``final``."""
        x, s, plan = self.inputs, self.sizes, self.plan
        made = self.prepare() if plan.delta else Systems(None, None, x.v, None, None)
        segments = segments_of(plan)
        s = s._replace(segments=segments)
        flags, shape = self.flags("states")
        h, new_v = self.states_like(), self.written_like()
        totals, decays = self.segment_sums(segments)
        count = plan.count * s.heads * segments * tiles_of(s.dim, flags.BK) * tiles_of(s.value_dim, flags.BV)
        leading = *map(strided, (x.k, made.u, made.w, self.gate)), *optional(made.grown, made.left)
        tensors = *leading, start, totals, decays, h, strided(new_v), final, plan.rows, s

        def walk() -> None:
            for first in (True, False)[segments == 1 :]:
                launch.start(states_kernel, count, shape, flags, *tensors, TOTALS=first)

        kept = made.inverses, made.w, made.grown, made.left
        return States(*kept, h, made.u if new_v is None else new_v, decays), lanes.walk(walk)

    def fused(self, y: Tensor, final: Tensor) -> None:
        """Reads and the final state; of long rows the segments' sums first."""
        x, s, plan = self.inputs, self.sizes, self.plan
        segments = segments_of(plan, "fused")
        s = s._replace(segments=segments)
        totals, decays = self.segment_sums(segments)
        if totals is not None:
            self.sums(segments, totals, decays, last=False)
        flags, shape = self.flags("fused")
        count = plan.count * s.heads * segments * tiles_of(s.value_dim, flags.BV)
        leading = *map(strided, (x.q, x.k, x.v, self.gate)), x.state, totals, decays
        tensors = *leading, strided(y), final, plan.rows, s, plan.scale
        launch.start(forward_kernel, count, shape, flags, *tensors)

    def sums(self, segments: int, totals: Tensor | None, decays: Tensor | None, last: bool = True) -> Tensor:
        """Every segment's own sum (and log decay), all beside each other; of the last one if it is wanted."""
        x, s, plan = self.inputs, self.sizes._replace(segments=segments), self.plan
        if totals is None:
            totals, decays = self.empty(plan.count, segments, s.heads, s.dim, s.value_dim), None
        flags, shape = self.flags("states")
        count = plan.count * s.heads * segments * tiles_of(s.dim, flags.BK) * tiles_of(s.value_dim, flags.BV)
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
        count = plan.chunks * s.heads * tiles_of(s.value_dim, flags.BV)
        tensors = *map(strided, (x.q, x.k, written, self.gate)), h, strided(y)
        launch.start(reads_kernel, count, shape, flags, *tensors, plan.rows, s, plan.scale)

    def value_gradients(self, grad: Tensor, dh: Tensor | None, dv: Tensor) -> None:
        x, s, plan = self.inputs, self.sizes, self.plan
        flags, shape = self.flags("values")
        count = plan.chunks * s.heads * tiles_of(s.value_dim, flags.BV)
        tensors = *map(strided, (x.q, x.k, self.gate, grad)), dh, strided(dv)
        launch.start(value_gradients_kernel, count, shape, flags, *tensors, plan.rows, s, plan.scale)

    def state_gradients(
        self,
        grad: Tensor,
        last: Tensor | None,
        first_grad: Tensor | None,
        states: States,
        dv: Tensor | None,
        lanes: OneLane,
    ) -> tuple[Tensor, Any]:
        """dh, and where to meet the walk from ``last`` to ``first_grad``."""
        x, s, plan = self.inputs, self.sizes, self.plan
        segments = segments_of(plan)
        s = s._replace(segments=segments)
        flags, shape = self.flags("state_gradients")
        dh, totals = self.states_like(), self.segment_sums(segments)[0]
        count = plan.count * s.heads * segments * tiles_of(s.dim, flags.BK) * tiles_of(s.value_dim, flags.BV)
        leading = *map(strided, (x.q, x.k, states.w, self.gate, grad)), *optional(states.grown, states.left)
        tensors = *leading, last, totals, states.decays, dh, strided(dv), first_grad, plan.rows, s, plan.scale

        def walk() -> None:
            for first in (True, False)[segments == 1 :]:
                launch.start(state_gradients_kernel, count, shape, flags, *tensors, TOTALS=first)

        return dh, lanes.walk(walk)

    def gradients(self, grad: Tensor, states: States, dh: Tensor, made: Gradients) -> None:
        """Of q, k and the log decay; of the delta rule's k and log decay a part."""
        x, s, plan = self.inputs, self.sizes, self.plan
        flags, shape = self.flags("gradients")
        taylor = plan.map == MAPS["taylor"]
        tiles = 1 if taylor else tiles_of(s.dim, flags.BK)
        dg, parts = made.log_decay, None
        if plan.gate == GATES["scalar"]:
            parts = self.empty(tiles, *x.q.shape[:3])
            dg = parts[0]
        step = 0 if dg is None else (dg if parts is None else parts).stride(0)
        leading = *map(strided, (x.q, x.k, states.written, self.gate, grad)), states.h, dh
        tensors = *leading, *map(strided, (made.q, made.k, dg))
        kernel = taylor_gradients_kernel if taylor else gradients_kernel
        launch.start(kernel, plan.chunks * s.heads * tiles, shape, flags, *tensors, step, plan.rows, s, plan.scale)
        if parts is not None:
            torch.sum(parts, 0, out=made.log_decay)

    def prepare_gradients(self, states: States, du: Tensor, made: Gradients) -> None:
        """Of v and beta, and the rest of those of k and the log decay, from the gradient of what is written."""
        x, s, plan = self.inputs, self.sizes, self.plan
        flags, shape = self.flags("prepare_gradients")
        leading = *map(strided, (x.k, x.v, self.gate, x.beta)), states.inverses, states.h
        tensors = *leading, *map(strided, (states.written, du, made.k, made.v, made.log_decay, made.beta))
        launch.start(prepare_gradients_kernel, plan.chunks * s.heads, shape, flags, *tensors, plan.rows, s)
