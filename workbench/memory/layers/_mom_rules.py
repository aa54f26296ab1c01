"""Inner rules of Mixture-of-Memories: the gates of many memories at once, one stack of weights for all of them.

M_t = diag(a_t) M_{t-1}, then M_t += b_t k'(v - k M) (delta rules) or M_t += k' v. All rules are cases of
``linear_recurrence``; a rule only says where a and b come from (arXiv 2502.13685, appendix; code of the paper).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

#: Rank and divisor of GLA's gate.
RANK, DAMPING = 16, 16.0


class Rule(NamedTuple):
    """``delta``: writes correct what is held. ``decay``: "" none, "scalar" a head, "channel", or "fixed" a head."""

    delta: bool
    decay: str


RULES = {
    "linear-attention": Rule(False, ""),
    "retnet": Rule(False, "fixed"),
    "gla": Rule(False, "channel"),
    "delta-net": Rule(True, ""),
    "gated-delta-net": Rule(True, "scalar"),
}


def xavier(*shape: int) -> Tensor:
    """Uniform with the gain 2^-2.5 of the paper's code, for one (in, out) matrix or a stack of them."""
    bound = 2**-2.5 * math.sqrt(6 / (shape[-2] + shape[-1]))
    return torch.empty(shape).uniform_(-bound, bound)


def _no_decay(values: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter


def applied(x: Tensor, w: Tensor) -> Tensor:
    """x (B, T, d) seen by every group, or (B, T, G, d) with a part for each, times w (G, d, o): (B, T, G, o)."""
    return torch.einsum("btd,gdo->btgo" if x.dim() == 3 else "btgd,gdo->btgo", x, w)


def per_group(w: Tensor, groups: int) -> Tensor:
    """A stack of weights with one entry a group; a stack that is shorter shares its first entry among them."""
    own = w.shape[0]
    return w if own == groups else torch.cat([w[:1].expand(groups - own + 1, *w.shape[1:]), w[1:]])


class Gates(nn.Module):
    """Decay and writing rate of ``groups`` memories from the token, with a stack of ``memories`` weights."""

    def __init__(self, rule: str, dim: int, heads: int, key_dim: int, memories: int, groups: int):
        super().__init__()
        self.rule, self.heads, self.key_dim, self.groups = RULES[rule], heads, key_dim, groups
        if self.rule.delta:
            self.beta = nn.Parameter(xavier(memories, dim, heads))
        if self.rule.decay == "scalar":
            self.a = nn.Parameter(xavier(memories, dim, heads))
            self.A_log = _no_decay(torch.empty(heads).uniform_(1e-4, 16).log())
            dt = torch.exp(torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1))).clamp_min(1e-4)
            self.dt_bias = _no_decay(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        elif self.rule.decay == "channel":
            self.low = nn.Parameter(xavier(memories, dim, RANK))
            self.high = nn.Parameter(xavier(memories, RANK, heads * key_dim))
            self.bias = _no_decay(torch.zeros(memories, heads * key_dim))

    def forward(self, x: Tensor, own: slice) -> tuple[Tensor | None, Tensor | None]:
        """log decay <= 0, (B, T, G, H) or (B, T, G, H, d_k), and beta in (0, 1), (B, T, G, H); None for neither.

        x as for ``applied``; ``own`` picks memories of the stack.
        """
        beta = applied(x, self._of(self.beta, own)).sigmoid() if self.rule.delta else None
        return self._log_decay(x, own), beta

    def _of(self, w: Tensor, own: slice) -> Tensor:
        return per_group(w, self.groups)[own]

    def _log_decay(self, x: Tensor, own: slice) -> Tensor | None:
        if self.rule.decay == "scalar":
            return -self.A_log.exp() * softplus(applied(x, self._of(self.a, own)) + self.dt_bias)
        if self.rule.decay == "channel":
            gate = applied(applied(x, self._of(self.low, own)), self._of(self.high, own)) + self._of(self.bias, own)
            return (logsigmoid(gate) / DAMPING).unflatten(-1, (self.heads, self.key_dim))
        if self.rule.decay == "fixed":
            groups = x.shape[2] if x.dim() == 4 else len(range(*own.indices(self.groups)))
            rate = 2.0 ** (-5 - torch.arange(self.heads, dtype=x.dtype, device=x.device))
            return torch.log1p(-rate).expand(*x.shape[:2], groups, self.heads)
        return None
