"""Based: causal linear attention whose feature map is the second-order Taylor series of the exponential."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._linear import LinearMemory
from workbench.memory.layers._prefix_linear import quadratic, read_back
from workbench.memory.layers.base import Slot, State

#: "quadratic": tokens by tokens, no features; "chunked": features, linear in the length; "auto": by the length.
FORMS = ("auto", "quadratic", "chunked")
#: Longest first call that "auto" takes in the quadratic form.
QUADRATIC_UP_TO = 256


@MEMORIES.register("based")
class Based(LinearMemory):
    """s_i = s_{i-1} + phi(k_i)' v_i, z_i = z_{i-1} + phi(k_i), y_i = phi(q_i) s_i / (phi(q_i) z_i + epsilon).

    phi(x) = [1, x / f^(1/4), x (x) x / sqrt(2 f)], so that phi(q) . phi(k) = 1 + s + s^2 / 2 with s = q . k / sqrt(f):
    never below 1/2 (Arora et al. 2024, arXiv 2402.18668; the baseline of Just read twice, equations 1 and 2).

    Args:
        dim, heads, value_dim, gate, chunk: see ``LinearMemory``.
        key_dim: f, width of a query and a key before the map; one head holds D = 1 + f + f^2 rows.
        conv: tokens of a short convolution before q, k and v; 0 leaves it out.
        form: how a whole sequence is computed; every form gives the same numbers.

    >>> import torch
    >>> y, state = Based(8, heads=2, key_dim=4)(torch.randn(1, 5, 8))
    >>> tuple(state["memory"].shape)
    (1, 2, 21, 5)
    """

    slug = "based"
    feature_map, normalized = "taylor", True
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "key_dim": 4},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2, "key_dim": 3},
        {"heads": 1, "key_dim": 4, "form": "chunked", "chunk": 3, "conv": 2},
    )

    def __init__(
        self, dim: int, heads: int = 4, *, key_dim: int = 16, conv: int = 0, form: str = "auto", **settings: Any
    ):
        super().__init__(dim, heads, key_dim=whole("key_dim", key_dim), conv=conv, **settings)
        if form not in FORMS:
            raise BadInput(f"form={form!r} is not one of {', '.join(FORMS)}")
        self.form = form

    def layout(self, batch: int) -> dict[str, Slot]:
        return {**super().layout(batch), "seen": Slot(())}

    def start(self, batch: int, *, device: Any = None, dtype: torch.dtype | None = None) -> State:
        return {**super().start(batch, device=device, dtype=dtype), "seen": 0}

    def run(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        q, k, v, after = self._project(x, state, keep)
        y, after["memory"] = self._attend(q, k, v, state, keep)
        return self._out(x, y), {**after, "seen": state["seen"] + x.shape[1]}

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.takes_quadratic(q.shape[1], state):
            q, k, v = (part.to(self.state_dtype) for part in (q, k, v))
            return quadratic(q, k, v, keep=keep), self.total(k, v, keep)
        return self._recur(q, k, v, None, None, state["memory"], keep)

    def takes_quadratic(self, tokens: int, state: State) -> bool:
        """Whether this call goes token by token: only a first one does, for the form knows nothing of a state."""
        short = tokens <= QUADRATIC_UP_TO if self.form == "auto" else self.form == "quadratic"
        return short and not state["seen"]

    def total(self, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        """sum_j phi(k_j)' [v_j, 1] over the kept tokens, (B, H, D, d + 1)."""
        from workbench_kernels.linear_memory import prefix_state

        return prefix_state(k, v, keep=keep, check_values=False)

    # ------------------------------------------------------------------ looking
    def recall(self, x: Tensor, state: State) -> Tensor:
        """phi(q) s / (phi(q) z) for each token: nothing is written, and no convolution sees a neighbour."""
        q, _, _ = self._alone(x)
        return self._out(x, read_back(q, state["memory"]))

    def scalars(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Length of the value written, and how well the memory knew it before: cosine of its answer to the key."""
        _, k, v = self._alone(x)
        known = torch.cosine_similarity(read_back(k, state["memory"]), v.to(self.state_dtype), dim=-1)
        return {"value_norm": v.norm(dim=-1).mean(-1)[0], "known_before": known.mean(-1)[0]}

    @torch.no_grad()
    def stored(self, x: Tensor) -> Tensor:
        """Cosine (T, H) between the values of tokens (T, dim) and what the held memory answers to their keys."""
        _, k, v = self._alone(self._one_stream(x))
        return torch.cosine_similarity(read_back(k, self.held["memory"]), v.to(self.state_dtype), dim=-1)[0]

    def _alone(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of every token of x (1, T, dim) as if no other stood before it."""
        fresh = self.start(x.shape[1])
        q, k, v, _ = self._project(x.transpose(0, 1), fresh, None)
        return q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)

    def describe(self, state: State, row: int = 0) -> Any:
        """The frame of every layer, and for the matrices the norms of their Taylor blocks: order0, order1, order2."""
        frame = super().describe(state, row)
        blocks = state["memory"][row].detach().double().split([1, self.key_dim, self.key_dim**2], 1)
        norms = {f"order{i}": block.flatten(1).norm(dim=1).tolist() for i, block in enumerate(blocks)}
        heads = frame["part"] == "memory"
        for name, values in norms.items():
            frame[name] = float("nan")
            frame.loc[heads, name] = values
        return frame
