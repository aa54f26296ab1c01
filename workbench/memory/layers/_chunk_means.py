"""Means of the tokens of each chunk of a stream, for gates that are a function of the chunk."""

from __future__ import annotations

import torch
from torch import Tensor


def chunk_means(x: Tensor, mean: Tensor, total: Tensor, filled: int, chunk: int) -> tuple[Tensor, Tensor]:
    """The mean that comes before each chunk, so that no token hears of a later one.

    Args:
        x: (B, T, D), T >= 1: the stream goes on with these tokens.
        mean: (B, D) of the last whole chunk. total: (B, D), the sum of the open one's ``filled`` tokens.
        filled: from 0 to ``chunk`` - 1.

    Returns:
        Means (B, 1 + N, D), N the chunks that x completes: row n belongs to the n-th chunk from the open one on, and
        the last row is the new ``mean``; and the new ``total``.
    """
    missing = chunk - filled
    if x.shape[1] < missing:
        return mean[:, None], total + x.sum(1)
    rest = x[:, missing:]
    whole = rest.shape[1] // chunk
    completed = (total + x[:, :missing].sum(1)) / chunk
    others = rest[:, : whole * chunk].unflatten(1, (whole, chunk)).mean(2)
    return torch.cat([mean[:, None], completed[:, None], others], 1), rest[:, whole * chunk :].sum(1)
