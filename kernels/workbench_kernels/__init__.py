"""Tensors in, tensors out: each operation has one public function, a plain torch path and a fast path.

Layout everywhere: (B, S, H, D) = batch, sequence, heads, head dim. Nothing here imports ``workbench``
or ``transformers``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench_kernels.cost import Cost, predicted_cost
    from workbench_kernels.decode import decode_attention, paged_attention
    from workbench_kernels.linear_memory import NeuralState, linear_recurrence, neural_memory, prefix_state
    from workbench_kernels.maps import (
        attention_mass,
        attention_region,
        attention_statistics,
        pooled_attention,
        row_lse,
    )
    from workbench_kernels.softmax_attention import attention

_LAZY = {
    "Cost": "workbench_kernels.cost",
    "NeuralState": "workbench_kernels.linear_memory.neural",
    "attention": "workbench_kernels.softmax_attention.api",
    "attention_mass": "workbench_kernels.maps.api",
    "attention_region": "workbench_kernels.maps.api",
    "attention_statistics": "workbench_kernels.maps.api",
    "decode_attention": "workbench_kernels.decode.api",
    "linear_recurrence": "workbench_kernels.linear_memory.api",
    "neural_memory": "workbench_kernels.linear_memory.neural",
    "paged_attention": "workbench_kernels.decode.api",
    "pooled_attention": "workbench_kernels.maps.api",
    "predicted_cost": "workbench_kernels.cost",
    "prefix_state": "workbench_kernels.linear_memory.api",
    "row_lse": "workbench_kernels.maps.api",
}

__all__ = [
    "Cost",
    "NeuralState",
    "attention",
    "attention_mass",
    "attention_region",
    "attention_statistics",
    "decode_attention",
    "linear_recurrence",
    "neural_memory",
    "paged_attention",
    "pooled_attention",
    "predicted_cost",
    "prefix_state",
    "row_lse",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'workbench_kernels' has no attribute {name!r}; it offers {', '.join(__all__)}")
