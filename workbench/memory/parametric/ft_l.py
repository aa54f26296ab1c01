"""``ft-l``: fine-tuning of the same matrix on the edit alone, kept in a small box (FT-L; baseline of WISE)."""

from __future__ import annotations

from workbench.checks import whole
from workbench.memory.base import MEMORIES
from workbench.memory.parametric._matrix import FineTuned, check_positive, check_units


@MEMORIES.register("ft-l")
class FTL(FineTuned):
    """Adam on the bare prompt, no other text.

    Args:
        module, layer: the matrix by its path, or the MLP's second matrix of a layer.
        lr, steps: of Adam. clamp: largest change of an entry by one edit (L-infinity).
        units: "absolute", or "model": ``lr`` and ``clamp`` in standard deviations of W_v.
    """

    slug = "ft-l"
    small = {"lr": 2e-3, "clamp": 2e-2}

    def __init__(self, module: str = "", layer: int = -2, *, lr: float = 5e-4, steps: int = 25, clamp: float = 5e-3,
                 units: str = "absolute"):  # fmt: skip
        check_positive(lr=lr, clamp=clamp)
        super().__init__()
        self.module, self.layer, self.lr, self.clamp = module, layer, lr, clamp
        self.steps = whole("steps", steps)
        self.units = check_units(units)
