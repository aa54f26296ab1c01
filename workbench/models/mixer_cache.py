"""The states of a ``MixerLM``'s layers, in the shape of a transformers cache; for looking, also a memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from workbench.errors import BadInput, MemoryError_
from workbench.memory.base import EventLog
from workbench.memory.layers.base import State, carried, nbytes

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models.mixer import MixerLM


class MixerCache(Cache):
    """One state a layer, and how many tokens are in them.

    Args:
        model: the model whose layers' states these are.
        log: keep a log of every pass, with numbers per token and layer (this costs a second look at every token).
    """

    slug = "layers"
    #: No column of it stands for a token, so there is nothing that attention could be shown on.
    has_slots = False
    #: It is the model's own past, as a full cache is another model's: it goes on only in a session that ``feed`` began.
    own = True

    def __init__(self, model: MixerLM, *, log: bool = False):
        super().__init__(layers=[])
        self.model, self.log = model, log
        self.states: list[State | None]
        self._forget()
        self._log = EventLog()

    def _forget(self) -> None:
        self.states = [None] * len(self.model.blocks)
        self.fed, self._seen = 0, list[dict[str, Any]]()

    # ------------------------------------------------------------------ what the model asks
    def layer(self, index: int) -> State | None:
        return self.states[index]

    def note(self, seen: list[dict[str, Tensor]], columns: Sequence[int]) -> None:
        """One event for a pass; ``seen`` holds each layer's numbers for the tokens in these columns of the pass.

        They are those of the batch's row 0. The event holds their means over tokens and layers; ``scalars`` has all.
        """
        places, means = [self.fed + column for column in columns], dict[str, list[float]]()
        for layer, numbers in enumerate(seen):
            for name, value in numbers.items():
                lines = zip(places, value.detach().flatten().tolist(), strict=True)
                new = [{"position": at, "layer": layer, "name": name, "value": number} for at, number in lines]
                self._seen += new
                means.setdefault(name, []).extend(line["value"] for line in new)
        detail = {name: round(sum(numbers) / len(numbers), 6) for name, numbers in means.items()}
        if places:
            self._log.append("write", places, "every token is written", **detail)

    def scalars(self) -> pd.DataFrame:
        """Every layer's numbers per token since the last reset (with ``log=True``): position, layer, name, value."""
        import pandas as pd

        return pd.DataFrame(self._seen, columns=["position", "layer", "name", "value"])

    # ------------------------------------------------------------------ moments
    def snapshot(self) -> tuple[Any, ...]:
        """This moment, to ``restore`` later."""
        return list(self.states), self.fed, list(self._seen), self._log.copy()

    def restore(self, moment: tuple[Any, ...]) -> None:
        """Go back to a moment of this cache; it may be restored any number of times."""
        states, fed, seen, log = moment
        if len(states) != len(self.states):
            raise MemoryError_(f"the moment has {len(states)} layers and this model {len(self.states)}")
        self.states, self.fed, self._seen, self._log = list(states), fed, list(seen), log.copy()

    # ------------------------------------------------------------------ the memory protocol
    def write(self, input_ids: Tensor) -> Tensor:
        """Stream tokens (B, n) through the model into these states; logits (B, n, V)."""
        with torch.no_grad():
            return self.model(input_ids=input_ids, past_key_values=self).logits

    def read(self, layer: int) -> State:
        """The state of one layer; the empty one before the first pass."""
        if not 0 <= layer < len(self.states):
            raise BadInput(f"layer={layer} is outside this model of {len(self.states)} layers")
        held = self.states[layer]
        return self.model.blocks[layer].mixer.start(1) if held is None else carried(held)

    def reset(self) -> None:
        """Empty every state; a new stream begins, and with it a new log."""
        self._forget()
        self._log = EventLog()

    def nbytes(self) -> int:
        """Bytes of all states, measured on their tensors."""
        return sum(nbytes(state) for state in self.states if state is not None)

    def contents(self, row: int = 0) -> pd.DataFrame:
        """Every layer's own table of one row of the batch, under the columns layer and mixer."""
        import pandas as pd

        self._check_row(row)
        tables = []
        for index, block in enumerate(self.model.blocks):
            table = block.mixer.describe(self.read(index), 0 if self.states[index] is None else row)
            table.insert(0, "layer", index)
            table.insert(1, "mixer", block.mixer.slug)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def _check_row(self, row: int) -> None:
        held = [value for state in self.states if state is not None for value in state.values()]
        rows = next((len(value) for value in held if isinstance(value, Tensor) and value.dim()), 1)
        if not 0 <= row < rows:
            raise BadInput(f"row={row} is outside this batch of {rows}")

    def events(self) -> EventLog:
        """One event a pass (with ``log=True``); items are positions in the stream."""
        return self._log

    # ------------------------------------------------------------------ transformers.Cache
    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.fed

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.fed + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_linear(self) -> list[bool]:
        """False: else transformers 5.24 would have ``generate`` read again what is in the states already."""
        return [False] * len(self.states)

    def crop(self, tokens_to_remove: int) -> None:
        raise MemoryError_("a state that was written cannot be cropped; keep a copy of the states from before")

    def __deepcopy__(self, memo: dict[int, Any]) -> MixerCache:
        """The same moment of the same model: no state is ever changed in place, and weights are not copied."""
        other = MixerCache(self.model, log=self.log)
        other.restore(self.snapshot())
        return other

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        order = torch.as_tensor(indices)
        self._each(lambda value: value[order.to(value.device)])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda value: value.repeat_interleave(repeats, 0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        self.states = [
            None if state is None else {k: change(v) if isinstance(v, Tensor) else v for k, v in carried(state).items()}
            for state in self.states
        ]
