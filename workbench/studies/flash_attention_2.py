"""FlashAttention-2 (Dao 2023): the same exact attention, counted, scheduled and divided in another way.

``quick`` needs no GPU: it executes a tile in both versions' forms and counts operations (E1), places programs on
multiprocessors (E2, E3) and warps on a tile (E4), checks both loop orders, the two-loop causal form, both backward
passes and the real Triton kernels (in Triton's interpreter; on a card they run as they are) against float64 (E5), and
runs the paper's second claim on two processor cores (E6; its tiles and row blocks of 512 and the best of three launches
were chosen by looking at this very ratio, so A3c is weak evidence). ``full`` adds the grid of the paper on a card (16k
tokens, heads x d = 2048), the two grids of programs raced several times, and training steps of a stack of GPT blocks.

The part on the card is held to 40 s in all, so it launches less often than a benchmark alone would: at most 10 and at
least 3 timed launches a contender and point, 3 training steps; the lengths that most claims speak of come first, and
what no longer fits is a row that says so. Standard attention stops at N = 8k (its table takes 17 GB at 16k); flex is
compiled for one shape, if time is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.studies._flash2_claims import CLAIMS
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

_MODELS = {
    "tiles": [[128, 128], [128, 64]],
    "tiles_a_row": 3,
    "throughputs": {"A100": [312.0, 19.5], "H100": [989.0, 67.0]},
    "sms": [108, 132],
    "heads": [1, 4, 16, 32, 48, 64, 72, 79, 80, 96, 108, 109, 128, 132, 133, 160, 216, 264, 432, 528],
    "wave_length": 2048,
    "knee_share": 80 / 108,
    "order_heads": [2, 4, 8, 16, 32],
    "order_lengths": [1024, 2048, 4096, 8192],
    "draws": 2,
    "loop_tiles": [[64, 64], [48, 32]],
    "interpreted_length": 128,
    "pool_length": 2048,
    "pool_rows": 512,
    "pool_heads": [1, 2, 3, 4],
    "pool_workers": 2,
    "pool_repeats": 5,
}
_GPU = {
    "batch_tokens": 16384,
    "gpu_dims": [64, 128],
    "gpu_lengths": [2048, 16384, 4096, 8192, 512, 1024],
    "interpreted_length": 0,
    "compile_s": 60,
    "stop_after_s": 150,
    "launches": 10,
    "warmup": 2,
    "budget_s": 0.1,
    "standard_up_to": 8192,
    "flex_at": [[128, 16384]],
    "error_length": 1000,
    "grid_shapes": [[1, 16384], [40, 2048]],
    "grid_repeats": 5,
    "width": 2048,
    "layers": 16,
    "stack_tokens": 8192,
    "stack_lengths": [2048, 8192],
    "stack_kernels": ["standard", "triton-v1", "triton", "hopper", "SDPA flash", "SDPA cuDNN"],
    "stack_steps": 3,
}


class FlashAttention2(Study):
    """E1 to E6 at both scales; ``full`` races kernels on a CUDA device."""

    slug = "flash-attention-2"
    title = "FlashAttention-2: faster attention with better parallelism and work partitioning"
    scales = {
        "quick": Scale("quick", _MODELS, seconds=20),
        "full": Scale("full", {**_MODELS, **_GPU}, seconds=150, needs=("cuda",)),
    }
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        """Tidy rows: experiment, item, the cell's rows, cols, d, heads, n, sms, ..., metric, value, unit."""
        import pandas as pd
        import torch

        from workbench.studies import _attention_race as racing

        settings, generator = scale.settings, torch.Generator().manual_seed(seed)
        rows: list[dict[str, Any]] = []
        if settings.get("device") == "cuda":  # first: its time limit must not be spent on what needs no card
            with racing.compiling(settings, settings["gpu_dims"]) as compiled:
                compiled(settings["compile_s"])
                clock = racing.Clock(settings["stop_after_s"])
                rows += self._on_the_card(settings, seed, clock, progress)
        rows += self._anywhere(settings, generator, progress)
        return pd.DataFrame(rows).assign(seed=seed)

    def _anywhere(self, settings: Any, generator: Any, progress: Progress) -> list[dict[str, Any]]:
        from workbench.studies import _flash2_counts as counts
        from workbench.studies import _flash2_numerics as numerics
        from workbench.studies import _flash2_pool as pool

        rows: list[dict[str, Any]] = [*counts.operations(settings, generator, progress)]
        rows += counts.arithmetic(settings)
        rows += counts.occupancy(settings)
        rows += counts.orders(settings, progress)
        rows += counts.warps(settings, generator)
        rows += numerics.exactness(settings, generator, progress)
        rows += numerics.interpreted(settings, progress)
        rows += pool.race(settings, generator, progress)
        return rows

    def _on_the_card(self, settings: Any, seed: int, clock: Any, progress: Progress) -> list[dict[str, Any]]:
        import torch

        from workbench.studies import _flash2_gpu as gpu

        return gpu.on_the_card(settings, torch.Generator("cuda").manual_seed(seed), clock, progress)

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        """Figs. 4 to 7: speed over length on the card; Table 1's training speeds; the models behind them."""
        from workbench.views import flash_attention_2 as views

        return views.paper_figure(live, reported, recorded)


STUDIES.register("flash-attention-2")(FlashAttention2())
