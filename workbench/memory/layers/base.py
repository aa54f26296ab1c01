"""What every sequence memory is: a layer with a state that is written and read token by token.

A layer is a pure function of its tokens and its state, ``y, state = layer(x, state)``: fed in any pieces it gives what
one pass gives, and the state handed in is never changed. Over that function lies the memory protocol (``write``,
``read``, ``contents``, ``events``) on one held state, for looking.

A new layer is a subclass with ``layout`` and ``run``, registered under its slug. It then takes part in the shared
tests, in ``MixerLM`` and in ``workbench compare layers``. Rules for ``run``:

* No in-place change of the state, no branch on values and no ``.item()``: it runs under ``torch.func.vmap`` (seeds
  stacked) and inside a CUDA graph.
* Every number that is not learned comes from the constructor's arguments, or is a persistent buffer: transformers
  builds a model without storage and fills in only what is saved.
* Padding (``keep`` False) neither writes nor counts as a neighbour; what comes out at padding has no meaning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from workbench.checks import whole
from workbench.errors import BadInput, MemoryError_
from workbench.memory.base import MEMORIES, EventLog, settings_of

if TYPE_CHECKING:
    import pandas as pd

#: Tensors with the batch first, or whole numbers that all rows share. Keys that begin with ``aux/`` belong to the call
#: that made them and not to the memory: the next call ignores them. ``aux/loss`` () is added to a model's loss.
State = dict[str, Any]

AUX = "aux/"


class Slot(NamedTuple):
    """One tensor of a state. ``shape`` has the batch first and -1 where it grows with the stream; () is a whole number
    that all rows share, or one for each row, (B,) int64, where padding has set them apart (see ``_in_step``), up to
    ``most``. ``dtype`` None is the memory's own type: float64 in a float64 module, else float32."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    most: int | None = None


class MemoryLayer(nn.Module, ABC):
    """Base of the sequence memories.

    Args:
        dim: width of the tokens.

    Attributes:
        slug: name in the registry.
        examples: settings that the shared tests run, each with ``dim=8``.
        compared: settings under which ``workbench compare layers`` takes it, widths of 8, 16 and 32; one line each.
        noncausal_prefix: how many of the first tokens, padding included, see each other; the first call of a stream
            brings them all.
        masks_padding: whether ``keep`` is understood; if not, a ``keep`` with padding is refused.
        static: whether no shape depends on the tokens' values; if not, it cannot run under vmap or in a CUDA graph.
    """

    slug: ClassVar[str]
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    masks_padding: ClassVar[bool] = True
    noncausal_prefix: int = 0
    static: bool = True

    def __init__(self, dim: int):
        super().__init__()
        self.dim = whole("dim", dim)
        self._held: State | None = None
        self._log, self._tokens = EventLog(), 0

    # ------------------------------------------------------------------ what a mechanism says
    @abstractmethod
    def layout(self, batch: int) -> dict[str, Slot]:
        """The tensors of the state."""

    @abstractmethod
    def run(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        """The mechanism, on arguments that were checked: x (B, T, dim) to y (B, T, dim) and the new state."""

    def start(self, batch: int, *, device: Any = None, dtype: torch.dtype | None = None) -> State:
        """The empty memory (zeros, unless the mechanism says otherwise), on the module's device by default."""
        place, own = device or self.device, dtype or self.state_dtype
        return {
            name: torch.zeros([max(size, 0) for size in slot.shape], dtype=slot.dtype or own, device=place)
            if slot.shape
            else 0
            for name, slot in self.layout(whole("batch", batch)).items()
        }

    def scalars(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Numbers per token (T,) worth a look when x (1, T, dim) is written to ``state``; shown by ``events()``."""
        return {}

    def recall(self, x: Tensor, state: State) -> Tensor:
        """What the memory answers to each token of x (1, T, dim) alone, the others unseen and nothing kept.

        Here by a pass over one token, its own write included; a mechanism with a read of its own overrides it.
        """
        return self.run(x.transpose(0, 1), widened(state, x.shape[1]), None)[0].transpose(0, 1)

    # ------------------------------------------------------------------ the layer
    def forward(self, x: Tensor, state: State | None = None, *, keep: Tensor | None = None) -> tuple[Tensor, State]:
        """Write and read every token in turn.

        Args:
            x: (B, T, dim), T >= 1, in the module's dtype and on its device.
            state: what an earlier call gave back; None starts from the empty memory.
            keep: (B, T) bool, False at padding, which may stand anywhere.

        Returns:
            y (B, T, dim), and the new state. ``state`` itself is as it was.

        Under ``torch.autocast`` (mixed precision) it runs in the dtype of its weights: sums over a stream need it.

        Raises:
            BadInput: x, state or keep of another size, dtype or device; the message names both.
        """
        if isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type):
            cast = x.dtype == torch.get_autocast_dtype(x.device.type)
            with torch.autocast(x.device.type, enabled=False):
                return self(x.to(self.dtype) if cast else x, state, keep=keep)
        self._check_tokens(x)
        if keep is not None:
            self._check_keep(x, keep)
        if state is None:
            return self.run(x, self.start(x.shape[0]), keep)
        self.check_state(state, x.shape[0])
        return self.run(x, carried(state), keep)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def state_dtype(self) -> torch.dtype:
        """The memory's own type: float64 in a float64 module, else float32 (sums over a stream need it)."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def state_bytes(self, batch: int = 1, tokens: int = 0) -> int:
        """Bytes of the state; ``tokens`` only matters to a state that grows with the stream (full attention)."""
        whole("tokens", tokens, 0)
        total = 0
        for slot in self.layout(whole("batch", batch)).values():
            n = 1 if slot.shape else 0
            for size in slot.shape:
                n *= tokens if size < 0 else size
            total += n * (slot.dtype or self.state_dtype).itemsize
        return total

    @property
    def grows(self) -> bool:
        """Whether the state grows with the stream."""
        return any(-1 in slot.shape for slot in self.layout(1).values())

    def settings(self) -> dict[str, Any]:
        """The constructor's hyper-parameters as they stand, those of its base classes included."""
        return settings_of(self, type(self).__mro__)

    # ------------------------------------------------------------------ checks
    def _check_tokens(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[2] != self.dim or 0 in x.shape:
            given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise BadInput(f"x must be a tensor (batch, tokens, {self.dim}) with one token or more, got {given}")
        if x.dtype != self.dtype or x.device != self.device:
            raise BadInput(
                f"x is {x.dtype} on {x.device} but the weights of {self.slug!r} are {self.dtype} on {self.device}; "
                "move one of them with .to(...)"
            )

    def _check_keep(self, x: Tensor, keep: Tensor) -> None:
        if not isinstance(keep, Tensor) or keep.shape != x.shape[:2] or keep.dtype != torch.bool:
            given = f"{keep.dtype} {tuple(keep.shape)}" if isinstance(keep, Tensor) else type(keep).__name__
            raise BadInput(f"keep must be bool {tuple(x.shape[:2])}, one flag a token, got {given}")
        if keep.device != x.device:
            raise BadInput(f"keep is on {keep.device} but x is on {x.device}")
        if not self.masks_padding:
            raise BadInput(f"{self.slug!r} cannot leave padding out; give sequences of one length and keep=None")

    def check_state(self, state: State, batch: int) -> None:
        """Raise BadInput unless ``state`` is one of this layer's for ``batch`` rows, on its device."""
        if not isinstance(state, dict):
            raise BadInput(f"state must be what an earlier call gave back (a dict), got {type(state).__name__}")
        wanted, given = self.layout(batch), carried(state)
        if wanted.keys() != given.keys():
            raise BadInput(
                f"the state of {self.slug!r} holds {', '.join(sorted(wanted))}; "
                f"got {', '.join(sorted(given)) or 'nothing'}"
            )
        for name, slot in wanted.items():
            if slot.shape:
                self._check_slot(name, slot, given[name])
            else:
                _check_count(name, slot, given[name], batch)

    def _check_slot(self, name: str, slot: Slot, value: Any) -> None:
        dtype = slot.dtype or self.state_dtype
        if not isinstance(value, Tensor):
            raise BadInput(
                f"state[{name!r}] must be {dtype} {slot.shape}, got {value!r}; hand on what a call gave back"
            )
        fits = len(slot.shape) == value.dim() and all(a in (-1, b) for a, b in zip(slot.shape, value.shape))
        if not fits or value.dtype != dtype or value.device != self.device:
            raise BadInput(
                f"state[{name!r}] must be {dtype} {slot.shape} on {self.device}, got {value.dtype} "
                f"{tuple(value.shape)} on {value.device}; a state serves the batch, dtype and device that it began "
                "with: start again with state=None"
            )

    # ------------------------------------------------------------------ the memory protocol, over one held state
    @torch.no_grad()
    def write(self, x: Tensor) -> Tensor:
        """Stream tokens (T, dim) or (1, T, dim) into the held memory; what it answered, in the same shape."""
        stream = self._one_stream(x)
        held = self.held
        seen = {name: _numbers(value) for name, value in self.scalars(stream, held).items()}
        y, state = self(stream, held)
        self._set_held(state, self._tokens + stream.shape[1])
        items = range(self._tokens - stream.shape[1], self._tokens)
        self._log.append("write", items, "every token is written", **seen)
        return y.reshape(x.shape)

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """What the held memory answers to each of the tokens (T, dim) or (1, T, dim) alone; nothing is kept."""
        stream = self._one_stream(x)
        y = self.recall(stream, self.held)
        self._log.append("read", [], "asked", tokens=stream.shape[1])
        return y.reshape(x.shape)

    def _one_stream(self, x: Tensor) -> Tensor:
        stream = x[None] if isinstance(x, Tensor) and x.dim() == 2 else x
        self._check_tokens(stream)
        if len(stream) != 1:
            raise BadInput(f"the held memory reads one stream, got a batch of {len(stream)}; call the layer itself")
        return stream

    @property
    def held(self) -> State:
        """The held state, of batch 1; the empty memory before the first write."""
        return self.start(1) if self._held is None else self._held

    def hold(self, state: State, tokens: int) -> None:
        """Make ``state`` (batch 1, ``tokens`` tokens in it), which comes from elsewhere, the held one."""
        self._set_held(state, tokens)
        self._forget()

    def _set_held(self, state: State, tokens: int) -> None:
        self.check_state(state, 1)
        self._held = {k: v.detach() if isinstance(v, Tensor) else v for k, v in carried(state).items()}
        self._tokens = tokens

    def reset(self) -> None:
        """Forget the held state; weights and log stay, and the log says so."""
        self._held, self._tokens = None, 0
        self._forget()
        self._log.append("reset", [], "reset() was called")

    def _forget(self) -> None:
        """Drop what is known of the held memory beside its state: another one took its place."""

    def nbytes(self) -> int:
        """Bytes of the held state, measured on its tensors."""
        return nbytes(self.held)

    def contents(self) -> pd.DataFrame:
        """The held memory, one line a matrix and head; see ``describe``."""
        return self.describe(self.held)

    def events(self) -> EventLog:
        return self._log

    def describe(self, state: State, row: int = 0) -> pd.DataFrame:
        """One line for every head of every tensor: part, head, shape, norm, effective_rank (of a matrix), bytes."""
        import pandas as pd

        lines = [line for name, value in carried(state).items() for line in _lines(name, value, row)]
        return pd.DataFrame(lines, columns=["part", "head", "shape", "norm", "effective_rank", "bytes"])


def _check_count(name: str, slot: Slot, value: Any, batch: int) -> None:
    """A whole number for all rows or for each, none of them beyond what the layer counts to."""
    each = isinstance(value, Tensor) and (value.dtype, value.shape, value.is_cpu) == (torch.int64, (batch,), True)
    if not each and (isinstance(value, bool) or not isinstance(value, int)):
        given = f"{value.dtype} {tuple(value.shape)} on {value.device}" if isinstance(value, Tensor) else repr(value)
        raise BadInput(f"state[{name!r}] must be a whole number, or int64 ({batch},) on the CPU, got {given}")
    low, high = (int(value.min()), int(value.max())) if isinstance(value, Tensor) else (value, value)
    if low < 0 or (slot.most is not None and high > slot.most):
        limits = "0 or more" if slot.most is None else f"from 0 to {slot.most}"
        raise BadInput(
            f"state[{name!r}] must be {limits}, got {low if low < 0 else high}; a stream keeps the layer's settings "
            "from its start to its end"
        )


def divides(name: str, parts: int, dim: int) -> int:
    """The size of each of ``parts`` equal parts of ``dim``; raises BadInput when it does not come out even."""
    if dim % whole(name, parts):
        raise BadInput(f"{name}={parts} does not divide dim={dim}; choose one of {_divisors(dim)}")
    return int(dim // parts)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)


def carried(state: State) -> State:
    """The part of a state that is the memory: all but the ``aux/`` entries."""
    return {name: value for name, value in state.items() if not name.startswith(AUX)}


def widened(state: State, rows: int) -> State:
    """The memory of a state of batch 1, seen by so many rows (views: nothing is copied)."""
    return {k: v.expand(rows, *v.shape[1:]) if isinstance(v, Tensor) else v for k, v in carried(state).items()}


def nbytes(state: State) -> int:
    """Bytes of the memory in a state, measured on its tensors."""
    return sum(v.numel() * v.element_size() for v in carried(state).values() if isinstance(v, Tensor))


def effective_rank(matrices: Tensor) -> Tensor:
    """exp of the entropy of the singular values over their sum, (..., m, n) to (...); 0 for a matrix of zeros."""
    values = torch.linalg.svdvals(matrices.double())
    share = values / values.sum(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    rank = torch.special.entr(share).sum(-1).exp()
    return torch.where(values.sum(-1) > 0, rank, torch.zeros_like(rank))


def _lines(name: str, value: Any, row: int) -> list[dict[str, Any]]:
    if not isinstance(value, Tensor):
        return []
    one = value[row].detach()
    heads = list(enumerate(one)) if one.dim() >= 3 else [(None, one)]
    return [
        {
            "part": name,
            "head": head,
            "shape": "x".join(map(str, part.shape)) or "1",
            "norm": float(part.double().norm()),
            "effective_rank": float(effective_rank(part)) if part.dim() == 2 and head is not None else float("nan"),
            "bytes": part.numel() * part.element_size(),
        }
        for head, part in heads
    ]


def _numbers(value: Tensor) -> list[float]:
    return [round(float(number), 6) for number in value.detach().flatten()]


# -- the registry's layers --------------------------------------------------------------------------------------------


def layer_names() -> list[str]:
    """The slugs of all registered sequence memories, other packages' included."""
    return [name for name in MEMORIES.names() if _is_layer(name)]


def _is_layer(name: str) -> bool:
    home = MEMORIES.home(name)
    return home.startswith(f"{__package__}.") if home else _is_layer_class(MEMORIES.get(name))


def _is_layer_class(made: Any) -> bool:
    return isinstance(made, type) and issubclass(made, MemoryLayer)


def build_layer(slug: str, dim: int, **settings: Any) -> MemoryLayer:
    """A new layer by its slug.

    Raises:
        UnknownName: no such memory. MemoryError_: a memory of another kind. BadInput: settings that it does not take.
    """
    made = MEMORIES.get(slug)
    if not _is_layer_class(made):
        raise MemoryError_(f"{slug!r} is a memory of another kind; sequence layers are {', '.join(layer_names())}")
    try:
        return made(dim, **settings)
    except TypeError as error:
        raise BadInput(f"{slug!r} cannot be built with {settings}: {error}") from error
