"""What one forward pass left behind, and the microscope: attention computed on demand from Q, K and the row LSE.

Nothing N x N is ever stored. A pooled map shows the whole sequence, then any region at full resolution; both are exact
and use memory linear in the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import BadInput

if TYPE_CHECKING:
    from workbench_kernels import Cost


@dataclass
class LayerTrace:
    """One attention layer of a trace, after rotary embedding and query/key norms.

    q (B, Nq, H, D), k (B, Nk, Hkv, D), v like k or None, ``lse`` (B, Nq, H) natural log with learned sinks in it: what
    the kernel left (``kernel_lse``), or computed from q and k when it is first asked for. ``key_padding`` (B, Nk) bool,
    True = real. ``mask`` is a full matrix only for patterns that causal, window and padding cannot say.
    ``key_positions`` (B, Nk): where in the stream each key stands (memory slots may skip).
    """

    index: int
    q: Tensor
    k: Tensor
    v: Tensor | None
    kernel_lse: Tensor | None
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    key_padding: Tensor | None
    key_positions: Tensor
    mask: Tensor | None = None

    @property
    def heads(self) -> int:
        return self.q.shape[2]

    @property
    def lse(self) -> Tensor:
        if self.kernel_lse is None:
            from workbench_kernels import row_lse

            masks = {"causal": self.causal, "window": self.window, "key_padding": self.key_padding, "mask": self.mask}
            words: dict[str, Any] = {"scale": self.scale, "softcap": self.softcap, "sinks": self.sinks, **masks}
            self.kernel_lse = row_lse(self.q, self.k, **words)
        return self.kernel_lse

    def masks(self, batch: int) -> dict[str, Any]:
        """The keyword arguments of the microscope's functions for one row of the batch."""
        return {
            "causal": self.causal,
            "scale": self.scale,
            "window": self.window,
            "softcap": self.softcap,
            "key_padding": _row(self.key_padding, batch),
            "mask": _row(self.mask, batch),
        }

    def row(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, lse of one row, still with a batch dimension of 1."""
        return self.q[batch : batch + 1], self.k[batch : batch + 1], self.lse[batch : batch + 1]

    def tensors(self) -> Iterator[Tensor]:
        for value in (self.q, self.k, self.v, self.kernel_lse, self.key_padding, self.mask):
            if value is not None:
                yield value


def _row(tensor: Tensor | None, batch: int) -> Tensor | None:
    if tensor is None:
        return None
    return tensor if tensor.shape[0] == 1 else tensor[batch : batch + 1]


@dataclass
class Trace:
    """One forward pass.

    Attributes:
        input_ids, attention_mask (B, S) int64; tokens: per row, the text of each id ("" where padded).
        logits (B, S, V), or None for a model without a language head and where they would be too large to keep.
        surprise (B, S): -ln p(token | tokens before it) in nats, NaN for the first token and for padding.
        entropy (B, S): of the prediction made at each token, in nats, NaN for padding.
        hidden: n_layers + 1 tensors (B, S, d), embeddings first; empty when ``hidden=False``.
        layers: the recorded attention layers. notes: what the reader should know (beyond the trained positions, ...).
        seconds: wall time of the pass.
    """

    model_name: str
    attention: str
    input_ids: Tensor
    attention_mask: Tensor
    tokens: list[list[str]]
    logits: Tensor | None
    surprise: Tensor
    entropy: Tensor
    hidden: tuple[Tensor, ...]
    layers: list[LayerTrace]
    seconds: float
    memory: str = "none"
    notes: list[str] = field(default_factory=list)

    # -- finding things -----------------------------------------------------------------------------------------------

    def layer(self, index: int) -> LayerTrace:
        """The recorded layer with this index in the model."""
        for layer in self.layers:
            if layer.index == index:
                return layer
        if not self.layers and self.notes and "no attention" in self.notes[-1]:
            raise BadInput(f"{self.notes[-1]}; model.memory.contents() and .events() say what its layers hold")
        held = ", ".join(str(layer.index) for layer in self.layers)
        raise BadInput(f"layer {index} was not recorded; this trace holds layers {held or 'none'}")

    def real(self, batch: int = 0) -> slice:
        """The positions of the real tokens of one row."""
        found = self.attention_mask[self._batch(batch)].nonzero()
        return slice(int(found[0]), int(found[-1]) + 1)

    def _batch(self, batch: int) -> int:
        if not 0 <= batch < len(self.input_ids):
            raise BadInput(f"batch must lie in 0 .. {len(self.input_ids) - 1}, got {batch}")
        return batch

    def _heads(self, layer: LayerTrace, head: int | None) -> list[int]:
        if head is None:
            return list(range(layer.heads))
        if not 0 <= head < layer.heads:
            raise BadInput(f"head must lie in 0 .. {layer.heads - 1}, got {head}")
        return [head]

    def _spans(self, layer: LayerTrace, batch: int) -> tuple[slice, slice]:
        """Real queries and real keys of one row (keys of a memory stand before the new ones)."""
        padding = layer.key_padding
        if padding is None:
            return self.real(batch), slice(0, layer.k.shape[1])
        found = _row(padding, batch)[0].nonzero()  # type: ignore[index]
        return self.real(batch), slice(int(found[0]), int(found[-1]) + 1)

    # -- the microscope -----------------------------------------------------------------------------------------------

    def map(
        self,
        layer: int,
        head: int | None = None,
        *,
        size: int = 512,
        reduce: str = "mean",
        rows: slice | None = None,
        cols: slice | None = None,
        batch: int = 0,
        progress: Any = None,
    ) -> Tensor:
        """The whole attention map pooled to at most ``size`` x ``size``: (R, C), or (H, R, C) when ``head`` is None.

        Args:
            reduce: "mean", "sum" or "max" of the exact probabilities in a tile (masked cells count as 0).
            rows, cols: contiguous slices of query and key positions; by default the real tokens of row ``batch``.
            progress: called with the fraction done.
        """
        from workbench_kernels import pooled_attention

        at = self.layer(layer)
        heads = self._heads(at, head)
        real_rows, real_cols = self._spans(at, self._batch(batch))
        pooled = pooled_attention(
            *at.row(batch),
            shape=(size, size),
            reduce=reduce,
            rows=real_rows if rows is None else rows,
            cols=real_cols if cols is None else cols,
            heads=heads,
            progress=progress,
            **at.masks(batch),
        )[0]
        return pooled if head is None else pooled[0]

    def region(self, layer: int, head: int | None, rows: Any, cols: Any, *, batch: int = 0) -> Tensor:
        """Exact probabilities of a region: (R, C), or (H, R, C) when ``head`` is None. ``rows`` and ``cols`` are slices
        or index tensors of query and key positions."""
        from workbench_kernels import attention_region

        at = self.layer(layer)
        heads = self._heads(at, head)
        self._batch(batch)
        found = attention_region(*at.row(batch), rows=rows, cols=cols, heads=heads, **at.masks(batch))[0]
        return found if head is None else found[0]

    def statistics(self, layer: int, *, batch: int = 0, topk: int = 8) -> dict[str, Tensor]:
        """Per head and query: entropy (nats), sink_mass, mass, top_keys and top_probs; per head: distance_profile.

        Shapes (H, Nq), (H, Nq, topk) and (H, bins); queries that are padding are NaN (top_keys -1).
        """
        from workbench_kernels import attention_statistics

        at = self.layer(layer)
        self._batch(batch)
        found = attention_statistics(*at.row(batch), topk=topk, **at.masks(batch))
        rows = {key: value[0] if value.ndim > 1 else value for key, value in found.items()}
        padded = ~self.attention_mask[batch].bool().cpu()
        if bool(padded.any()):
            rows = {key: self._blank(value, padded) for key, value in rows.items()}
        return rows

    @staticmethod
    def _blank(value: Tensor, padded: Tensor) -> Tensor:
        if value.ndim < 2 or value.shape[1] != len(padded):
            return value
        value = value.clone()
        value[:, padded.to(value.device)] = float("nan") if value.is_floating_point() else -1
        return value

    def mass(self, layer: int, keys: Any, *, batch: int = 0) -> Tensor:
        """(H, Nq): the probability that each query gives to the keys (slice, indices or bool vector)."""
        from workbench_kernels import attention_mass

        at = self.layer(layer)
        self._batch(batch)
        return attention_mass(*at.row(batch), keys=keys, **at.masks(batch))[0]

    # -- what it costs ------------------------------------------------------------------------------------------------

    def cost(
        self,
        kind: str,
        *,
        layer: int | None = None,
        head: int | None = None,
        size: int = 512,
        rows: slice | None = None,
        cols: slice | None = None,
    ) -> Cost:
        """Predicted flops, bytes and seconds of a "map", "region", "statistics" or "mass", before it runs."""
        from workbench_kernels import predicted_cost

        at = self.layers[0] if layer is None else self.layer(layer)
        queries, keys = at.q.shape[1], at.k.shape[1]
        return predicted_cost(
            kind,
            batch=1,
            queries=queries if rows is None else len(range(*rows.indices(queries))),
            keys=keys if cols is None else len(range(*cols.indices(keys))),
            heads=len(self._heads(at, head)),
            head_dim=at.q.shape[3],
            kv_heads=at.k.shape[2] if head is None else 1,
            dtype=at.q.dtype,
            causal=at.causal,
            shape=(size, size),
            device=at.q.device,
        )

    def nbytes(self) -> int:
        """Bytes of all tensors held."""
        tensors = [self.input_ids, self.attention_mask, self.surprise, self.entropy, *self.hidden]
        tensors += [] if self.logits is None else [self.logits]
        tensors += [tensor for layer in self.layers for tensor in layer.tensors()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __repr__(self) -> str:
        batch, length = self.input_ids.shape
        return (
            f"Trace({self.model_name!r}, attention={self.attention!r}, memory={self.memory!r}: {batch} x {length}, "
            f"{len(self.layers)} layers, {self.nbytes() / 1e6:.1f} MB, {self.seconds:.2f} s)"
        )


def stack_layers(trace: Trace, what: str) -> Tensor:
    """(layers, ...) of one field of all recorded layers, e.g. ``stack_layers(trace, "lse")`` (layers, B, Nq, H)."""
    return torch.stack([getattr(layer, what) for layer in trace.layers])
