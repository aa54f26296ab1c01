"""The neural memory of Titans as a part: projections, gates, learned first weights, and the kernel between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import normalize

from workbench.checks import number, whole
from workbench.errors import BadInput, UnknownName
from workbench.memory.layers._chunk_means import chunk_means
from workbench.memory.layers._conv import ShortConv
from workbench.memory.layers.base import Slot, State, divides

if TYPE_CHECKING:
    from workbench_kernels.linear_memory import NeuralState

OBJECTIVES, READS, TARGETS = ("l2", "inner product"), ("post", "pre", "prev_chunk"), ("zero", "init")
IMPLEMENTATIONS = ("auto", "chunked", "triton")
GATES_PER = ("token", "chunk")
#: sigmoid(-3) = .047 of the largest step, sigmoid(.5) = .62 of the momentum; sigmoid(-5) = .007: at first almost
#: nothing is forgotten.
FIRST_BIAS = {"theta": -3.0, "eta": 0.5, "alpha": -5.0}


class Gates(NamedTuple):
    """Per token and head, (B, T, H): step size, momentum and forgetting."""

    theta: Tensor
    eta: Tensor
    alpha: Tensor


class Written(NamedTuple):
    """What was written: keys and values (B, T, H, D), and gates."""

    k: Tensor
    v: Tensor
    gates: Gates


class Watched(NamedTuple):
    """What one call wrote, and the state before and after it, each as large as the memory."""

    written: Written
    before: State
    after: State


def _wide(x: Tensor) -> torch.dtype:
    """Gates, steps and memories are float32 at least: in 16 bits 1 - alpha is 0 long before alpha is 1."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _log_kept(alpha: Tensor) -> Tensor:
    """log(1 - alpha); -inf at 1, and no slope there that would make a gradient NaN."""
    all_of_it = alpha >= 1
    return torch.log1p(-alpha.masked_fill(all_of_it, 0.0)).masked_fill(all_of_it, -torch.inf)


class NeuralCore(nn.Module):
    """k, v, q -> S_t = eta S - theta grad ||M(k) - v||^2, M_t = (1 - alpha) M + S_t, y = M_t(q).

    The arguments are those of :class:`workbench.memory.layers.titans.Titans`. The state's keys are ``weights0``,
    ``momentum0``, ``anchor0`` (the weights at which this chunk's gradients are taken), ... one (B, H, in, out) a layer
    of the memory, ``filled`` (tokens of the unfinished chunk, a whole number), ``conv``, and with gates per chunk
    (B, dim) each, ``gate_mean``, the mean x of the last whole chunk, and ``gate_sum``, of the unfinished one's x.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        depth: int,
        expansion: int,
        chunk: int,
        conv: int,
        theta_max: float,
        momentum: bool,
        decay: bool,
        decay_to: str,
        read: str,
        objective: str,
        unit_keys: bool,
        clip: float | None,
        impl: str = "auto",
        gates_per: str = "token",
    ):
        super().__init__()
        for name, value, legal in (
            ("read", read, READS), ("decay_to", decay_to, TARGETS), ("objective", objective, OBJECTIVES),
            ("impl", impl, IMPLEMENTATIONS),
        ):  # fmt: skip
            if value not in legal:
                raise BadInput(f"{name} must be one of {', '.join(map(repr, legal))}, got {value!r}")
        if gates_per not in GATES_PER:
            raise UnknownName("choice of gates_per", str(gates_per), GATES_PER)
        for name, switch in (("momentum", momentum), ("decay", decay), ("unit_keys", unit_keys)):
            if not isinstance(switch, bool):
                raise BadInput(f"{name} must be True or False, got {switch!r}")
        theta_max = number("theta_max", theta_max, above=0)
        clip = None if clip is None else number("clip", clip, above=0, more=", or None")
        if objective != "l2" and (depth != 1 or momentum or read != "post" or decay_to != "zero"):
            raise BadInput(
                "objective='inner product' (Hebbian) is linear attention: it needs depth=1, momentum=False, "
                "read='post', decay_to='zero'"
            )
        self.heads, self.head_dim = whole("heads", heads), divides("heads", heads, dim)
        self.depth, self.chunk = whole("depth", depth), whole("chunk", chunk)
        self.conv, self.theta_max = whole("conv", conv, 0), theta_max
        self.momentum, self.decay, self.decay_to = momentum, decay, decay_to
        self.read, self.objective, self.unit_keys, self.clip = read, objective, unit_keys, clip
        self.impl, self.gates_per, self.dim = impl, gates_per, dim
        wide = whole("expansion", expansion) * self.head_dim
        self.sizes = [self.head_dim, *[wide] * (depth - 1), self.head_dim]
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.short = ShortConv(3 * dim, conv) if conv else None
        self.to_gates = nn.Linear(dim, 3 * heads, bias=False)
        self.gate_bias = nn.Parameter(torch.tensor(list(FIRST_BIAS.values()))[:, None].repeat(1, heads))
        shapes = list(itertools.pairwise(self.sizes))
        self.first = nn.ParameterList(self._first(*shape, i == depth - 1) for i, shape in enumerate(shapes))
        self._watchers: list[Watched] | None = None

    def _first(self, rows: int, columns: int, last: bool) -> nn.Parameter:
        """M_0, learned: hidden matrices begin at N(0, 1 / rows) and the last one at zero, so that an empty memory
        answers 0. With Xavier's bounds in all of them what M_0 says drowns what is written, and models learn slowly."""
        w = torch.zeros(self.heads, rows, columns)
        return nn.Parameter(w if last else w.normal_(std=rows**-0.5))

    # ------------------------------------------------------------------ the state
    @property
    def _kinds(self) -> list[str]:
        """Momentum that is not carried is no state, nor is an anchor where every token has its own."""
        anchored = self.chunk > 1 and self.objective == "l2"
        return ["weights", *["momentum"] * self.momentum, *["anchor"] * anchored]

    @property
    def _sums(self) -> list[str]:
        return ["gate_mean", "gate_sum"] if self.gates_per == "chunk" else []

    def layout(self, batch: int) -> dict[str, Slot]:
        shapes = list(itertools.pairwise(self.sizes))
        slots = {
            f"{kind}{i}": Slot((batch, self.heads, *shape)) for kind in self._kinds for i, shape in enumerate(shapes)
        }
        if self.short is not None:
            slots["conv"] = Slot(self.short.shape(batch))
        slots |= {name: Slot((batch, self.dim)) for name in self._sums}
        return {**slots, "filled": Slot((), most=self.chunk - 1)}

    def start(self, batch: int, device: Any, dtype: torch.dtype) -> State:
        """The learned first weights, no momentum, nothing seen."""
        state: State = {"filled": 0}
        for i, w in enumerate(self.first):
            row = w.to(device=device, dtype=dtype).expand(batch, *w.shape)
            state |= {f"{kind}{i}": torch.zeros_like(row) if kind == "momentum" else row for kind in self._kinds}
        if self.short is not None:
            state["conv"] = torch.zeros(self.short.shape(batch), device=device, dtype=dtype)
        return state | {name: torch.zeros(batch, self.dim, device=device, dtype=dtype) for name in self._sums}

    def weights(self, state: State, kind: str = "weights") -> tuple[Tensor, ...]:
        return tuple(state[f"{kind}{i}"] for i in range(self.depth))

    def _unpack(self, state: State) -> NeuralState:
        from workbench_kernels.linear_memory import NeuralState

        weights = self.weights(state)
        momentum = self.weights(state, "momentum") if self.momentum else tuple(map(torch.zeros_like, weights))
        return NeuralState(
            weights, momentum, self.weights(state, "anchor") if state["filled"] else None, state["filled"]
        )

    def _pack(self, after: NeuralState) -> State:
        parts = {"weights": after.weights, "momentum": after.momentum, "anchor": after.anchor or after.weights}
        packed: State = {f"{kind}{i}": w for kind in self._kinds for i, w in enumerate(parts[kind])}
        return {**packed, "filled": after.filled}

    # ------------------------------------------------------------------ writing and reading
    def gates(self, x: Tensor) -> Gates:
        """In range by construction; momentum or forgetting that is switched off is 0."""
        raw = rearrange(self.to_gates(x), "b t (g h) -> g b t h", h=self.heads) + self.gate_bias[:, None, None]
        theta, eta, alpha = torch.sigmoid(raw.to(_wide(x))).unbind(0)
        off = torch.zeros_like(theta)
        return Gates(self.theta_max * theta, eta if self.momentum else off, alpha if self.decay else off)

    def _gates_in(self, x: Tensor, state: State) -> tuple[Gates, State]:
        """Each token's gates, and what the state keeps for those of the next chunk."""
        if self.gates_per == "token":
            return self.gates(x), {}
        mean, total, filled = state["gate_mean"], state["gate_sum"], state["filled"]
        means, total = chunk_means(x.to(total.dtype), mean, total, filled, self.chunk)
        own = slice(filled, filled + x.shape[1])
        spread = (gate.repeat_interleave(self.chunk, 1)[:, own] for gate in self.gates(means.to(x.dtype)))
        return Gates(*spread), {"gate_mean": means[:, -1], "gate_sum": total}

    def project(self, x: Tensor, conv: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """q, k, v (B, T, H, D) in the memory's type, and the convolution's new state."""
        mixed = self.to_qkv(x)
        if self.short is not None:
            assert conv is not None
            mixed, conv = self.short(mixed, conv)
        q, k, v = rearrange(mixed.to(_wide(x)), "b t (p h d) -> p b t h d", p=3, h=self.heads).unbind(0)
        return (normalize(q, dim=-1), normalize(k, dim=-1), v, conv) if self.unit_keys else (q, k, v, conv)

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y (B, T, dim) of every token's read, heads side by side, and the new state."""
        q, k, v, conv = self.project(x, state.get("conv"))
        gates, sums = self._gates_in(x, state)
        y, after = self._write(q, k, v, gates, state)
        after |= sums
        if self._watchers is not None:
            self._watchers.append(Watched(Written(k, v, gates), state, after))
        if conv is not None:
            after["conv"] = conv
        return rearrange(y, "b t h d -> b t (h d)").to(x.dtype), after

    def _write(self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State) -> tuple[Tensor, State]:
        from workbench_kernels.linear_memory import neural_memory

        gates = Gates(*(gate.to(q.dtype) for gate in gates))
        if self.objective != "l2":
            return self._hebbian(q, k, v, gates, state)
        target = self._target(q.shape[0], q.dtype) if self.decay_to == "init" else None
        y, after = neural_memory(
            q.contiguous(), k.contiguous(), v.contiguous(), **gates._asdict(), state=self._unpack(state),
            chunk=self.chunk, read=self.read, decay_to=self.decay_to, initial=target, clip=self.clip,
            check_values=False, impl=self.impl,
        )  # fmt: skip
        return y, self._pack(after)

    def _target(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(w.to(dtype).expand(batch, *w.shape) for w in self.first)

    def _hebbian(self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: State) -> tuple[Tensor, State]:
        """The gradient of -<M(k), v> is -k'v whatever M is: linear attention, with forgetting if there is any."""
        from workbench_kernels.linear_memory import linear_recurrence

        forget = _log_kept(gates.alpha) if self.decay else None
        written = (v * gates.theta[..., None]).contiguous()
        y, memory = linear_recurrence(
            q.contiguous(), k.contiguous(), written, log_decay=forget, state=state["weights0"], check_values=False,
            impl=self.impl,
        )  # fmt: skip
        counted = (state["filled"] + k.shape[1]) % self.chunk if self.gates_per == "chunk" else 0
        return y, {"weights0": memory, "filled": counted}

    @contextmanager
    def watching(self) -> Iterator[list[Watched]]:
        """What every call inside the block wrote."""
        seen: list[Watched] = []
        self._watchers = seen
        try:
            yield seen
        finally:
            self._watchers = None

    def ask(self, q: Tensor, state: State) -> Tensor:
        """M(q) without a write, q (B, T, H, D) to (B, T, dim)."""
        from workbench_kernels.linear_memory import read_memory

        return rearrange(read_memory(self.weights(state), q), "b t h d -> b t (h d)")
