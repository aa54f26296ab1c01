"""A call's tensors, brought into the form that the kernels are compiled for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    beta: Tensor | None
    state: Tensor | None


#: Of the inputs, by query heads; that of v with the column of ones.
Gradients = Inputs


def tokens_of(x: Inputs, at: slice) -> Inputs:
    """Views of some tokens; the state as it is."""
    log_decay, beta = (None if gate is None else gate[:, at] for gate in (x.log_decay, x.beta))
    return Inputs(x.q[:, at], x.k[:, at], x.v[:, at], log_decay, beta, x.state)


def contiguous(x: Tensor) -> Tensor:
    """Last dimension contiguous (a gate's: heads), and a chunk of it within 32-bit offsets."""
    last = x.stride(-1) if x.dim() == 4 else 1
    return x if last == 1 and abs(x.stride(1)) < 1 << 23 else x.contiguous()


def aligned(x: Tensor) -> Tensor:
    """For the delta rules: strides and address are multiples of 16, as widths are by now.

    Anything else is compiled to other code, of which no card has run all.
    """
    x = contiguous(x)
    if x.dim() != 4 or x.shape[3] % 16 or not (any(step % 16 for step in x.stride()[:3]) or x.data_ptr() % 16):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def evened_heads(x: Inputs) -> Inputs | None:
    """The delta rules' heads filled with zeros up to the next multiple of 16; None where they are, and for other rules.

    Zeros in q, k and v change no other component (a feature map would make ones of them). Widths that are no multiples
    of 16 are compiled to other code, loads of single numbers, which ptxas 12.8 gets wrong in places that change with
    every tile.
    """
    more, more_values = -x.q.shape[3] % 16, -x.v.shape[3] % 16
    if x.beta is None or not (more or more_values):
        return None
    pad = torch.nn.functional.pad
    q, k, v = pad(x.q, (0, more)), pad(x.k, (0, more)), pad(x.v, (0, more_values))
    state = None if x.state is None else pad(x.state, (0, more_values, 0, more))
    return x._replace(q=q, k=k, v=v, state=state)
