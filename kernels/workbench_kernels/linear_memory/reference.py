"""The specification: one token after the other, in the dtype of the state."""

from __future__ import annotations

import torch
from torch import Tensor


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, beta: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Decay, write, read: M = diag(a) M; M += beta k'(v - k M), or M += k' v without beta; y = q M."""
    reads = []
    for t in range(q.shape[1]):
        if log_decay is not None:
            state = state * log_decay[:, t].exp()[..., None]  # b h k v
        written = v[:, t]
        if beta is not None:
            written = beta[:, t, :, None] * (written - torch.einsum("bhk,bhkv->bhv", k[:, t], state))
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], written)
        reads.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(reads, 1), state
