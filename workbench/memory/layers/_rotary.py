"""Rotary positions for layers that have no model around them to give them any."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """x (B, T, H, D) turned by its positions (B, T) or (T,): pair (i, i + D/2) by position * base^(-2i/D); D even."""
    half = x.shape[-1] // 2
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    speeds = base ** (-torch.arange(half, device=x.device, dtype=wide) / max(half, 1))
    angles = (positions.to(wide)[..., None] * speeds)[..., None, :]  # (b) t 1 half
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
