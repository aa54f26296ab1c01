"""Where page groups come from: explicit mapping on a CPU, the system's demand paging, or CUDA virtual memory."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from workbench import checks
from workbench.errors import BadInput, MemoryError_
from workbench.systems.page_backends.base import Calls, PageBackend, Region

if TYPE_CHECKING:
    import torch

__all__ = ["BACKENDS", "Calls", "PageBackend", "Region", "missing", "open_backend"]

BACKENDS = ("mapped", "demand", "cuda")


def _class(name: str) -> Any:
    from workbench.systems.page_backends.cuda import CudaPages
    from workbench.systems.page_backends.demand import DemandPages
    from workbench.systems.page_backends.mapped import MappedPages

    classes: dict[str, Any] = {"mapped": MappedPages, "demand": DemandPages, "cuda": CudaPages}
    if name not in classes:
        raise BadInput(f"backend={name!r} is not one of 'auto', {', '.join(map(repr, BACKENDS))}")
    return classes[name]


def missing(name: str) -> str | None:
    """What this machine lacks for a back end, or None: ``missing("cuda")``."""
    return _class(name).missing()


def open_backend(name: str = "auto", group_bytes: int = 0, device: str | torch.device = "cpu") -> PageBackend:
    """A page back end for a device.

    Args:
        name: "mapped", "demand", "cuda", or "auto": CUDA's on a GPU, else "mapped" and, where the system refuses it
            (no memfd in a container), "demand" with a warning that says why.
        group_bytes: g; 0 takes 2 MiB on a GPU and 64 KiB on a CPU.

    Raises:
        BadInput: an unknown name, a size that is no multiple of the granularity, a name that does not fit the device.
        MemoryError_: this machine lacks what the back end needs; the message says what.
    """
    on_gpu = checks.device(device, here=False) != "cpu"  # one that is not there: its back end says so
    if name == "auto":
        name = "cuda" if on_gpu else _for_cpu()
    made = _class(name)
    if (name == "cuda") != on_gpu:
        raise BadInput(f"backend={name!r} holds memory of {'a GPU' if name == 'cuda' else 'the CPU'}, not of {device}")
    if reason := made.missing():
        raise MemoryError_(f"the {name!r} page back end cannot work here: {reason}; memory='paged' works everywhere")
    size = group_bytes or (2 << 20 if on_gpu else 64 << 10)
    return made(size, device=str(device)) if on_gpu else made(size)


def _for_cpu() -> str:
    reason = missing("mapped")
    if reason and not missing("demand"):
        warnings.warn(f"page groups come from the system's demand paging, without aliasing: {reason}", stacklevel=3)
        return "demand"
    return "mapped"
