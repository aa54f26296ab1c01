"""Linear attention over a prefix and causally beyond it, as one product of tokens by tokens.

The second-order Taylor map makes phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(f), so that a short sequence
needs no features at all: T x T scores are cheaper than D = 1 + f + f^2 features a token up to about T = D / 2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def taylor_scores(q: Tensor, k: Tensor) -> Tensor:
    """phi(q_i) . phi(k_j) of the Taylor map for q (B, T, H, f), k (B, S, H, f): (B, H, T, S), all >= 1/2."""
    s = torch.einsum("bthf,bshf->bhts", q, k) * q.shape[-1] ** -0.5
    return 1 + s + s * s / 2


def quadratic(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    encoder: tuple[Tensor, Tensor] | None = None,
    *,
    causal: bool = True,
    keep: Tensor | None = None,
    keep_encoder: Tensor | None = None,
    epsilon: float = 1e-6,
) -> Tensor:
    """Prefix linear attention in its parallel form (equation 3), one denominator for both sums.

    Args:
        q, k (B, T, H, f), v (B, T, H, d): of the decoder's sum over j <= i, or over all j without ``causal``.
        encoder: k (B, M, H, f) and v (B, M, H, d) of the sum over the prefix, the first M tokens.
        keep, keep_encoder: (B, T) and (B, M) bool, False at tokens that are not in the one and the other sum.

    Returns:
        (B, T, H, d).
    """
    scores = _kept(taylor_scores(q, k), keep)
    if causal:
        scores = scores.tril()
    if encoder is not None:
        scores = torch.cat([scores, _kept(taylor_scores(q, encoder[0]), keep_encoder)], -1)
        v = torch.cat([v, encoder[1]], 1)
    total = scores.sum(-1, keepdim=True)
    return (torch.einsum("bhts,bshd->bhtd", scores, v) / (total + epsilon)).transpose(1, 2)


def _kept(scores: Tensor, keep: Tensor | None) -> Tensor:
    return scores if keep is None else scores * keep[:, None, None]


def read_back(q: Tensor, memory: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """phi(q) s / (phi(q) z + epsilon): q (B, T, H, f) and the memory (B, H, D, d + 1) of s beside z to (B, T, H, d)."""
    from workbench_kernels.linear_memory import FEATURE_MAPS

    y = torch.einsum("bthk,bhkd->bthd", FEATURE_MAPS["taylor"](q.to(memory.dtype)), memory)
    return y[..., :-1] / (y[..., -1:] + epsilon)
