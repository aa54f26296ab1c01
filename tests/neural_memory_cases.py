"""Cases for the neural memory's Triton kernels, and how they are held to the chunk form in float64.

The chunk form is held to automatic gradients token by token in ``kernels/test_neural_memory.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from attention_cases import DEVICE, nan_in_fresh_memory
from torch import Tensor

from workbench_kernels.linear_memory import NeuralState, neural_memory

GATES = ("theta", "eta", "alpha")
MATRICES = ("w1", "w2", "s1", "s2")
#: Root mean square of the difference over that of the exact numbers, beyond twice that of torch in float32 (gates near
#: zero lose digits in their logarithms, in any form). A card's products are made of three TF32 ones.
BUDGETS = {"cpu": 1e-6, "cuda": 1e-4}


@dataclass(frozen=True)
class Case:
    """``filled``: tokens that the stream took before, through torch. ``reset``: one token forgets everything.

    ``step`` and ``forget``: the largest theta and alpha. The first ones are those of short rows: over dozens of chunks
    steps of .1 diverge, in float64 as well, and a memory that forgets 5 % a token dies out.
    """

    length: int = 40
    chunk: int = 16
    dims: tuple[int, int, int] = (16, 64, 16)
    heads: int = 2
    batch: int = 1
    read: str = "post"
    clip: float | None = None
    filled: int = 0
    reset: bool = False
    step: float = 0.1
    forget: float = 0.1

    def draw(self, seed: int = 0) -> dict[str, Tensor]:
        """Unit keys; gates that let both the weights and the momentum live through several chunks."""
        gen = torch.Generator(DEVICE).manual_seed(seed)
        dim, hidden, value_dim = self.dims
        rows, lead = (self.batch, self.length + self.filled, self.heads), (self.batch, self.heads)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=gen, device=DEVICE)

        def uniform() -> Tensor:
            return torch.rand(rows, generator=gen, device=DEVICE)

        made = {"q": 0.5 * normal(*rows, dim), "k": torch.nn.functional.normalize(normal(*rows, dim), dim=-1)}
        made |= {"v": normal(*rows, value_dim), "theta": self.step * uniform(), "eta": 1 - 0.3 * uniform()}
        made["alpha"] = self.forget * uniform()
        made["w1"], made["w2"] = normal(*lead, dim, hidden) * dim**-0.5, normal(*lead, hidden, value_dim) * hidden**-0.5
        made["s1"], made["s2"] = 0.1 * normal(*lead, dim, hidden), 0.1 * normal(*lead, hidden, value_dim)
        if self.reset:
            made["alpha"][:, 5::17] = 1.0
            made["eta"][:, 3::13] = 0.0
        return made

    def run(self, inputs: dict[str, Tensor], impl: str) -> dict[str, Tensor]:
        """Reads and the final state; what is ``filled`` goes first, by itself."""
        tokens = {name: x for name, x in inputs.items() if name not in MATRICES}
        state = NeuralState((inputs["w1"], inputs["w2"]), (inputs["s1"], inputs["s2"]))
        words: dict[str, Any] = {"chunk": self.chunk, "read": self.read, "clip": self.clip, "impl": impl}
        reads = []
        for part in (slice(0, self.filled), slice(self.filled, None)):
            y, state = neural_memory(**{name: x[:, part] for name, x in tokens.items()}, state=state, **words)
            reads.append(y)
        assert state.filled == (self.length + self.filled) % self.chunk
        made = dict(zip(("W1", "W2", "S1", "S2"), (*state.weights, *state.momentum), strict=True))
        return {"y": torch.cat(reads, 1), **made}


CASES = {
    "plain": Case(),
    "clipped errors": Case(clip=0.7),
    "hard resets": Case(reset=True, length=48),
    "chunk 32": Case(chunk=32, length=70),
    "chunk 64": Case(chunk=64, length=128),
    "several hidden blocks": Case(dims=(32, 128, 32), batch=2, heads=1, length=32),
    "chunk 32, several hidden blocks": Case(chunk=32, dims=(32, 128, 32), heads=1, length=64, clip=1.0),
    "widths that are no powers of two": Case(dims=(20, 72, 24), length=33),
    "one component": Case(dims=(1, 3, 1), length=32),
    "wide": Case(dims=(80, 96, 128), length=32, heads=1),
    "read before the write": Case(read="pre"),
    "read of the last chunk's weights": Case(read="prev_chunk"),
    "an open chunk": Case(filled=5, length=45),
    "less than a chunk": Case(length=7),
}


def outcome(case: Case, drawn: dict[str, Tensor], impl: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and the gradient of every input in float64; the loss weighs the reads and the final state."""
    leaves = {name: x.to(dtype).detach().requires_grad_() for name, x in drawn.items()}
    found = case.run(leaves, impl)
    gen = torch.Generator(DEVICE).manual_seed(1)
    weights = [torch.randn(x.shape, generator=gen, device=DEVICE).to(dtype) for x in found.values()]
    loss = torch.stack([(x * w).sum() for x, w in zip(found.values(), weights, strict=True)]).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {
        n: x.detach().double() for n, x in (found | {f"d{n}": g for n, g in zip(leaves, grads, strict=True)}).items()
    }


def held(case: Case, seed: int = 0) -> dict[str, float]:
    """One case against float64: name -> error; raises where one is over the budget or not finite."""
    drawn = case.draw(seed)
    exact = outcome(case, drawn, "chunked", torch.float64)
    plain = outcome(case, drawn, "chunked", torch.float32)
    with nan_in_fresh_memory():
        fast = outcome(case, drawn, "triton", torch.float32)
    errors, over = {}, {}
    for name, a in exact.items():
        assert torch.isfinite(a).all(), f"{name} of the case itself diverges in float64: smaller steps, or a clip"
        assert float(a.norm()) > 1e-6, f"{name} of the case itself dies out: nothing is left to compare"
        assert torch.isfinite(fast[name]).all(), name
        errors[name], theirs = (float((x[name] - a).norm() / a.norm().clamp_min(1e-9)) for x in (fast, plain))
        if errors[name] > 2 * theirs + BUDGETS[torch.device(DEVICE).type]:
            over[name] = f"{errors[name]:.1e} (torch in float32 {theirs:.1e})"
    assert not over, f"over the budget: {over}; all: {errors}"
    return errors


def long_row(chunk: int, **words: Any) -> Case:
    """64 chunks through which the memory lives: in float64 it neither grows without bound nor dies out (all of the
    outputs and gradients between 1e-5 and 1e3, root mean square)."""
    return Case(length=64 * chunk, chunk=chunk, clip=1.0, step=0.32 / chunk, forget=0.08 / chunk, **words)
