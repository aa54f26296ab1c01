"""Titans' neural memory: the state is the weights of a small MLP and their momentum (arXiv 2501.00663, 3.1-3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu

from workbench_kernels import checks

READS = ("post", "pre", "prev_chunk")
DECAY_TARGETS = ("zero", "init")
#: "auto" is "triton" where its kernels take the call, else "chunked", torch.
IMPLEMENTATIONS = ("auto", "chunked", "triton")


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


class _Chunks(NamedTuple):
    """N chunks of C tokens side by side, (B H, N, C, ...): what does not depend on the memory, made for all at once.

    ``kept`` beta_t, ``pulled`` c_t (how much of the first momentum has reached the weights) and ``mixed`` L_ti =
    (D E)_ti 2 theta_i (how much of gradient i has), as in the paper's chunk form, for the reads; the 2 is the
    gradient's.
    """

    k: Tensor
    v: Tensor
    rows: tuple[Tensor, ...]  # q, beta q, c q, (q k') * L: the first layer's read
    writes: tuple[Tensor, ...]  # k times what is left of each gradient in the weights, in the momentum
    kept: Tensor  # C 1
    pulled: Tensor  # C 1
    mixed: Tensor  # C C
    into_weights: Tensor  # C 1
    into_momentum: Tensor  # C 1
    ends: tuple[Tensor, ...]  # beta, c, e of the last token, 1 1

    def each(self) -> list[_Chunks]:
        """The chunks by themselves; unbinding has one backward pass for all, indexing has one for each."""
        fields = [zip(*(y.unbind(1) for y in x), strict=True) if isinstance(x, tuple) else x.unbind(1) for x in self]
        return [_Chunks(*values) for values in zip(*fields, strict=True)]


def _shortened(error: Tensor, clip: float | None) -> Tensor:
    if clip is None:
        return error
    length = (error.square().sum(-1, keepdim=True) + torch.finfo(error.dtype).tiny).sqrt()
    return error * (clip / length).clamp_max(1.0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of gates and scores, which rounding to TF32 would spoil, whatever torch is told about float32 products."""
    if a.is_cuda and a.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return (a.double() @ b.double()).to(a.dtype)
    return a @ b


def _between(log_gate: Tensor) -> Tensor:
    """prod_{l=i+1..j} of a gate, lower triangular (..., C, C)."""
    total = log_gate.cumsum(-1)
    seen = torch.ones(log_gate.shape[-1], log_gate.shape[-1], dtype=torch.bool, device=log_gate.device).tril()
    return (total[..., :, None] - total[..., None, :]).masked_fill(~seen, -torch.inf).exp()


def _chunks(inputs: list[Tensor], size: int, read: str) -> _Chunks:
    """From q, k, v (B H, S, ...), theta, eta, alpha (B H, S); S is a multiple of ``size``."""
    q, k, v, theta, eta, alpha = (x.unflatten(1, (-1, size)) for x in inputs)
    tiny = torch.finfo(theta.dtype).tiny
    log_eta, log_keep = eta.clamp_min(tiny).log(), (1 - alpha).clamp_min(tiny).log()
    e_between, d_between = _between(log_eta), _between(log_keep)
    kept, carried = (x.cumsum(-1).exp()[..., None] for x in (log_keep, log_eta))
    pulled = _product(d_between, carried)  # c = D e
    step = 2 * theta
    mixed = _product(d_between, e_between) * step[..., None, :]
    into_weights, into_momentum = mixed[..., -1, :, None], (e_between[..., -1, :] * step)[..., None]
    ends = kept[..., -1:, :], pulled[..., -1:, :], carried[..., -1:, :]
    if read == "pre":  # one token back, nothing of this chunk for the first
        kept = torch.cat([torch.ones_like(kept[..., :1, :]), kept[..., :-1, :]], -2)
        pulled, mixed = (torch.cat([torch.zeros_like(x[..., :1, :]), x[..., :-1, :]], -2) for x in (pulled, mixed))
    rows = q, kept * q, pulled * q, _product(q, k.mT) * mixed
    writes = k * into_weights, k * into_momentum
    return _Chunks(k, v, rows, writes, kept, pulled, mixed, into_weights, into_momentum, ends)


def _factors(
    weights: tuple[Tensor, ...], k: Tensor, v: Tensor, clip: float | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Per layer (input rows A, error rows Delta): half the gradient of ||M(k) - v||^2 of a token is a' delta.

    An error M(k) - v longer than ``clip`` counts as if it were this long: the gradient of Huber's loss.
    """
    inputs, before = [k], []
    for w in weights[:-1]:
        before.append(inputs[-1] @ w)
        inputs.append(gelu(before[-1]))
    errors = [_shortened(torch.baddbmm(v, inputs[-1], weights[-1], beta=-1), clip)]
    for w, z in zip(reversed(weights[1:]), reversed(before), strict=True):
        errors.append(torch.ops.aten.gelu_backward(errors[-1] @ w.mT, z))
    return list(zip(inputs, reversed(errors), strict=True))


def _read(
    c: _Chunks, rows: Tensor, layer: int, factors: tuple[Tensor, Tensor], w: Tensor, s: Tensor, goal: Tensor | None
) -> Tensor:
    """One layer's read: what was there, what the first momentum brings, what this chunk's gradients bring."""
    a, delta = factors
    kept, pulled, scores = (c.kept * rows, c.pulled * rows, (rows @ a.mT) * c.mixed) if layer else c.rows[1:]
    read = torch.baddbmm(torch.baddbmm(kept @ w, pulled, s), scores, delta, alpha=-1)
    return read if goal is None else torch.baddbmm(read, rows - kept, goal)


def _one(
    c: _Chunks, state: NeuralState, initial: tuple[Tensor, ...], read: str, clip: float | None
) -> tuple[Tensor, NeuralState]:
    """The tokens of one chunk: every layer's read is a masked linear attention over the gradients' factors."""
    anchor = state.weights if state.anchor is None else state.anchor
    beta, pull, carry = c.ends
    rows, weights, momentum = c.rows[0], [], []
    for layer, (a, delta) in enumerate(_factors(anchor, c.k, c.v, clip)):
        w, s, goal = state.weights[layer], state.momentum[layer], initial[layer] if initial else None
        rows = gelu(rows) if layer else rows
        rows = rows @ anchor[layer] if read == "prev_chunk" else _read(c, rows, layer, (a, delta), w, s, goal)
        to_weights, to_momentum = (a * c.into_weights, a * c.into_momentum) if layer else c.writes
        old = torch.addcmul(beta * w, pull, s)
        old = old if goal is None else torch.addcmul(old, 1 - beta, goal)
        weights.append(torch.baddbmm(old, to_weights.mT, delta, alpha=-1))
        momentum.append(torch.baddbmm(carry * s, to_momentum.mT, delta, alpha=-1))
    return rows, NeuralState(tuple(weights), tuple(momentum), anchor, state.filled + c.k.shape[1])


def _in_one_launch(c: _Chunks, state: NeuralState, read: str, clip: float | None) -> tuple[Tensor, NeuralState]:
    """Whole chunks, all of them, by the Triton kernels."""
    from workbench_kernels.linear_memory.portable.neural import Mixing, Tokens
    from workbench_kernels.linear_memory.portable.neural_call import whole_chunks

    reading = c.rows[3], c.mixed, c.kept.squeeze(-1), c.pulled.squeeze(-1)
    if read == "prev_chunk":  # all of the chunk's start, nothing since
        scores, mixed, kept, pulled = map(torch.zeros_like, reading)
        reading = scores, mixed, kept + 1, pulled
    gates = Mixing(*reading, c.into_weights.squeeze(-1), c.into_momentum.squeeze(-1), torch.cat(c.ends, -1).flatten(2))
    y, weights, momentum = whole_chunks(Tokens(c.rows[0], c.k, c.v), gates, state.weights, state.momentum, clip)
    return y.flatten(1, 2), NeuralState(weights, momentum)


def _chosen(impl: str, q: Tensor, v: Tensor, depth: int, chunk: int, decay_to: str) -> str:
    """ "triton" or "chunked"; asked for by name, Triton says why it cannot take a call."""
    if checks.choice("impl", impl, IMPLEMENTATIONS) == "chunked" or (impl == "auto" and not q.is_cuda):
        return "chunked"
    reason = _triton_refuses(q, v, depth, chunk, decay_to)
    if reason is not None and impl == "triton":
        raise ValueError(f"{reason} (impl='triton'); impl='chunked' takes this call")
    return "chunked" if reason else "triton"


def _triton_refuses(q: Tensor, v: Tensor, depth: int, chunk: int, decay_to: str) -> str | None:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms do not go through the Triton kernels"
    try:
        from workbench_kernels.linear_memory.portable.neural_call import refusal
    except ImportError as missing:
        return f"impl 'triton' cannot be imported here: {missing}"
    return refusal(q, v, depth, chunk, decay_to)


def _pieces(length: int, filled: int, chunk: int) -> list[tuple[int, int, int]]:
    """(first token, end, size): what completes an open chunk, whole chunks, what begins another."""
    head = min(length, chunk - filled) if filled else 0
    whole = head + (length - head) // chunk * chunk
    cuts = [(0, head, head), (head, whole, chunk), (whole, length, length - whole)]
    return [cut for cut in cuts if cut[1] > cut[0]]


def _changed(state: NeuralState, change: Callable[[Tensor], Tensor]) -> NeuralState:
    """Every tensor of a state; an anchor that is the weights stays the weights."""
    weights, momentum = (tuple(map(change, x)) for x in (state.weights, state.momentum))
    return NeuralState(
        weights, momentum, None if state.anchor is None else tuple(map(change, state.anchor)), state.filled
    )


def read_memory(weights: tuple[Tensor, ...], q: Tensor) -> Tensor:
    """M(q) without a write: q (B, S, H, D) through weights (B, H, in, out), (B, S, H, Dv).

    Raises:
        ValueError: for weights that do not follow upon q, by layer.
    """
    checks.tensor_bshd("q", q)
    _check_layers(q, None, weights)
    rows = q.transpose(1, 2)
    for layer, w in enumerate(weights):
        rows = (gelu(rows) if layer else rows) @ w
    return rows.transpose(1, 2)


def surprise(weights: tuple[Tensor, ...], k: Tensor, v: Tensor) -> Tensor:
    """Norm of the gradient of ||M(k) - v||^2 over all weights, (B, S, H), for every token by itself.

    Raises:
        ValueError: for k, v and weights that do not fit each other.
    """
    checks.keys_and_values(k, v, nan=None)
    _check_layers(k, v, weights)
    flat = tuple(w.flatten(0, 1) for w in weights)
    pairs = _factors(flat, k.transpose(1, 2).flatten(0, 1), v.transpose(1, 2).flatten(0, 1))
    squares = torch.stack([a.square().sum(-1) * delta.square().sum(-1) for a, delta in pairs]).sum(0)
    return 2 * squares.sqrt().unflatten(0, weights[0].shape[:2]).transpose(1, 2)


def _check_gates(q: Tensor, gates: dict[str, Tensor], values: bool) -> None:
    if q.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the inner loop diverges in {q.dtype}: give float32 or float64")
    for name, gate in gates.items():
        fits = isinstance(gate, Tensor) and gate.shape == q.shape[:3] and gate.dtype == q.dtype
        if not fits or gate.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} {tuple(q.shape[:3])} on {q.device}, got {checks.told(gate)}")
        high = torch.finfo(q.dtype).max if name == "theta" else 1
        if values and gate.numel() and not bool(((gate >= 0) & (gate <= high)).all()):
            raise ValueError(f"{name} must lie in {'[0, inf)' if name == 'theta' else '[0, 1]'}")


def _check_state(q: Tensor, v: Tensor, state: NeuralState, chunk: int) -> None:
    if not isinstance(state, NeuralState):
        raise ValueError(
            f"state must be a NeuralState, fresh or what an earlier call gave back, got {checks.told(state)}"
        )
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
    _check_layers(q, v, state.weights, state.momentum, state.anchor or state.weights)


def _check_layers(q: Tensor, v: Tensor | None, *groups: tuple[Tensor, ...]) -> None:
    """One layer or more from q's width to v's (None: any) in q's dtype; ``groups``: weights, and what is shaped so."""
    weights = groups[0]
    if not weights or not all(isinstance(x, Tensor) and x.dim() == 4 for group in groups for x in group):
        given = ", ".join(checks.told(x) for group in groups for x in group) or "nothing"
        raise ValueError(f"the memory needs one layer or more, each a tensor (B, H, in, out); got {given}")
    sizes = [q.shape[3], *(w.shape[3] for w in weights)]
    if v is not None:
        sizes[-1] = v.shape[3]
    for i, group in enumerate(zip(*groups, strict=True)):
        shape = (q.shape[0], q.shape[2], sizes[i], sizes[i + 1])
        for x in group:
            if tuple(x.shape) != shape or x.dtype != q.dtype or x.device != q.device:
                raise ValueError(
                    f"layer {i} of the state must be {q.dtype} {shape} on {q.device}, got {checks.told(x)}"
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
        fits = isinstance(x, Tensor) and tuple(x.shape) in (tuple(w.shape), tuple(w.shape[1:]))
        if not fits or x.dtype != w.dtype or x.device != w.device:
            raise ValueError(
                f"initial[{i}] must be {w.dtype} {tuple(w.shape[1:])} or {tuple(w.shape)} on {w.device}, "
                f"got {checks.told(x)}"
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
    clip: float | None = None,
    check_values: bool = True,
    impl: str = "auto",
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
        clip: longest error M(k) - v that a step is taken for; longer ones count as this long (Huber's loss), so that
            steps that are too large for a chunk cannot grow without bound. None is the paper's loss.
        check_values: False leaves out the looks for NaN and for gates out of range, which wait for a GPU's queue and
            cannot be had under ``torch.func.vmap`` or in a CUDA graph.
        impl: "chunked" is torch, "triton" puts all whole chunks into one launch (CUDA, float32, depth 2, chunk 16, 32
            or 64, D and Dv up to 128, decay to zero, no torch.func transform; gradients once) and refuses other
            calls; "auto" is "triton" for the calls it takes on a card, else "chunked". The first call of a shape
            compiles, up to 20 s.

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
    checks.whole("chunk", chunk)
    checks.choice("read", read, READS)
    checks.positive("clip", clip)
    _check_gates(q, {"theta": theta, "eta": eta, "alpha": alpha}, check_values)
    _check_state(q, v, state, chunk)
    target = _check_initial(decay_to, initial, state)
    impl = _chosen(impl, q, v, len(state.weights), chunk, decay_to)
    if not q.shape[1]:
        return v, state
    lead = (q.shape[0], q.shape[2])
    flat = _changed(state, lambda x: x.flatten(0, 1))
    goals = tuple(x.expand(*lead, *x.shape[-2:]).flatten(0, 1) for x in target)
    inputs = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v, theta, eta, alpha)]
    reads = []
    for begin, end, size in _pieces(q.shape[1], state.filled, chunk):
        made = _chunks([x[:, begin:end] for x in inputs], size, read)
        if impl == "triton" and size == chunk:
            rows, flat = _in_one_launch(made, flat, read, clip)
            reads.append(rows)
            continue
        for one in made.each():
            rows, flat = _one(one, flat, goals, read, clip)
            flat = NeuralState(flat.weights, flat.momentum) if flat.filled == chunk else flat
            reads.append(rows)
    y = torch.cat(reads, 1).unflatten(0, lead).transpose(1, 2)
    return y, _changed(flat, lambda x: x.unflatten(0, lead))
