"""Root mean square normalisation that is the same function in every dtype."""

from __future__ import annotations

import torch
from torch import nn

#: Of float32. Without one of its own, torch takes that of the tensor's dtype, which is a billionth of this in float64:
#: what an untrained memory answers is so small that a model in float64 would then say something else altogether.
EPS = torch.finfo(torch.float32).eps


def rms_norm(width: int) -> nn.RMSNorm:
    """x / sqrt(mean(x^2) + EPS) times a learned weight, over the last ``width`` numbers."""
    return nn.RMSNorm(width, eps=EPS)
