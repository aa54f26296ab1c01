"""Looking at attention from queries, keys and the row LSE: exact regions, pooled maps, statistics; never N x N."""

from workbench_kernels.maps.api import (
    attention_mass,
    attention_region,
    attention_statistics,
    pooled_attention,
    row_lse,
)

__all__ = ["attention_mass", "attention_region", "attention_statistics", "pooled_attention", "row_lse"]
