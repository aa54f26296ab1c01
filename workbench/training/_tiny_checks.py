"""Bad input of a tiny training, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.checks import device, whole
from workbench.errors import BadInput, ModelError


def whole_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(seeds, Iterable):
        raise BadInput(f"seeds={seeds!r}: expected one or more whole numbers, (0, 1, 2) say")
    held = tuple(whole("seeds", seed, 0) for seed in seeds)
    if not held or len(set(held)) < len(held):
        raise BadInput(f"seeds={list(held)}: expected one or more different whole numbers")
    return held


def device_of(name: str) -> torch.device:
    return torch.device(device(name, auto=True))


def id_table(name: str, value: Any) -> Tensor:
    made = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)
    if made.dim() != 2 or 0 in made.shape or made.is_floating_point() or made.is_complex() or made.dtype == torch.bool:
        raise BadInput(f"{name} must be whole numbers (sequences, tokens), got {made.dtype} {tuple(made.shape)}")
    return made


def known_tokens(model: Any, *tables: Tensor) -> None:
    """BadInput for ids that a model with a ``vocab_size`` does not know; on a GPU they would end the process."""
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    most = max(int(table.max()) for table in tables)
    if size is not None and most >= size:
        raise BadInput(
            f"the pool holds token {most}, the model knows 0 to {size - 1}: make it with a larger vocab_size"
        )


def not_finite(step: int, seeds: Sequence[int]) -> ModelError:
    named = ", ".join(map(str, seeds))
    return ModelError(
        f"the loss or a weight of seed {named} is not finite before step {step}: lower lr or clip; a checkpoint, if "
        "there is one, is whole; diverged='keep' lets the other seeds go on"
    )
