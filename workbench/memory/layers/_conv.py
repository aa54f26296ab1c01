"""The short causal depth-wise convolution before a memory, with its last tokens as state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from workbench.checks import whole


def order_of_kept(keep: Tensor) -> Tensor:
    """(B, T) positions with the padding first and then the kept tokens in their order."""
    return torch.argsort(keep.to(torch.int8), dim=1, stable=True)


def take(x: Tensor, order: Tensor) -> Tensor:
    """x (B, T, ...) at positions order (B, S): (B, S, ...)."""
    index = order.reshape(*order.shape, *[1] * (x.dim() - 2)).expand(*order.shape, *x.shape[2:])
    return x.gather(1, index)


class ShortConv(nn.Module):
    """y_t = silu(sum_i w_i x_{t-size+1+i}) for each channel, over the kept tokens only.

    Args:
        channels: width of x. size: tokens that each output sees, itself included.
    """

    def __init__(self, channels: int, size: int = 4):
        super().__init__()
        self.channels, self.size = channels, whole("conv", size)
        bound = self.size**-0.5
        self.weight = nn.Parameter(torch.empty(self.size, channels).uniform_(-bound, bound))

    def shape(self, batch: int) -> tuple[int, int, int]:
        """Of the state: the last ``size - 1`` tokens."""
        return batch, self.size - 1, self.channels

    def forward(self, x: Tensor, state: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, channels), state (B, size - 1, channels): y (B, T, channels) and the new state."""
        known = torch.cat([state.to(x.dtype), x], 1)
        if keep is None:
            return self._mix(known), known[:, known.shape[1] - self.size + 1 :].to(state.dtype)
        seen = torch.cat([keep.new_ones(state.shape[:2]), keep], 1)
        order = order_of_kept(seen)
        packed = take(known, order)
        padded = torch.cat([torch.zeros_like(state, dtype=x.dtype), packed], 1)
        y = take(self._mix(padded), torch.argsort(order, dim=1))
        return y[:, state.shape[1] :], packed[:, packed.shape[1] - self.size + 1 :].to(state.dtype)

    def _mix(self, known: Tensor) -> Tensor:
        """A sum of shifted products: for sizes this small it beats conv1d and runs under vmap as it is."""
        length = known.shape[1] - self.size + 1
        return silu(sum((self.weight[i] * known[:, i : i + length] for i in range(self.size)), known.new_zeros(())))
