"""What transformers asks of a cache, answered by a token memory: lengths of a stream that is not all held."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from workbench.errors import MemoryError_

if TYPE_CHECKING:
    from workbench.memory.cache._pass import Pass
    from workbench.memory.cache._rows import Row


class AsCache(Cache):
    """``fed``: tokens of the stream; ``rows``: of the batch."""

    fed: int
    rows: list[Row]
    _pass: Pass | None

    @property
    def width(self) -> int:
        """Columns of the tensors: the longest row (stored length; see ``fed`` for the stream's)."""
        if self._pass is not None:
            return self._pass.width
        return self.layers[0].width if self.layers else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.fed

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.width

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.width + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return len(self.rows) or -1

    @property
    def is_croppable(self) -> bool:
        return False

    def crop(self, tokens_to_remove: int) -> None:
        raise MemoryError_("a memory that evicts cannot be cropped; use snapshot() and restore()")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.rows)).repeat_interleave(repeats))


def windowed(model: PreTrainedModel) -> bool:
    """Whether some layer sees a sliding window (here: of slots). Chunked attention has no meaning over slots."""
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None) or ()
    if "chunked_attention" in types:
        raise MemoryError_(f"{type(model).__name__} attends in fixed chunks of positions, which slots cannot stand for")
    return "sliding_attention" in types or getattr(config, "sliding_window", None) is not None
