"""Launches of Triton and Gluon kernels that skip the argument analysis when they can.

Analysing the arguments of a launch in Python takes 100 to 250 microseconds, more than a short attention takes on the
card. Everything it would find is a function of shapes, strides and types, so the compiled kernel is kept under those
and called directly: 40 to 60 microseconds. Tensors are handed over as addresses, because Triton asks the driver about
the address of a tensor and refuses one whose first page is not mapped, as in a cache of virtual memory whose first
slot is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from triton.language import constexpr

_COMPILED: dict[Any, Any] = {}
_MOST = 4096


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    args: tuple[Any, ...],
    constants: Mapping[str, Any],
    *,
    warps: int = 4,
    stages: int | None = None,
    **more: Any,
) -> None:
    """Run a kernel on the current stream of the device that holds its first tensor.

    ``args`` are the run-time arguments in order (tensors, numbers, tensor descriptors), ``constants`` the constexpr
    ones that follow them, in the order of the kernel's signature. Sizes that vary from call to call belong into the
    kernel's ``do_not_specialize``, so that one compiled kernel serves them all. ``more`` are other launch options.
    """
    device = next(_devices(args))
    key = id(kernel), device, warps, stages, *more.items(), *map(_signature, args), *constants.values()
    options = {"num_warps": warps, **more} if stages is None else {"num_warps": warps, "num_stages": stages, **more}
    compiled = _COMPILED.get(key)
    if compiled is not None and torch.cuda.current_device() == device.index:
        compiled[grid](*map(_address, args), *constants.values())
        return
    with torch.cuda.device(device):
        if compiled is None:
            if len(_COMPILED) >= _MOST:  # lengths that never come back
                _COMPILED.clear()
            compiled = _COMPILED[key] = kernel.warmup(*args, grid=grid, **constants, **options)
        compiled[grid](*map(_address, args), *constants.values())


def _devices(args: Iterable[Any]) -> Iterator[torch.device]:
    """Of all tensors among the arguments, also of those in tuples."""
    for x in map(_base, args):
        if isinstance(x, Tensor):
            yield x.device
        elif isinstance(x, tuple):
            yield from _devices(x)


def _address(x: Any) -> Any:
    return x.data_ptr() if isinstance(x, Tensor) else x


def _base(x: Any) -> Any:
    return x if isinstance(x, Tensor) else getattr(x, "base", x)


def _signature(x: Any) -> Any:
    """What Triton specialises an argument on; a launch under the same signature may use the same compiled kernel."""
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() % 16
    if isinstance(x, float):
        return float
    if x is None or isinstance(x, int):
        return x
    if isinstance(x, tuple):
        return tuple(map(_member, x))
    return x.base.dtype, *x.shape, *x.strides, *x.block_shape


def _member(x: Any) -> Any:
    """Of a tuple's member: numbers by what Triton looks at (one, multiples of 16, width), constants by their value."""
    if isinstance(x, int):
        return x == 1, x % 16 == 0, -(1 << 31) <= x < 1 << 31
    return x.value if isinstance(x, constexpr) else _signature(x)
