"""What all matrix memories share: projections, short convolution, gates, one recurrence, gated and normalised output.

A mechanism of this family says which gates it has (``gates``), which feature map, and whether it divides by the sum of
the weights. The recurrence itself is ``workbench_kernels.linear_memory.linear_recurrence``.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import normalize as unit
from torch.nn.functional import silu

from workbench.checks import whole
from workbench.memory.layers._conv import ShortConv
from workbench.memory.layers._norm import rms_norm
from workbench.memory.layers.base import MemoryLayer, Slot, State, divides, widened


def open_gate(dim: int, width: int) -> nn.Linear:
    """The projection of a silu gate that begins near 1: small weights about the bias whose silu is 1.

    The papers do not publish how theirs begins. With torch's usual weights the gate has a random sign at every token,
    and a short training is spent on undoing that.
    """
    gate = nn.Linear(dim, width)
    with torch.no_grad():
        gate.weight.mul_(0.1)
        gate.bias.fill_(1.2784645)
    return gate


class LinearMemory(MemoryLayer):
    """A matrix per head, M_t = decay(M_{t-1}) + write(k_t, v_t), read as q_t M_t.

    Args:
        dim: width of the tokens. heads: matrices, each with its own part of the projections.
        key_dim, value_dim: rows and columns of one matrix; default ``dim / heads``.
        conv: tokens that the convolution before q, k and v sees; 0 leaves it out.
        gate: multiply the read by silu(x W_g + b) before the output projection; about 1 at the start.
        chunk: tokens that the fast form takes at once; None lets the kernel choose. Any value gives the same result.
    """

    feature_map: str = "identity"
    #: Divide by the read of a column of ones (linear attention), which then is part of the state.
    normalized: bool = False
    #: Keys and queries of length one, as the delta rule needs to stay stable.
    unit_keys: bool = False

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        key_dim: int | None = None,
        value_dim: int | None = None,
        conv: int = 4,
        gate: bool = False,
        chunk: int | None = None,
    ):
        super().__init__(dim)
        self.heads = whole("heads", heads)
        self.key_dim = whole("key_dim", divides("heads", heads, dim) if key_dim is None else key_dim)
        self.value_dim = whole("value_dim", divides("heads", heads, dim) if value_dim is None else value_dim)
        self.conv, self.gate = whole("conv", conv, 0), bool(gate)
        self.chunk = None if chunk is None else whole("chunk", chunk)
        self.to_qkv = nn.Linear(dim, self.heads * (2 * self.key_dim + self.value_dim), bias=False)
        self.short = ShortConv(self.to_qkv.out_features, conv) if conv else None
        self.to_gate = open_gate(dim, self.heads * self.value_dim) if gate else None
        self.norm = rms_norm(self.value_dim)
        self.to_out = nn.Linear(self.heads * self.value_dim, dim, bias=False)

    # ------------------------------------------------------------------ what a mechanism says
    def gates(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """log_decay <= 0, (B, T, H) or (B, T, H, key_dim), and beta in [0, 1], (B, T, H); None for neither."""
        return None, None

    def turn(self, q: Tensor, k: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, Tensor, State]:
        """Last change of queries and keys (B, T, H, key_dim), where positions come in; and what of it is carried."""
        return q, k, {}

    # ------------------------------------------------------------------ the layer
    @property
    def map_dim(self) -> int:
        """Rows of the matrix: the key's width after the feature map."""
        return 1 + self.key_dim + self.key_dim**2 if self.feature_map == "taylor" else self.key_dim

    def layout(self, batch: int) -> dict[str, Slot]:
        columns = self.value_dim + int(self.normalized)
        slots = {"memory": Slot((batch, self.heads, self.map_dim, columns))}
        if self.short is not None:
            slots["conv"] = Slot(self.short.shape(batch))
        return slots

    def run(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        q, k, v, after = self._project(x, state, keep)
        log_decay, beta = self.gates(x)
        y, after["memory"] = self._recur(q, k, v, log_decay, beta, state["memory"], keep)
        return self._out(x, y), after

    def _project(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor, State]:
        qkv, after = self.to_qkv(x), {}
        if self.short is not None:
            qkv, after["conv"] = self.short(qkv, state["conv"], keep)
        sizes = [self.heads * self.key_dim] * 2 + [self.heads * self.value_dim]
        q, k, v = (rearrange(part, "b t (h d) -> b t h d", h=self.heads) for part in qkv.split(sizes, -1))
        if self.unit_keys:
            q, k = unit(q, dim=-1), unit(k, dim=-1)
        q, k, turned = self.turn(q, k, state, keep)
        return q, k, v.contiguous(), {**after, **turned}

    def _recur(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        beta: Tensor | None,
        memory: Tensor,
        keep: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        from workbench_kernels.linear_memory import FEATURE_MAPS, linear_recurrence

        feature_map = self.feature_map
        if keep is not None:  # the map of a zero key need not be zero, so it is the mapped key that is blanked
            wide, seen, feature_map = FEATURE_MAPS[feature_map], keep[..., None, None], "identity"
            q, k = wide(q.to(memory.dtype)), wide(k.to(memory.dtype)) * seen
            v = v.to(memory.dtype) * seen
            log_decay = None if log_decay is None else log_decay * (seen if log_decay.dim() == 4 else keep[..., None])
        y, after = linear_recurrence(
            q.contiguous(),
            k.contiguous(),
            v,
            log_decay=log_decay,
            beta=beta,
            feature_map=feature_map,
            normalize=self.normalized,
            scale=1.0 if self.normalized else self.key_dim**-0.5,
            state=memory,
            chunk=self.chunk,
            check_values=False,
        )
        return y, after

    def _out(self, x: Tensor, y: Tensor) -> Tensor:
        y = rearrange(self.norm(y.to(x.dtype)), "b t h d -> b t (h d)")
        return self.to_out(y if self.to_gate is None else y * silu(self.to_gate(x)))

    # ------------------------------------------------------------------ looking
    def recall(self, x: Tensor, state: State) -> Tensor:
        """q M for each token: the pass over one token whose write is left out."""
        rows = x.shape[1]
        wide = widened(state, rows)
        q, k, v, _ = self._project(x.transpose(0, 1), wide, None)
        blank = torch.zeros(rows, 1, dtype=torch.bool, device=x.device)
        y, _ = self._recur(q, k, v, *self.gates(x.transpose(0, 1)), wide["memory"], blank)
        return self._out(x.transpose(0, 1), y).transpose(0, 1)

    def scalars(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Means over heads: decay and write strength where the mechanism has them, length of the value written."""
        log_decay, beta = self.gates(x)
        _, _, v, _ = self._project(x, state, None)
        seen: dict[str, Any] = {"value_norm": v.norm(dim=-1).mean(-1)[0]}
        if log_decay is not None:
            seen["decay"] = log_decay.exp().flatten(2).mean(-1)[0]
        if beta is not None:
            seen["write_strength"] = beta.mean(-1)[0]
        return seen
