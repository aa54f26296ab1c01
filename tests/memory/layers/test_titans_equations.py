"""LMM, MAC, MAG and MAL against the paper's equations, token by token and row by row, with automatic gradients inside.

Nothing of the layers' own code runs in the reference: it has their parameters and the equations, one stream at a time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from workbench.memory.layers.base import build_layer

DIM, HEADS, TOKENS = 8, 2, 11


def made(name: str, **settings: Any) -> Any:
    """Every parameter drawn, so that nothing that begins at zero or one is left out of a comparison."""
    torch.manual_seed(3)
    own = {"heads": HEADS, "chunk": 3, "persistent": 2, "conv": 3, "theta_max": 0.3, "expansion": 2, **settings}
    layer = build_layer(name, DIM, **own).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    with torch.no_grad():
        layer.core.gate_bias[2] -= 3.0  # forgetting half of it a token, a memory would be gone after a few
    return layer


def stream() -> Tensor:
    return torch.randn(TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def heads_of(row: Tensor) -> list[Tensor]:
    return list(row.split(DIM // HEADS))


def unit(row: Tensor) -> Tensor:
    return row / row.norm()


def normed(row: Tensor, weight: Tensor) -> Tensor:
    return weight * row / (row.square().mean() + torch.finfo(torch.float32).eps).sqrt()


def network(weights: list[Tensor], row: Tensor) -> Tensor:
    for i, w in enumerate(weights):
        row = (gelu(row) if i else row) @ w
    return row


class Convolved:
    """silu of a weighted sum of the last rows; nothing before the first."""

    def __init__(self, short: Any):
        self.short, self.rows = short, list[Tensor]()

    def __call__(self, row: Tensor) -> Tensor:
        if self.short is None:
            return row
        self.rows.append(row)
        last = self.rows[-self.short.size :][::-1]
        return silu(sum(w * known for w, known in zip(self.short.weight.flip(0), last)))


def loss_of(error: Tensor, clip: float | None) -> Tensor:
    """The square (12), or Huber's loss."""
    length = error.norm()
    return length**2 if clip is None or length < clip else 2 * clip * length - clip**2


class Memory:
    """One head after the other: equations 11 to 14, the gradient by autograd at the weights of the chunk's start."""

    def __init__(self, core: Any, persistent: Tensor):
        self.core, self.seen, self.mix = core, 0, Convolved(core.short)
        self.weights = [[w[h] for w in core.first] for h in range(HEADS)]
        self.momentum = [[torch.zeros_like(w) for w in ws] for ws in self.weights]
        for row in persistent:
            self.step(row)

    def step(self, row: Tensor) -> Tensor:
        """The token is written, then read: M_t(q_t), heads side by side."""
        core = self.core
        if self.seen % core.chunk == 0:
            self.anchors = [[w.detach().requires_grad_() for w in ws] for ws in self.weights]
        self.seen += 1
        q, k, v = (heads_of(part) for part in self.mix(core.to_qkv.weight @ row).split(DIM))
        gates = (core.to_gates.weight @ row).view(3, HEADS) + core.gate_bias
        largest = [[core.theta_max], [float(core.momentum)], [float(core.decay)]]
        theta, eta, alpha = gates.sigmoid() * gates.new_tensor(largest)
        reads = []
        for h in range(HEADS):
            with torch.enable_grad():
                error = network(self.anchors[h], unit(k[h])) - v[h]
                slopes = torch.autograd.grad(loss_of(error, core.clip), self.anchors[h])
            self.momentum[h] = [eta[h] * s - theta[h] * slope for s, slope in zip(self.momentum[h], slopes)]
            self.weights[h] = [(1 - alpha[h]) * w + s for w, s in zip(self.weights[h], self.momentum[h])]
            reads.append(network(self.weights[h], unit(q[h])))
        return torch.cat(reads)


def asked(weights: list[list[Tensor]], query: Tensor) -> Tensor:
    return torch.cat([network(ws, unit(q)) for ws, q in zip(weights, heads_of(query))])


def attended(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Softmax attention of one token over all that it is given."""
    read = []
    for h, q in enumerate(heads_of(query)):
        k, v = (torch.stack([heads_of(row)[h] for row in rows]) for rows in (keys, values))
        read.append((k @ q / (DIM // HEADS) ** 0.5).softmax(0) @ v)
    return torch.cat(read)


def parts(attention: Any, rows: Any, convolved: bool) -> list[list[Tensor]]:
    """Queries, keys and values of rows; persistent tokens and answers of the memory have no neighbours."""
    mix = Convolved(attention.short if convolved else None)
    mixed = [mix(attention.to_qkv.weight @ row).split(DIM) for row in rows]
    return [[one[i] for one in mixed] for i in range(3)]


def joined(join: Any, y: Tensor, m: Tensor) -> Tensor:
    y, m = normed(y, join.of_attention.weight), normed(m, join.of_memory.weight)
    return y * m.sigmoid() if join.gate == "product" else y + m


def windowed(attention: Any, rows: Any, persistent: Any, window: int) -> list[Tensor]:
    q, k, v = parts(attention, rows, True)
    _, fixed_k, fixed_v = parts(attention, persistent, False)
    spans = [slice(max(0, t - window + 1), t + 1) for t in range(len(q))]
    reads = [attended(one, fixed_k + k[span], fixed_v + v[span]) for one, span in zip(q, spans)]
    return [attention.to_out.weight @ read for read in reads]


def lmm(layer: Any, x: Tensor) -> Tensor:
    """Equations 11 to 15, then normalised and gated (4.4)."""
    memory, out = Memory(layer.core, layer.persistent), []
    for row in x:
        read = torch.cat([normed(part, layer.norm.weight) for part in heads_of(memory.step(row))])
        out.append(layer.to_out.weight @ (read * silu(layer.to_gate.weight @ row + layer.to_gate.bias)))
    return torch.stack(out)


def mag(layer: Any, x: Tensor) -> Tensor:
    """Equations 26 to 28."""
    memory = Memory(layer.core, layer.persistent)
    local = windowed(layer.attention, x, layer.persistent, layer.window)
    return torch.stack([layer.to_out.weight @ joined(layer.join, y, memory.step(row)) for y, row in zip(local, x)])


def mal(layer: Any, x: Tensor) -> Tensor:
    """Equations 29 to 31, with a residual."""
    memory = Memory(layer.core, layer.persistent)
    written = [normed(row + memory.step(row), layer.norm.weight) for row in x]
    return torch.stack(windowed(layer.attention, written, [], layer.window))


def mac(layer: Any, x: Tensor) -> Tensor:
    """Equations 21 to 25, with a residual and without a look into the segment's own future."""
    memory, out = Memory(layer.core, layer.persistent), list[Tensor]()
    own_q, own_k, own_v = parts(layer.attention, x, True)
    _, fixed_k, fixed_v = parts(layer.attention, layer.persistent, False)
    mix, answers = Convolved(layer.short), list[Tensor]()
    for t, row in enumerate(x):
        first = t - t % layer.segment
        if t == first:
            old = [list(ws) for ws in memory.weights]
        answers.append(asked(old, mix(layer.to_query.weight @ row)))
        _, told_k, told_v = parts(layer.attention, answers[first:], False)
        read = attended(own_q[t], fixed_k + told_k + own_k[first : t + 1], fixed_v + told_v + own_v[first : t + 1])
        y = row + layer.attention.to_out.weight @ read
        m = memory.step(normed(y, layer.norm.weight))
        out.append(layer.to_out.weight @ joined(layer.join, y, m))
    return torch.stack(out)


CASES: list[tuple[Any, str, dict[str, Any]]] = [
    (lmm, "titans", {"depth": 1}),
    (lmm, "titans", {"depth": 2}),
    (lmm, "titans", {"depth": 3, "conv": 0, "persistent": 0}),
    (lmm, "titans", {"depth": 2, "chunk": 1, "clip": 0.7}),
    (lmm, "titans", {"depth": 2, "momentum": False}),
    (lmm, "titans", {"depth": 2, "decay": False, "clip": 0.7}),
    (mag, "titans-mag", {"window": 4}),
    (mag, "titans-mag", {"window": 3, "gate": "sum", "conv": 0}),
    (mal, "titans-mal", {"window": 4}),
    (mal, "titans-mal", {"window": 3, "depth": 1, "persistent": 0}),
    (mac, "titans-mac", {"segment": 4}),
    (mac, "titans-mac", {"segment": 5, "gate": "sum", "conv": 0, "depth": 1}),
    (mac, "titans-mac", {"segment": 32, "depth": 3, "persistent": 0}),
]


@torch.no_grad()
@pytest.mark.parametrize(("equations", "name", "settings"), CASES)
def test_a_layer_is_its_equations(equations: Any, name: str, settings: dict[str, Any]) -> None:
    layer, x = made(name, **settings), stream()
    wanted = equations(layer, x)
    assert wanted.norm(dim=-1).min() > 1e-5
    torch.testing.assert_close(layer(x[None])[0][0], wanted, rtol=1e-9, atol=1e-10)
