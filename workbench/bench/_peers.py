"""The peers that a table may race: torch's own attention, and other libraries where they can be imported.

All take (B, S, H, D) and give it back, so that no contender pays for a transposition that another does not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor

#: (q, k, v, causal) -> out; causal only where Nq = Nk, which needs no word on alignment.
Attention = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def eager(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Two products and a softmax, with the N x N scores in memory."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, 2) if groups > 1 else x for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return torch.einsum("bhij,bjhd->bihd", torch.softmax(scores, -1), v)


def sdpa(backend: str | None = None) -> Attention:
    """torch's scaled_dot_product_attention, on one back end ("flash", "cudnn", "efficient") or on its own choice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION"}
    only = None if backend is None else getattr(SDPBackend, names[backend])

    def run(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        grouped = q.shape[2] != k.shape[2]
        with nullcontext() if only is None else sdpa_kernel(only):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
        return out.transpose(1, 2)

    return run


def sdpa_peers(device: torch.device | str) -> dict[str, Attention]:
    if torch.device(device).type == "cuda":
        return {f"SDPA {name}": sdpa(name) for name in ("flash", "cudnn", "efficient")}
    return {"SDPA": sdpa()}


def flex() -> Attention:
    """flex_attention compiled for the first shape it meets; make a new one for every shape.

    A compile that sees many shapes gives up on static ones, and its backward frees what a second pass would need, so
    donated buffers are off.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)

    @functools.cache
    def mask(n: int, device: torch.device) -> Any:
        return create_block_mask(lambda b, h, i, j: i >= j, None, None, n, n, device=str(device))

    def run(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        blocks = mask(q.shape[1], q.device) if causal else None
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with torch._functorch.config.patch(donated_buffer=False):
            out = compiled(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2)

    return run


def flash_attn_4() -> Attention | None:
    """flash-attn-4 (CuTe DSL), or None where it cannot be imported."""
    try:
        function = import_module("flash_attn.cute").flash_attn_func
    except Exception:  # its own dependencies fail in many ways on other machines
        return None

    def run(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        out = function(q, k, v, causal=causal)
        return out[0] if isinstance(out, tuple) else out

    return run


def flashinfer() -> Any | None:
    """The flashinfer package, or None where it cannot be imported."""
    try:
        return import_module("flashinfer")
    except Exception:
        return None


def version(name: str) -> str:
    """What a peer's row says of where it comes from."""
    if name.startswith("SDPA cudnn"):
        return f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    for prefix, package in (("flash-attn-4", "flash-attn-4"), ("flashinfer", "flashinfer-python")):
        if name.startswith(prefix):
            try:
                return f"{package} {metadata.version(package)}"
            except metadata.PackageNotFoundError:
                return package
    return f"torch {torch.__version__}"
