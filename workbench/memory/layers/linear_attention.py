"""Linear attention: the plainest matrix memory, a sum of outer products that forgets nothing."""

from __future__ import annotations

from typing import Any, ClassVar

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._linear import LinearMemory

FEATURE_MAPS = ("elu+1", "relu", "taylor", "identity")


@MEMORIES.register("linear-attention")
class LinearAttention(LinearMemory):
    """M_t = M_{t-1} + phi(k_t)' v_t, z_t = z_{t-1} + phi(k_t), y_t = phi(q_t) M_t / (phi(q_t) z_t).

    Katharopoulos et al. 2020 (arXiv 2006.16236), equations 9 and 16 to 20, with phi = elu + 1. "taylor" is the map of
    Based (Arora et al. 2024, arXiv 2402.18668); "identity" has no denominator, as in RetNet and GLA.

    Args:
        dim, heads, key_dim, value_dim, conv, gate, chunk: see ``LinearMemory``.
        feature_map: phi.

    >>> import torch
    >>> layer = LinearAttention(8, heads=2)
    >>> y, state = layer(torch.randn(1, 5, 8))
    >>> tuple(y.shape), tuple(state["memory"].shape)
    ((1, 5, 8), (1, 2, 4, 5))
    """

    slug = "linear-attention"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2},
        {"heads": 2, "conv": 4, "gate": True, "feature_map": "identity"},
        {"heads": 1, "feature_map": "taylor", "key_dim": 3},
    )

    def __init__(self, dim: int, heads: int = 4, *, feature_map: str = "elu+1", conv: int = 0, **settings: Any):
        if feature_map not in FEATURE_MAPS:
            raise BadInput(f"feature_map must be one of {', '.join(FEATURE_MAPS)}, got {feature_map!r}")
        self.feature_map, self.normalized = feature_map, feature_map != "identity"
        super().__init__(dim, heads, conv=whole("conv", conv, 0), **settings)
