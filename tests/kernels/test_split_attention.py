"""``impl="split"``: what it refuses, and that "auto" goes on to one that takes the call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workbench_kernels import attention


def draw(queries: int, keys: int = 40, **kind: Any) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    shapes = [(2, queries, 4, 16), (2, keys, 2, 16), (2, keys, 2, 16)]
    return [torch.randn(shape, generator=gen, **kind) for shape in shapes]


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("takes 1..8 queries, got 9", {"queries": 9}),
    ("needs causal=True for more than one query", {"causal": False}),
    ("takes no masks beside causal and window", {"key_padding": torch.ones(2, 40, dtype=torch.bool)}),
    ("has no dropout", {"dropout": 0.1}),
    ("gives no gradients", {"grad": True}),
    ("values of the keys' head dim", {"wide": True}),
]


@pytest.mark.parametrize(("told", "words"), REFUSED, ids=[told[:30] for told, _ in REFUSED])
def test_what_it_cannot_take_is_refused_and_auto_takes_it(told: str, words: dict[str, Any]) -> None:
    words = dict(words)
    q, k, v = draw(words.pop("queries", 2))
    if words.pop("grad", False):
        q.requires_grad_()
    if words.pop("wide", False):
        v = torch.cat([v, v], 3)
    with pytest.raises(ValueError, match=told):
        attention(q, k, v, impl="split", **words)
    assert torch.isfinite(attention(q, k, v, **words)).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_card_it_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        attention(*draw(1), impl="split")
