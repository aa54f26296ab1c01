"""Titans' neural memory: the state is the weights of a small MLP and their momentum (arXiv 2501.00663, 3.1-3.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu

from workbench_kernels import checks


class NeuralState(NamedTuple):
    """``weights`` and ``momentum``: one (B, H, in, out) tensor a layer of the memory each."""

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]


def _gelu_slope(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / 2**0.5)) + z * torch.exp(-z * z / 2) / (2 * torch.pi) ** 0.5


def _factors(weights: tuple[Tensor, ...], k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per layer (input rows A, error rows Delta): the gradient of ||M(k) - v||^2 of a token is a' delta."""
    if len(weights) == 1:
        return [(k, 2 * (k @ weights[0] - v))]
    z = k @ weights[0]
    a = gelu(z)
    g = 2 * (a @ weights[1] - v)
    return [(k, (g @ weights[1].mT) * _gelu_slope(z)), (a, g)]


def _between(log_gate: Tensor) -> Tensor:
    """prod_{l=i+1..j} of a gate, lower triangular (B, H, C, C)."""
    total = log_gate.cumsum(-1)
    seen = torch.ones(log_gate.shape[-1], log_gate.shape[-1], dtype=torch.bool, device=log_gate.device).tril()
    return (total[..., :, None] - total[..., None, :]).masked_fill(~seen, -torch.inf).exp()


def _one(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, eta: Tensor, alpha: Tensor, state: NeuralState
) -> tuple[Tensor, NeuralState]:
    """One chunk, all gradients at its first weights: masked linear attentions over the gradients' factors."""
    tiny = torch.finfo(q.dtype).tiny
    log_eta, log_keep = eta.clamp_min(tiny).log(), (1 - alpha).clamp_min(tiny).log()
    e_between, d_between = _between(log_eta), _between(log_keep)
    mixed = (d_between @ e_between) * theta[..., None, :]  # L = (D E) diag(theta)
    kept, carried = log_keep.cumsum(-1).exp(), log_eta.cumsum(-1).exp()  # beta_t, e_t
    pulled = (d_between @ carried[..., None])[..., 0]  # c = D e
    rows, weights, momentum = q, [], []
    for layer, (a, delta) in enumerate(_factors(state.weights, k, v)):
        w, s = state.weights[layer], state.momentum[layer]
        rows = gelu(rows) if layer else rows
        rows = kept[..., None] * (rows @ w) + pulled[..., None] * (rows @ s) - ((rows @ a.mT) * mixed) @ delta
        end = slice(-1, None)
        weights.append(kept[..., end, None] * w + pulled[..., end, None] * s - (a * mixed[..., -1, :, None]).mT @ delta)
        last = (e_between[..., -1, :] * theta)[..., None]
        momentum.append(carried[..., end, None] * s - (a * last).mT @ delta)
    return rows, NeuralState(tuple(weights), tuple(momentum))


def _check(q: Tensor, v: Tensor, gates: dict[str, Tensor], state: NeuralState, chunk: int) -> None:
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be an integer >= 1, got {chunk!r}")
    if q.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the inner loop diverges in {q.dtype}: give float32 or float64")
    for name, gate in gates.items():
        if gate.shape != q.shape[:3] or gate.dtype != q.dtype or gate.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} {tuple(q.shape[:3])} on {q.device}, got {tuple(gate.shape)}")
        if gate.numel() and (gate.min() < 0 or (name != "theta" and gate.max() > 1)):
            raise ValueError(f"{name} must lie in {'[0, inf)' if name == 'theta' else '[0, 1]'}")
    if len(state.weights) not in (1, 2) or len(state.momentum) != len(state.weights):
        raise ValueError(f"the memory has 1 or 2 layers, each with a momentum; got {len(state.weights)} weights")
    sizes = [q.shape[3], *(w.shape[-1] for w in state.weights[:-1]), v.shape[3]]
    for i, pair in enumerate(zip(state.weights, state.momentum, strict=True)):
        shape = (q.shape[0], q.shape[2], sizes[i], sizes[i + 1])
        for x in pair:
            if tuple(x.shape) != shape or x.dtype != q.dtype or x.device != q.device:
                raise ValueError(
                    f"layer {i} of the state must be {q.dtype} {shape} on {q.device}, "
                    f"got {x.dtype} {tuple(x.shape)} on {x.device}"
                )


def neural_memory(
    q: Tensor, k: Tensor, v: Tensor, *, theta: Tensor, eta: Tensor, alpha: Tensor, state: NeuralState, chunk: int = 16
) -> tuple[Tensor, NeuralState]:
    """Read after write of a memory trained by gradient steps with momentum and decay, exact chunk form.

    q, k (B, S, H, D), v (B, S, H, Dv); step ``theta`` >= 0, momentum ``eta`` and forgetting ``alpha`` in [0, 1],
    all (B, S, H). S_t = eta S - theta grad, M_t = (1 - alpha) M + S_t; gradients are taken at the weights of the
    chunk's start (``chunk=1`` is plain online descent). Splits of a stream at multiples of ``chunk`` change nothing.

    Returns y (B, S, H, Dv) and the final state. Raises ValueError for arguments that do not fit.
    """
    checks.queries_and_keys(q, k)
    checks.values(v, q, k)
    if q.shape != k.shape:
        raise ValueError(f"q and k need one shape, got {tuple(q.shape)} and {tuple(k.shape)}")
    _check(q, v, {"theta": theta, "eta": eta, "alpha": alpha}, state, chunk)
    parts = [x.transpose(1, 2) for x in (q, k, v, theta, eta, alpha)]
    reads = [parts[2][:, :, :0]]
    for start in range(0, q.shape[1], chunk):
        cut: Any = [x[:, :, start : start + chunk] for x in parts]
        read, state = _one(*[*cut, state])
        reads.append(read)
    return torch.cat(reads, 2).transpose(1, 2), state
