"""What LMM, MAC, MAG and MAL share: one neural memory, persistent tokens, and what there is to see in it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.layers._in_step import apart, counts_of, evened, in_step
from workbench.memory.layers._titans_attention import WindowAttention
from workbench.memory.layers._titans_memory import NeuralCore, Watched, Written
from workbench.memory.layers.base import MemoryLayer, Slot, State, carried, effective_rank, widened

if TYPE_CHECKING:
    import pandas as pd

MEMORY: dict[str, Any] = {
    "depth": 2, "expansion": 4, "chunk": 32, "conv": 4, "theta_max": 0.5, "momentum": True, "decay": True,
    "decay_to": "zero", "read": "post", "objective": "l2", "unit_keys": True, "clip": None,
    "impl": "auto", "gates_per": "token",
}  # fmt: skip


class TitansLayer(MemoryLayer):
    """A layer round one :class:`NeuralCore`; ``memory`` are its arguments, by name (see ``Titans``).

    Padding is left out before a token is counted, so chunks, segments and windows are those of the stream without it.
    A mask is looked at, which ``vmap`` and CUDA graphs cannot do: give them sequences of one length.
    """

    def __init__(self, dim: int, heads: int, persistent: int, memory: dict[str, Any]):
        super().__init__(dim)
        unknown = sorted(set(memory) - set(MEMORY))
        if unknown:
            near = get_close_matches(unknown[0], MEMORY, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(MEMORY)}"
            raise TypeError(f"{type(self).__name__} has no argument {unknown[0]!r}; {hint}")
        self.core = NeuralCore(dim, heads, **{**MEMORY, **memory})
        self.heads, self.persistent_tokens = self.core.heads, whole("persistent", persistent, 0)
        self.persistent = nn.Parameter(torch.randn(persistent, dim) * dim**-0.5)
        self._written: list[Written] = []
        self._latest: list[Written] = []

    @abstractmethod
    def run_even(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The mechanism on rows that are in step, without padding: x (B, T, dim) to y (B, T, dim) and the new state."""

    def run(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        counts = counts_of(self.layout(x.shape[0]))
        if keep is None and not apart(state, counts):
            return self.run_even(x, state)
        return in_step(self.run_even, x, state, keep, counts)

    def hold(self, state: State, tokens: int) -> None:
        self.check_state(state, 1)
        super().hold(evened(state, counts_of(self.layout(1))), tokens)

    def begun(self, batch: int, device: Any, dtype: torch.dtype | None) -> State:
        """The first weights, and the persistent tokens read."""
        state = self.core.start(batch, device or self.device, dtype or self.state_dtype)
        if not self.persistent_tokens:
            return state
        tokens = self.persistent.to(device or self.device).expand(batch, *self.persistent.shape)
        return self.core.run(tokens, state)[1]

    def asked(self, x: Tensor, state: State) -> Tensor:
        """What the memory answers to each token of x (1, T, dim) alone, (1, T, dim), heads side by side."""
        wide = widened(state, x.shape[1])
        q = self.core.project(x.transpose(0, 1), wide.get("conv"))[0]
        return self.core.ask(q, wide).transpose(0, 1)

    # ------------------------------------------------------------------ looking
    @torch.no_grad()
    def scalars(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Means over heads: surprise ||grad||, momentum ||S_t||, the gates, and ||M(k) - v||^2 before and after."""
        lines, self._latest = list[dict[str, Tensor]](), []
        for one in self._watched(x, state):
            lines.append(_looked_at(self.core, one))
            self._latest.append(one.written)
        return {name: torch.stack([line[name] for line in lines]) for name in lines[0]}

    def _watched(self, x: Tensor, state: State) -> Iterator[Watched]:
        """Token by token, so that each token's own gradient and step are seen, and no more than two states are held."""
        for token in x.split(1, 1):
            with self.core.watching() as seen:
                _, state = self.run(token, carried(state), None)
            yield from seen

    def write(self, x: Tensor) -> Tensor:
        y = super().write(x)
        self._written += self._latest
        return y

    def _forget(self) -> None:
        self._written = []

    def contents(self) -> pd.DataFrame:
        """``describe`` of the held memory, with the means of the gates so far and the tokens absorbed."""
        frame = self.describe(self.held)
        gates = [one.gates for one in self._written]
        for i, name in enumerate(("theta", "eta", "alpha")):
            means = torch.cat([gate[i][0] for gate in gates]).mean(0).tolist() if gates else [float("nan")] * self.heads
            frame[name] = [means[int(head)] for head in frame["head"]]
        return frame.assign(tokens=self._tokens)

    @torch.no_grad()
    def describe(self, state: State, row: int = 0) -> pd.DataFrame:
        """One line a head and matrix: part, head, shape, norm, moved ||M - M_0||, effective_rank, momentum, bytes."""
        import pandas as pd

        lines = []
        for i, w in enumerate(self.core.weights(state)):
            for head, matrix in enumerate(w[row]):
                carried_on = state[f"momentum{i}"][row, head].norm() if self.core.momentum else torch.tensor(0.0)
                lines.append(
                    {"part": f"weights{i}", "head": head, "shape": "x".join(map(str, matrix.shape))}
                    | {"norm": float(matrix.norm()), "moved": float((matrix - self.core.first[i][head]).norm())}
                    | {"effective_rank": float(effective_rank(matrix)), "momentum": float(carried_on)}
                    | {"bytes": matrix.numel() * matrix.element_size()}
                )
        return pd.DataFrame(lines)

    @torch.no_grad()
    def stored_pairs(self, labels: list[str] | None = None) -> pd.DataFrame:
        """One line a written token, mean over heads: what is left of its pair now.

        Columns: position, token (of ``labels``), error ||M(k) - v||^2, static_error (the same of M_0: what the learned
        first weights know without memory), rank (of v among all written values by the angle to M(k), 0 is nearest).
        """
        import pandas as pd

        columns = ["position", "token", "error", "static_error", "rank"]
        if not self._written:
            return pd.DataFrame(columns=columns)
        k, v = (torch.cat([getattr(one, name) for one in self._written], 1) for name in "kv")
        if labels is not None and len(labels) != k.shape[1]:
            raise BadInput(f"labels must name the {k.shape[1]} tokens written, got {len(labels)}")
        start = self.core.start(1, self.device, self.state_dtype)
        answers = [self._answers(k, state) for state in (self.held, start)]
        said, known = (normalize(x.transpose(1, 2)[0], dim=-1) for x in (answers[0], v))
        alike = said @ known.mT  # h t t
        ranks = (alike > alike.diagonal(dim1=1, dim2=2)[..., None]).sum(-1).double().mean(0)
        errors = [(answer - v).square().sum(-1).mean(-1)[0].tolist() for answer in answers]
        places = list(range(k.shape[1]))
        rows = (places, labels or [""] * len(places), *errors, ranks.tolist())
        return pd.DataFrame(dict(zip(columns, rows)))

    def _answers(self, k: Tensor, state: State) -> Tensor:
        return self.core.ask(k, state).unflatten(-1, (self.heads, -1))

    def settings(self) -> dict[str, Any]:
        shown = {name: getattr(self.core, name) for name in MEMORY if name != "expansion"}
        wide = self.core.sizes[1] // self.core.head_dim if self.core.depth > 1 else 1
        return {**super().settings(), "persistent": self.persistent_tokens, "expansion": wide, **shown}


class WindowedTitans(TitansLayer):
    """A neural memory with a sliding window of attention at its side (MAG, MAL)."""

    def __init__(self, dim: int, heads: int, window: int, persistent: int, memory: dict[str, Any]):
        super().__init__(dim, heads, persistent, memory)
        self.attention = WindowAttention(dim, heads, self.core.conv, window)
        self.window = self.attention.window

    def layout(self, batch: int) -> dict[str, Slot]:
        return {**self.core.layout(batch), **self.attention.layout(batch)}

    def start(self, batch: int, *, device: Any = None, dtype: torch.dtype | None = None) -> State:
        attention = self.attention.start(batch, device or self.device, dtype or self.state_dtype)
        return {**self.begun(batch, device, dtype), **attention}


def _looked_at(core: NeuralCore, one: Watched) -> dict[str, Tensor]:
    """Numbers of one written token (batch 1), means over heads."""
    from workbench_kernels.linear_memory import surprise

    anchor = core.weights(one.before, "anchor") if core.chunk > 1 and core.objective == "l2" else None
    weights, (k, v, own) = core.weights(one.before), one.written
    grad = surprise(anchor or weights, k, v)
    if core.objective != "l2":
        grad = k.norm(dim=-1) * v.norm(dim=-1)
    momentum = core.weights(one.after, "momentum") if core.momentum else ()
    carried_on = sum((s.square().sum((-1, -2)) for s in momentum), torch.zeros_like(grad[:, 0])).sqrt()
    errors = {
        name: (core.ask(k, state).unflatten(-1, (core.heads, -1)) - v).square().sum(-1).mean()
        for name, state in (("error_before", one.before), ("error_after", one.after))
    }
    gates = {name: gate.mean() for name, gate in own._asdict().items()}
    return {"surprise": grad.mean(), "momentum": carried_on.mean(), **gates, **errors}
