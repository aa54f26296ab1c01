"""Titans' neural memory: the state is the weights of a small MLP and their momentum (arXiv 2501.00663, 3.1-3.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu

from workbench_kernels import checks

READS = ("post", "pre", "prev_chunk")
DECAY_TARGETS = ("zero", "init")


class NeuralState(NamedTuple):
    """The memory: an MLP of ``len(weights)`` layers (GELU between them) for every row of the batch and head.

    ``weights`` and ``momentum``: one (B, H, in, out) tensor a layer. ``filled`` tokens of the current chunk are in
    already; their gradients, and those of the chunk's remaining tokens, are taken at ``anchor``, the weights that the
    chunk began with. ``anchor`` may be None while ``filled`` is 0.
    """

    weights: tuple[Tensor, ...]
    momentum: tuple[Tensor, ...]
    anchor: tuple[Tensor, ...] | None = None
    filled: int = 0


class _Gates(NamedTuple):
    """Per token of one chunk, (B, H, C) or (B, H, C, C) lower triangular; names as in the paper's chunk form."""

    kept: Tensor  # beta_t = prod (1 - alpha)
    pulled: Tensor  # c_t: how much of the momentum at the start has reached the weights
    mixed: Tensor  # L_ti = (D E)_ti theta_i: how much of gradient i has reached the weights at t
    carried: Tensor  # e_t = prod eta
    steps: Tensor  # E_ti theta_i of the last t, (B, H, C): what is left of gradient i in the momentum


def _gelu_slope(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / 2**0.5)) + z * torch.exp(-z * z / 2) / (2 * torch.pi) ** 0.5


def _factors(weights: tuple[Tensor, ...], k: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per layer (input rows A, error rows Delta): the gradient of ||M(k) - v||^2 of a token is a' delta."""
    inputs, slopes = [k], []
    for w in weights[:-1]:
        z = inputs[-1] @ w
        inputs.append(gelu(z))
        slopes.append(_gelu_slope(z))
    errors = [2 * (inputs[-1] @ weights[-1] - v)]
    for w, slope in zip(reversed(weights[1:]), reversed(slopes), strict=True):
        errors.append((errors[-1] @ w.mT) * slope)
    return list(zip(inputs, reversed(errors), strict=True))


def _between(log_gate: Tensor) -> Tensor:
    """prod_{l=i+1..j} of a gate, lower triangular (B, H, C, C)."""
    total = log_gate.cumsum(-1)
    seen = torch.ones(log_gate.shape[-1], log_gate.shape[-1], dtype=torch.bool, device=log_gate.device).tril()
    return (total[..., :, None] - total[..., None, :]).masked_fill(~seen, -torch.inf).exp()


def _gates(theta: Tensor, eta: Tensor, alpha: Tensor) -> _Gates:
    tiny = torch.finfo(theta.dtype).tiny
    log_eta, log_keep = eta.clamp_min(tiny).log(), (1 - alpha).clamp_min(tiny).log()
    e_between, d_between = _between(log_eta), _between(log_keep)
    kept, carried = log_keep.cumsum(-1).exp(), log_eta.cumsum(-1).exp()
    pulled = (d_between @ carried[..., None])[..., 0]  # c = D e
    return _Gates(kept, pulled, (d_between @ e_between) * theta[..., None, :], carried, e_between[..., -1, :] * theta)


def _delayed(g: _Gates) -> _Gates:
    """The gates of a read before the token's own write: one token back, nothing of this chunk for the first."""
    first = torch.ones_like(g.kept[..., :1])
    kept = torch.cat([first, g.kept[..., :-1]], -1)
    pulled = torch.cat([0 * first, g.pulled[..., :-1]], -1)
    mixed = torch.cat([torch.zeros_like(g.mixed[..., :1, :]), g.mixed[..., :-1, :]], -2)
    return g._replace(kept=kept, pulled=pulled, mixed=mixed)


def _part(
    q: Tensor, kv: tuple[Tensor, Tensor], gates: _Gates, state: NeuralState, initial: tuple[Tensor, ...], read: str
) -> tuple[Tensor, NeuralState]:
    """Tokens of one chunk: every layer's read is a masked linear attention over the gradients' factors."""
    anchor = state.weights if state.anchor is None else state.anchor
    seen = _delayed(gates) if read == "pre" else gates
    kept, pulled = seen.kept[..., None], seen.pulled[..., None]
    last_kept, last_pulled, last_carried = (x[..., -1:, None] for x in (gates.kept, gates.pulled, gates.carried))
    rows, weights, momentum = q, [], []
    for layer, (a, delta) in enumerate(_factors(anchor, *kv)):
        w, s = state.weights[layer], state.momentum[layer]
        rows = gelu(rows) if layer else rows
        if read == "prev_chunk":
            rows = rows @ anchor[layer]
        else:
            own = ((rows @ a.mT) * seen.mixed) @ delta
            old = kept * (rows @ w) + pulled * (rows @ s)
            rows = old - own + ((1 - kept) * (rows @ initial[layer]) if initial else 0)
        new = last_kept * w + last_pulled * s - (a * gates.mixed[..., -1, :, None]).mT @ delta
        weights.append(new + (1 - last_kept) * initial[layer] if initial else new)
        momentum.append(last_carried * s - (a * gates.steps[..., None]).mT @ delta)
    return rows, NeuralState(tuple(weights), tuple(momentum), anchor, state.filled + q.shape[2])


def read_memory(weights: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """M(q) without a write: q (B, S, H, D) through weights (B, H, in, out), (B, S, H, Dv)."""
    rows = q.transpose(1, 2)
    for layer, w in enumerate(weights):
        rows = (gelu(rows) if layer else rows) @ w
    return rows.transpose(1, 2)


def surprise(weights: tuple[Tensor, ...], k: Tensor, v: Tensor) -> Tensor:
    """Norm of the gradient of ||M(k) - v||^2 over all weights, (B, S, H), for every token by itself."""
    pairs = _factors(weights, k.transpose(1, 2), v.transpose(1, 2))
    squares = sum(a.square().sum(-1) * delta.square().sum(-1) for a, delta in pairs)
    return torch.as_tensor(squares).sqrt().transpose(1, 2)


def _check_gates(q: Tensor, gates: dict[str, Tensor], values: bool) -> None:
    if q.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the inner loop diverges in {q.dtype}: give float32 or float64")
    for name, gate in gates.items():
        if gate.shape != q.shape[:3] or gate.dtype != q.dtype or gate.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} {tuple(q.shape[:3])} on {q.device}, got {tuple(gate.shape)}")
        high = torch.inf if name == "theta" else 1
        if values and gate.numel() and not bool(((gate >= 0) & (gate <= high)).all()):
            raise ValueError(f"{name} must lie in {'[0, inf)' if name == 'theta' else '[0, 1]'}")


def _check_state(q: Tensor, v: Tensor, state: NeuralState, chunk: int) -> None:
    depth = len(state.weights)
    if not depth or len(state.momentum) != depth or len(state.anchor or state.weights) != depth:
        raise ValueError(
            f"the memory needs one layer or more, each with a momentum (and an anchor); got {depth} weights and "
            f"{len(state.momentum)} momenta"
        )
    if not isinstance(state.filled, int) or not 0 <= state.filled < chunk:
        raise ValueError(
            f"state.filled must be an integer from 0 to chunk - 1 = {chunk - 1}, got {state.filled!r}; "
            "a stream keeps one chunk from its start to its end"
        )
    if state.filled and state.anchor is None:
        raise ValueError(f"state.filled is {state.filled}, so state.anchor must hold the weights of the chunk's start")
    sizes = [q.shape[3], *(w.shape[-1] for w in state.weights[:-1]), v.shape[3]]
    for i, group in enumerate(zip(state.weights, state.momentum, state.anchor or state.weights, strict=True)):
        shape = (q.shape[0], q.shape[2], sizes[i], sizes[i + 1])
        for x in group:
            if tuple(x.shape) != shape or x.dtype != q.dtype or x.device != q.device:
                raise ValueError(
                    f"layer {i} of the state must be {q.dtype} {shape} on {q.device}, "
                    f"got {x.dtype} {tuple(x.shape)} on {x.device}"
                )


def _check_initial(decay_to: str, initial: tuple[Tensor, ...] | None, state: NeuralState) -> tuple[Tensor, ...]:
    """The weights that are decayed to; empty for zero."""
    checks.choice("decay_to", decay_to, DECAY_TARGETS)
    if decay_to == "zero":
        if initial is not None:
            raise ValueError("initial is for decay_to='init'; leave it out to decay to zero")
        return ()
    if initial is None or len(initial) != len(state.weights):
        raise ValueError(f"decay_to='init' needs initial, one weight for each of the {len(state.weights)} layers")
    for i, (x, w) in enumerate(zip(initial, state.weights, strict=True)):
        if tuple(x.shape) not in (tuple(w.shape), tuple(w.shape[1:])) or x.dtype != w.dtype or x.device != w.device:
            raise ValueError(
                f"initial[{i}] must be {w.dtype} {tuple(w.shape[1:])} or {tuple(w.shape)} on {w.device}, "
                f"got {x.dtype} {tuple(x.shape)} on {x.device}"
            )
    return tuple(initial)


def neural_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    theta: Tensor,
    eta: Tensor,
    alpha: Tensor,
    state: NeuralState,
    chunk: int = 16,
    read: str = "post",
    decay_to: str = "zero",
    initial: tuple[Tensor, ...] | None = None,
    check_values: bool = True,
) -> tuple[Tensor, NeuralState]:
    """A memory trained by gradient steps with momentum and decay while it reads, in the exact chunk form.

    S_t = eta S_{t-1} - theta grad ||M(k_t) - v_t||^2 and M_t = (1 - alpha) M_{t-1} + S_t, y_t = M_t(q_t). Gradients
    are taken at the weights of the chunk's start; ``chunk=1`` is plain online descent. The state carries an unfinished
    chunk, so a stream may be split anywhere, down to single tokens, as long as its ``chunk`` stays the same.

    Args:
        q, k: (B, S, H, D) float32 or float64. v: (B, S, H, Dv).
        theta, eta, alpha: (B, S, H): step >= 0, momentum and forgetting in [0, 1].
        state: of any depth L_M >= 1. Fresh: weights, and zeros for the momentum. It is not changed.
        read: "post" M_t(q_t), "pre" M_{t-1}(q_t), "prev_chunk" the weights of the chunk's start.
        decay_to: "zero" (the paper), or "init": M_t = (1 - alpha) M_{t-1} + alpha M_0 + S_t.
        initial: M_0 for "init", one (H, in, out) or (B, H, in, out) a layer.
        check_values: False leaves out the looks for NaN and for gates out of range, which wait for a GPU's queue and
            cannot be had under ``torch.func.vmap`` or in a CUDA graph.

    Returns:
        y (B, S, H, Dv) and the final state; no tokens leave the state as it was.

    Raises:
        ValueError: for arguments that do not fit, by name.

    >>> import torch
    >>> k, v, gate = torch.ones(1, 2, 1, 1), torch.full((1, 2, 1, 1), 3.0), torch.zeros(1, 2, 1)
    >>> empty = NeuralState((torch.zeros(1, 1, 1, 1),), (torch.zeros(1, 1, 1, 1),))
    >>> y, _ = neural_memory(k, k, v, theta=gate + 0.25, eta=gate, alpha=gate, state=empty, chunk=1)
    >>> y.flatten().tolist()
    [1.5, 2.25]
    """
    nan = False if check_values else None
    checks.queries_and_keys(q, k, nan=nan)
    checks.values(v, q, k, nan=nan)
    if q.shape != k.shape:
        raise ValueError(f"q and k need one shape, got {tuple(q.shape)} and {tuple(k.shape)}")
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be an integer >= 1, got {chunk!r}")
    checks.choice("read", read, READS)
    _check_gates(q, {"theta": theta, "eta": eta, "alpha": alpha}, check_values)
    _check_state(q, v, state, chunk)
    target = _check_initial(decay_to, initial, state)
    parts = [x.transpose(1, 2) for x in (q, k, v, theta, eta, alpha)]
    reads, done = [parts[2][:, :, :0]], 0
    while done < q.shape[1]:
        end = done + chunk - state.filled
        now: Any = [x[:, :, done:end] for x in parts]
        rows, state = _part(now[0], (now[1], now[2]), _gates(*now[3:]), state, target, read)
        state = NeuralState(state.weights, state.momentum) if state.filled == chunk else state
        reads.append(rows)
        done = end
    return torch.cat(reads, 2).transpose(1, 2), state
