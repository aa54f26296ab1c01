"""What batched products read and write, seen while a piece of code runs: where their rows begin."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Products(TorchDispatchMode):
    """Steps of the operands and results of batched products of several heads, and where they begin (bytes).

    The model's own rotary product has one batch, and any width.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.starts: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__.startswith("bmm") and result.shape[0] > 1:
            for matrix in (*args[:2], result):
                self.steps += [step for step in matrix.stride() if step != 1]
                self.starts.append(matrix.data_ptr())
        return result
