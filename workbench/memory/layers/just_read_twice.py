"""Just read twice: prefix linear attention, which reads the prompt without regard to its order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._prefix_linear import quadratic, read_back
from workbench.memory.layers.base import State
from workbench.memory.layers.based import Based

if TYPE_CHECKING:
    import pandas as pd

MODES = ("prefix", "causal", "non-causal")
FILLS = ("left", "read-twice")

#: M of one call: a number, a number a row (B,), or None for all of the first call.
Prefix: TypeAlias = int | Tensor | None


@MEMORIES.register("just-read-twice")
class JustReadTwice(Based):
    """Prefix linear attention (Arora et al. 2024, arXiv 2407.05483, equations 3 and 4).

    Every position i reads the causal sum over j <= i and, through keys and values of their own (W_ke, W_ve), the sum
    over the whole prefix j <= M, under one denominator. After the prefix both sums are added into one state of the
    size of a causal layer's, and decoding goes on as in ``Based``. Positions before M see their future: no next-token
    loss may be taken there.

    Args:
        dim, heads, key_dim, value_dim, gate, chunk, conv, form: see ``Based``.
        mode: "prefix" is the paper's layer; "causal" leaves the encoder out (Based); "non-causal" has one sum over the
            whole sequence that every position reads, cannot stream, and serves the paper's synthetic comparison.
        prefix: M; the first call of a stream must bring it whole. None: whatever the first call brings is the prefix,
            as when a prompt is read and then continued. ``forward(prefix=...)`` and ``reading`` overrule it. Refused in
            the other modes, which have no encoder.

    >>> import torch
    >>> layer = JustReadTwice(8, heads=2, key_dim=4)
    >>> y, state = layer(torch.randn(1, 5, 8))
    >>> tuple(state["memory"].shape), layer.state_bytes() == Based(8, heads=2, key_dim=4).state_bytes()
    ((1, 2, 21, 5), True)
    """

    slug = "just-read-twice"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "key_dim": 4, "prefix": 16},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2, "key_dim": 3, "prefix": 3},
        {"heads": 1, "key_dim": 2, "prefix": 2, "form": "chunked", "chunk": 3},
        {"heads": 2, "key_dim": 3, "mode": "causal"},
    )

    def __init__(self, dim: int, heads: int = 4, *, mode: str = "prefix", prefix: int | None = None, **settings: Any):
        super().__init__(dim, heads, **settings)
        if mode not in MODES:
            raise BadInput(f"mode={mode!r} is not one of {', '.join(MODES)}")
        if mode == "non-causal" and self.conv:
            raise BadInput("conv looks back and mode='non-causal' has no direction; leave conv at 0")
        if prefix is not None and mode != "prefix":
            raise BadInput(f"prefix={prefix!r} is for mode='prefix'; mode={mode!r} has no encoder, leave it at None")
        self.mode, self.prefix = mode, None if prefix is None else whole("prefix", prefix, 0)
        self.noncausal_prefix = (self.prefix or 0) if mode == "prefix" else 0
        self._prefix_now: tuple[Prefix, ...] = ()
        wide = self.heads * (self.key_dim + self.value_dim)
        self.to_encoder = nn.Linear(dim, wide, bias=False) if mode == "prefix" else None
        self._encoded: Tensor | None = None
        self._before: Tensor | None = None

    # ------------------------------------------------------------------ the layer
    def forward(
        self, x: Tensor, state: State | None = None, *, keep: Tensor | None = None, prefix: Prefix = None
    ) -> tuple[Tensor, State]:
        """See ``MemoryLayer``; ``prefix`` is M for this call, one number or whole numbers (B,), one a row.

        Only the first call of a stream reads a prefix: one that goes on from a state leaves it unread.
        """
        if prefix is None:
            return super().forward(x, state, keep=keep)
        with reading(self, prefix):
            return super().forward(x, state, keep=keep)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.mode == "non-causal":
            return self._everywhere(q, k, v, state, keep)
        return super()._attend(q, k, v, state, keep)

    def run(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        if self.to_encoder is None or state["seen"]:
            return super().run(x, state, keep)
        length, inside = self._prefix_of(x)
        if not length:
            return super().run(x, state, keep)
        ke, ve = self._encode(x[:, :length])
        seen = _both(keep, inside, length)
        q, k, v, after = self._project(x, state, keep)
        if self.takes_quadratic(x.shape[1], state):
            q, k, v, ke, ve = (part.to(self.state_dtype) for part in (q, k, v, ke, ve))
            y = quadratic(q, k, v, (ke, ve), keep=keep, keep_encoder=seen)
            after["memory"] = self.total(k, v, keep) + self.total(ke, ve, seen)
        else:
            y, after["memory"] = self._recur(q, k, v, None, None, self.total(ke, ve, seen), keep)
        return self._out(x, y), {**after, "seen": x.shape[1]}

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """k_e (B, M, H, f) and v_e (B, M, H, d)."""
        assert self.to_encoder is not None
        sizes = [self.heads * self.key_dim, self.heads * self.value_dim]
        ke, ve = (rearrange(part, "b m (h d) -> b m h d", h=self.heads) for part in self.to_encoder(x).split(sizes, -1))
        return ke.contiguous(), ve.contiguous()

    def _prefix_of(self, x: Tensor) -> tuple[int, Tensor | None]:
        """How many tokens the encoder takes, and which of them where rows differ."""
        prefix, tokens = self._prefix_now[-1] if self._prefix_now else self.prefix, x.shape[1]
        if isinstance(prefix, Tensor):
            _check_rows(prefix, x)
            return tokens, torch.arange(tokens, device=x.device) < prefix[:, None]
        if prefix is not None and prefix > tokens:
            raise BadInput(
                f"prefix={prefix} but the first call brings {tokens} tokens; the encoder needs its whole prefix at "
                "once: fill it up (fill_prefix), or give a smaller prefix (None: all that comes)"
            )
        return tokens if prefix is None else prefix, None

    def _everywhere(self, q: Tensor, k: Tensor, v: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        if state["seen"]:
            raise BadInput("mode='non-causal' reads the whole sequence at once; give it with state=None")
        q, k, v = (part.to(self.state_dtype) for part in (q, k, v))
        memory = self.total(k, v, keep)
        if self.takes_quadratic(q.shape[1], state):
            return quadratic(q, k, v, causal=False, keep=keep), memory
        return read_back(q, memory), memory

    # ------------------------------------------------------------------ looking
    @torch.no_grad()
    def write(self, x: Tensor) -> Tensor:
        """As in every layer; what the encoder added and how the memory stood before are kept for ``contents``."""
        before, held = self.held["memory"], self.held["seen"]
        y = super().write(x)
        stream = x[None] if x.dim() == 2 else x
        if self.to_encoder is not None and not held:
            length, inside = self._prefix_of(stream)
            seen = _both(None, inside, length)
            self._encoded = self.total(*self._encode(stream[:, :length]), seen) if length else torch.zeros_like(before)
        self._before = before if held else None
        return y

    def _forget(self) -> None:
        """Of a state from elsewhere nobody knows what its encoder wrote, nor what stood before."""
        self._encoded = self._before = None

    def contents(self) -> pd.DataFrame:
        """The frame of ``Based`` with two more columns for every matrix.

        encoder_share: norm of what the encoder wrote over the norms of both parts (NaN where nothing was encoded);
        cosine_before: cosine with the same matrix before the latest write (NaN for the first).
        """
        frame, held = self.describe(self.held), self.held["memory"][0].double()
        heads = frame["part"] == "memory"
        frame["encoder_share"] = frame["cosine_before"] = float("nan")
        if self._encoded is not None:
            encoder, rest = _norms(self._encoded[0]), _norms(held - self._encoded[0].double())
            frame.loc[heads, "encoder_share"] = (encoder / (encoder + rest).clamp_min(1e-30)).tolist()
        if self._before is not None:
            flat = torch.cosine_similarity(self._before[0].double().flatten(1), held.flatten(1), dim=1)
            frame.loc[heads, "cosine_before"] = flat.tolist()
        return frame


def _norms(matrices: Tensor) -> Tensor:
    return matrices.double().flatten(1).norm(dim=1)


def _both(keep: Tensor | None, inside: Tensor | None, length: int) -> Tensor | None:
    """Tokens of the prefix that are no padding; None: all of them."""
    kept = None if keep is None else keep[:, :length]
    if inside is None:
        return kept
    return inside if kept is None else inside & kept


def _check_rows(prefix: Tensor, x: Tensor) -> None:
    fits = prefix.shape == x.shape[:1] and prefix.device == x.device
    if not fits or prefix.dtype not in (torch.int64, torch.int32):
        raise BadInput(
            f"prefix must be one number, or int64 or int32 of shape {tuple(x.shape[:1])} on {x.device}, "
            f"got {prefix.dtype} {tuple(prefix.shape)} on {prefix.device}"
        )
    if _readable(prefix) and not bool(((prefix >= 0) & (prefix <= x.shape[1])).all()):
        raise BadInput(
            f"prefix holds {int(prefix.min())} to {int(prefix.max())} but the first call brings {x.shape[1]} tokens; "
            "every row's M must lie in it: fill rows up (fill_prefix), or give smaller numbers"
        )


def _readable(numbers: Tensor) -> bool:
    """Whether the host may look: not while seeds are stacked over them, nor while a CUDA graph is recorded."""
    return not torch._C._functorch.is_batchedtensor(numbers) and not (
        numbers.is_cuda and torch.cuda.is_current_stream_capturing()
    )


@contextmanager
def reading(model: nn.Module, prefix: Prefix) -> Iterator[nn.Module]:
    """Every prefix layer in ``model`` takes ``prefix`` as M until the block ends; nested blocks overrule outer ones."""
    if not (prefix is None or isinstance(prefix, Tensor)):
        whole("prefix", prefix, 0, more=", a tensor with one a row, or None (all that comes)")
    layers = [part for part in model.modules() if isinstance(part, JustReadTwice)]
    for layer in layers:
        layer._prefix_now = (*layer._prefix_now, prefix)
    try:
        yield model
    finally:
        for layer in layers:
            layer._prefix_now = layer._prefix_now[:-1]


def prefix_lengths(ids: Tensor, separator: int) -> Tensor:
    """M of every row (B,): tokens up to and with the first ``separator`` in ids (B, T).

    Raises BadInput when a row has none.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise BadInput(f"ids must be a tensor (rows, tokens), got {_shape(ids)}")
    found = ids == separator
    if not bool(found.any(1).all()):
        rows = (~found.any(1)).nonzero()[:, 0].tolist()
        raise BadInput(f"rows {rows[:5]} of ids hold no separator {separator}, so their prefix has no end")
    return found.int().argmax(1) + 1


def fill_prefix(ids: Tensor, prefix: int, *, how: str = "left", pad: int = 0) -> tuple[Tensor, Tensor]:
    """A prompt (T,) shorter than M made M tokens long, and which of them to keep, (M,) each (the paper's Table 4).

    ``how``: "left" pads on the left and leaves the padding out; "read-twice" puts the end of one more copy (or several)
    of the prompt there instead, all of it read.

    Raises BadInput for an empty prompt or one longer than the prefix.
    """
    whole("prefix", prefix)
    if not isinstance(ids, Tensor) or ids.dim() != 1 or not 0 < len(ids) <= prefix:
        raise BadInput(f"ids must be a tensor, a prompt of 1 to {prefix} tokens, got {_shape(ids)}")
    if how not in FILLS:
        raise BadInput(f"how={how!r} is not one of {', '.join(FILLS)}")
    missing = prefix - len(ids)
    if how == "read-twice":
        copies = ids.repeat(-(-prefix // len(ids)))
        return copies[len(copies) - prefix :], torch.ones(prefix, dtype=torch.bool, device=ids.device)
    filled = torch.cat([ids.new_full((missing,), pad), ids])
    return filled, torch.arange(prefix, device=ids.device) >= missing


def _shape(given: Any) -> str:
    return f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
