"""Other libraries' kernels for sequence memories, where they can be imported: fla-core, titans-pytorch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

from torch import Tensor, nn

#: (q, k, v, log_decay, beta) -> y, all (B, S, H, ...); scale 1 / sqrt(D).
Rule = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]

#: rule -> module and function of flash-linear-attention, and the gates that it takes after q, k, v.
FLA = {
    "linear": ("fla.ops.linear_attn", "chunk_linear_attn", ()),
    "scalar gate": ("fla.ops.simple_gla", "chunk_simple_gla", ("g",)),
    "gate per channel": ("fla.ops.gla", "chunk_gla", ("g",)),
    "delta": ("fla.ops.delta_rule", "chunk_delta_rule", ("beta",)),
    "gated delta": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", ("g", "beta")),
}


def version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package


#: Tiles of a kernel of fla's that its autotuner may try. It lists up to 48 and compiles them one after the other: two
#: minutes for linear attention alone.
TRIED = 3


def fla(rule: str) -> Rule:
    """flash-linear-attention's chunk kernel of a rule, imported when it is first called.

    What it raises (a package that is not there, a card on which it refuses to run) becomes the row's failure.
    """
    module, function, gates = FLA[rule]

    def run(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, beta: Tensor | None) -> Tensor:
        call = getattr(import_module(module), function)
        fewer_tiles(TRIED)
        given: dict[str, Any] = {name: {"g": log_decay, "beta": beta}[name] for name in gates}
        if rule == "linear":
            given["normalize"] = False
        return call(q, k, v, **given)[0]  # type: ignore[no-any-return]

    return run


def fewer_tiles(most: int) -> None:
    """Leave every autotuned kernel of fla's its largest tiles, with four warps and three stages first."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops"):
            for kernel in list(vars(module).values()):
                while kernel is not None and not isinstance(getattr(kernel, "configs", None), list):
                    kernel = getattr(kernel, "fn", None) if type(kernel).__module__.startswith("triton") else None
                if kernel is not None and len(kernel.configs) > most:
                    kernel.configs = sorted(kernel.configs, key=_size)[:most]


def _size(config: Any) -> tuple[int, int, int]:
    tile = math.prod(x for x in config.kwargs.values() if isinstance(x, int))
    return -tile, abs(config.num_warps - 4), abs(config.num_stages - 3)


def titans_pytorch(dim: int, heads: int, chunk: int, *, moving: bool, device: str) -> Callable[[], nn.Module]:
    """Makes titans-pytorch's neural memory of two layers, hidden width four times the head's.

    ``moving``: gradients at the weights of the chunk's start, as ours and the paper's; else its default, all gradients
    of a sequence at the weights of its start.
    """

    def make() -> nn.Module:
        package = import_module("titans_pytorch")
        models = import_module("titans_pytorch.memory_models")
        network = models.MemoryMLP(dim // heads, depth=2, expansion_factor=4.0)
        words = {"batch_size": chunk} if moving else {}
        memory: nn.Module = package.NeuralMemory(
            dim=dim, chunk_size=chunk, heads=heads, dim_head=dim // heads, model=network, **words
        )
        return memory.to(device)

    return make
