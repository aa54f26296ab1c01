"""The shared cases of all sequence memories: every registered layer under every one of its example settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.memory.base import MEMORIES
from workbench.memory.layers.base import MemoryLayer, State, build_layer, layer_names
from workbench.models.mixer import MixerConfig, MixerLM

DIM = 8
TOKENS = 13


@dataclass(frozen=True)
class Case:
    slug: str
    number: int
    settings: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.slug}-{self.number}"

    def layer(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> MemoryLayer:
        torch.manual_seed(seed)
        return build_layer(self.slug, DIM, **self.settings).to(dtype)

    def model(self, vocab: int = 19) -> MixerLM:
        torch.manual_seed(0)
        mixers = [{"mixer": self.slug, **self.settings}] * 2
        return MixerLM(MixerConfig(vocab, DIM, mixers, mlp_ratio=1)).eval()


CASES = [
    Case(slug, number, settings)
    for slug in layer_names()
    for number, settings in enumerate(MEMORIES.get(slug).examples)
]


def tokens(batch: int = 2, length: int = TOKENS, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pieces(layer: MemoryLayer, sizes: list[int]) -> list[int]:
    """``sizes`` with the first ones joined until they hold the part that must come at once."""
    first = 0
    while sizes and first < max(layer.noncausal_prefix, 1):
        first, sizes = first + sizes[0], sizes[1:]
    return [first, *sizes]


def stream(layer: MemoryLayer, x: Tensor, sizes: list[int], state: State | None = None) -> tuple[Tensor, State]:
    """y and the last state, fed in pieces."""
    reads = []
    for part in x.split(pieces(layer, sizes), 1):
        y, state = layer(part, state)
        reads.append(y)
    assert state is not None
    return torch.cat(reads, 1), state


def tensors(state: State) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in state.items() if isinstance(value, Tensor))


def copied(state: State) -> State:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def same(a: State, b: State, tolerance: float = 0.0) -> bool:
    """Whether two states hold the same memory."""
    shared = {name for name in a if not name.startswith("aux/")}
    return shared == {name for name in b if not name.startswith("aux/")} and all(
        torch.allclose(a[name], b[name], rtol=tolerance, atol=tolerance)
        if isinstance(a[name], Tensor) and a[name].is_floating_point()
        else bool(torch.as_tensor(a[name] == b[name]).all())
        for name in shared
    )
