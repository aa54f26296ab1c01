"""FlashAttention and the standard algorithm, line by line on an arena that counts every load and store.

One head, (N, d) matrices, float32 or float64. The arithmetic is real, so the output can be compared with exact
attention after every step; the counters can be compared with :mod:`workbench.systems.io_counts`. Algorithms 0, 1, 3, 4
and 5 of Dao et al. 2022; order "v2" has row blocks outside, as in FlashAttention-2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import BadInput
from workbench.systems.arena import Arena, Block
from workbench.systems.io_counts import Tiling

ORDERS = ("v1", "v2")


@dataclass(frozen=True)
class Step:
    """What a walker sees after one tile: its place, output and row statistics so far, HBM elements moved so far."""

    number: int
    i: int
    j: int
    out: Tensor
    m: Tensor
    row_sum: Tensor
    read: int
    written: int


@dataclass(frozen=True)
class Simulation:
    """``out`` (N, d), natural-log ``lse`` (N,), gradients after a backward pass, and the counts."""

    arena: Arena
    out: Tensor | None = None
    lse: Tensor | None = None
    grads: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def hbm(self) -> int:
        """Elements read from and written to HBM."""
        return self.arena.traffic("HBM").elements


def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tiling: Tiling,
    *,
    order: str = "v1",
    live: Tensor | None = None,
    causal: bool = False,
    itemsize: int = 4,
    history: bool = False,
    on_step: Callable[[Step], object] | None = None,
) -> Simulation:
    """Algorithm 1 (order "v1": key blocks outside, O, l and m travel) or its swapped loops (order "v2").

    ``live`` is a bool (T_r, T_c) block mask (Algorithm 5). ``causal`` only masks; to skip, pass the causal block mask.
    """
    _check(q, k, v, tiling, live)
    if order not in ORDERS:
        raise BadInput(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    run = _Run(q, k, v, tiling, live, causal, itemsize, history, on_step)
    return run.v1() if order == "v1" else run.v2()


class _Run:
    """State of one forward simulation: matrices in 'HBM', their block records, running statistics."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tiling: Tiling,
        live: Tensor | None,
        causal: bool,
        itemsize: int,
        history: bool,
        on_step: Callable[[Step], object] | None,
    ):
        self.n, self.d = q.shape
        self.q, self.k, self.v, self.tiling, self.causal, self.on_step = q, k, v, tiling, causal, on_step
        self.scale = self.d**-0.5
        self.t_r, self.t_c = tiling.grid(self.n)
        self.live = live
        self.arena = _arena(tiling, self.d, itemsize, history)
        self.out = torch.zeros_like(v)
        self.m, self.l = q.new_full((self.n, 1), -torch.inf), q.new_zeros(self.n, 1)
        self.blocks = {
            **_in_hbm(self.arena, ("Q", "O"), self.n, tiling.rows, self.d, itemsize),
            **_in_hbm(self.arena, ("K", "V"), self.n, tiling.cols, self.d, itemsize),
        }
        self.itemsize = itemsize

    def v1(self) -> Simulation:
        self.blocks |= _in_hbm(self.arena, ("l", "m"), self.n, self.tiling.rows, 1, self.itemsize)
        for j in range(self.t_c):
            keys = [self._fetch(name, j) for name in ("K", "V")]
            for i in range(self.t_r):
                if self._is_live(i, j):
                    rows = [self._fetch(name, i) for name in ("Q", "O")]
                    stats = [self._fetch(name, i, "register") for name in ("l", "m")]
                    self._tile(i, j, normalised=True)
                    for name in ("O", "l", "m"):
                        self.arena.store(self.blocks[name, i])
                    self._finish_step(i, j, [*rows, *stats])
            self._release(keys)
        return Simulation(self.arena, self.out, self._lse())

    def v2(self) -> Simulation:
        self.blocks |= _in_hbm(self.arena, ("LSE",), self.n, self.tiling.rows, 1, self.itemsize)
        for i in range(self.t_r):
            here = self._rows(i)
            q = self._fetch("Q", i)
            o = self.arena.allocate("SRAM", "O", (len(here), self.d), index=(i,), itemsize=self.itemsize)
            for j in range(self.t_c):
                if self._is_live(i, j):
                    keys = [self._fetch(name, j) for name in ("K", "V")]
                    self._tile(i, j, normalised=False)
                    self._finish_step(i, j, keys)
            self.out[here.start : here.stop] /= self.l[here.start : here.stop].masked_fill(
                self.l[here.start : here.stop] == 0, 1.0
            )
            self.arena.store(self.blocks["O", i])
            self.arena.store(self.blocks["LSE", i])
            self._release([q, o])
        return Simulation(self.arena, self.out, self._lse())

    def _tile(self, i: int, j: int, *, normalised: bool) -> None:
        """Fold tile (i, j) into the running maximum m, sum l and output O; v1 keeps O normalised after every tile."""
        rows, cols = _slice(self._rows(i)), _slice(self._cols(j))
        scores = self.q[rows] @ self.k[cols].T * self.scale
        if self.causal:
            scores = scores.masked_fill(_future(rows, cols), -torch.inf)
        score_block = self.arena.allocate("register", "S", scores.shape, index=(i, j), itemsize=self.itemsize)
        m, row_sum, out = self.m[rows], self.l[rows], self.out[rows]
        new_m = torch.maximum(m, scores.amax(1, keepdim=True))
        safe = new_m.masked_fill(torch.isneginf(new_m), 0.0)
        weights, shrink = torch.exp(scores - safe), torch.exp(m - safe)
        new_l = shrink * row_sum + weights.sum(1, keepdim=True)
        old = out * (row_sum * shrink if normalised else shrink)
        fresh = old + weights @ self.v[cols]
        self.out[rows] = fresh / new_l.masked_fill(new_l == 0, 1.0) if normalised else fresh
        self.m[rows], self.l[rows] = new_m, new_l
        self.arena.flops += 4 * scores.numel() * self.d
        self.arena.free(score_block)

    def _finish_step(self, i: int, j: int, temporary: list[Block]) -> None:
        self._release(temporary)
        if self.on_step is not None:
            moved = self.arena.traffic("HBM")
            self.on_step(Step(self.arena.step, i, j, self.out, self.m, self.l, moved.loaded, moved.stored))
        self.arena.tick()

    def _fetch(self, name: str, index: int, into: str = "SRAM") -> Block:
        block = self.arena.load(self.blocks[name, index], into)
        assert block is not None
        return block

    def _release(self, blocks: list[Block]) -> None:
        for block in blocks:
            self.arena.free(block)

    def _is_live(self, i: int, j: int) -> bool:
        return self.live is None or bool(self.live[i, j])

    def _rows(self, i: int) -> range:
        return range(i * self.tiling.rows, min((i + 1) * self.tiling.rows, self.n))

    def _cols(self, j: int) -> range:
        return range(j * self.tiling.cols, min((j + 1) * self.tiling.cols, self.n))

    def _lse(self) -> Tensor:
        return (self.m + self.l.log())[:, 0]


def flash_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forward: Simulation,
    grad: Tensor,
    tiling: Tiling,
    *,
    live: Tensor | None = None,
    causal: bool = False,
    itemsize: int = 4,
) -> Simulation:
    """Algorithm 4: key blocks outside, probabilities recomputed from the row statistics, dQ travels to HBM and back."""
    _check(q, k, v, tiling, live)
    if forward.out is None or forward.lse is None:
        raise BadInput("forward must be the Simulation of a forward pass (it holds out and lse)")
    n, d = q.shape
    arena = _arena(tiling, d, itemsize, history=False, blocks=6)
    blocks = _in_hbm(arena, ("Q", "O", "dO", "dQ"), n, tiling.rows, d, itemsize)
    blocks |= _in_hbm(arena, ("l", "m"), n, tiling.rows, 1, itemsize)
    blocks |= _in_hbm(arena, ("K", "V", "dK", "dV"), n, tiling.cols, d, itemsize)
    grads = (torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
    t_r, t_c = tiling.grid(n)
    for j in range(t_c):
        for name in ("K", "V"):
            arena.load(blocks[name, j])
        cols = slice(j * tiling.cols, min((j + 1) * tiling.cols, n))
        for i in range(t_r):
            if live is None or bool(live[i, j]):
                for name in ("Q", "O", "dO", "dQ", "l", "m"):
                    arena.load(blocks[name, i])
                rows = slice(i * tiling.rows, min((i + 1) * tiling.rows, n))
                _backward_tile(arena, (q, k, v), forward, grad, grads, rows, cols, causal)
                arena.store(blocks["dQ", i])
                arena.tick()
        for name in ("dK", "dV"):
            arena.store(blocks[name, j])
    return Simulation(arena, grads=grads)


def _backward_tile(
    arena: Arena,
    qkv: tuple[Tensor, Tensor, Tensor],
    forward: Simulation,
    grad: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    rows: slice,
    cols: slice,
    causal: bool,
) -> None:
    q, k, v = qkv[0][rows], qkv[1][cols], qkv[2][cols]
    assert forward.lse is not None
    assert forward.out is not None
    scale = q.shape[1] ** -0.5
    lse = forward.lse[rows, None]
    weights = torch.exp(q @ k.T * scale - lse.masked_fill(torch.isneginf(lse), torch.inf))
    if causal:
        weights = weights.masked_fill(_future(rows, cols), 0.0)
    delta = (grad[rows] * forward.out[rows]).sum(1, keepdim=True)
    slope = weights * (grad[rows] @ v.T - delta)
    grads[2][cols] += weights.T @ grad[rows]
    grads[0][rows] += slope @ k * scale
    grads[1][cols] += slope.T @ q * scale
    arena.flops += 10 * weights.numel() * q.shape[1]


def standard_forward(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, itemsize: int = 4) -> Simulation:
    """Algorithm 0: scores and probabilities go through HBM. A causal mask is one more pass over the scores."""
    n, d = q.shape
    arena = Arena({"HBM": None, "SRAM": None, "register": None}, history=False)
    b = _whole(arena, n, d, itemsize, ("Q", "K", "V", "O"), ("S", "P"))
    _move(arena, b, loads="QK", stores="S")
    scores = q @ k.T * d**-0.5
    if causal:
        _move(arena, b, loads="S", stores="S")
        scores = scores.masked_fill(_future(slice(0, n), slice(0, n)), -torch.inf)
    _move(arena, b, loads="S", stores="P")
    _move(arena, b, loads="PV", stores="O")
    arena.flops += 4 * n * n * d
    return Simulation(arena, torch.softmax(scores, 1) @ v, torch.logsumexp(scores, 1))


def standard_backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, *, itemsize: int = 4) -> Simulation:
    """Algorithm 3 without mask: P is read, dP and dS go through HBM."""
    n, d = q.shape
    arena = Arena({"HBM": None, "SRAM": None, "register": None}, history=False)
    b = _whole(arena, n, d, itemsize, ("Q", "K", "V", "dO", "dQ", "dK", "dV"), ("P", "dP", "dS"))
    weights = torch.softmax(q @ k.T * d**-0.5, 1)  # kept by the forward pass, so its making is not counted here
    _move(arena, b, loads=("P", "dO", "dV"), stores=("dV",))  # dV accumulates over row blocks: read and written
    _move(arena, b, loads=("dO", "V"), stores=("dP",))
    d_weights = grad @ v.T
    _move(arena, b, loads=("P", "dP"), stores=("dS",))
    slope = weights * (d_weights - (weights * d_weights).sum(1, keepdim=True)) * d**-0.5
    _move(arena, b, loads=("dS", "K"), stores=("dQ",))
    _move(arena, b, loads=("dS", "Q"), stores=("dK",))
    arena.flops += 8 * n * n * d
    return Simulation(arena, grads=(slope @ k, slope.T @ q, weights.T @ grad))


def _whole(
    arena: Arena, n: int, d: int, itemsize: int, thin: tuple[str, ...], square: tuple[str, ...]
) -> dict[str, Block]:
    blocks = {name: arena.allocate("HBM", name, (n, d), itemsize=itemsize) for name in thin}
    return blocks | {name: arena.allocate("HBM", name, (n, n), itemsize=itemsize) for name in square}


def _move(
    arena: Arena, blocks: dict[str, Block], *, loads: tuple[str, ...] | str, stores: tuple[str, ...] | str
) -> None:
    for name in loads:
        arena.load(blocks[name])
    for name in stores:
        arena.store(blocks[name])
    arena.tick()


def _arena(tiling: Tiling, d: int, itemsize: int, history: bool, blocks: int = 4) -> Arena:
    """SRAM holds the paper's four d-wide blocks (M in whole rows); scores and statistics sit in registers."""
    room = math.ceil(blocks / 2) * (tiling.rows + tiling.cols) * d * itemsize
    return Arena({"HBM": None, "SRAM": room, "register": None}, history=history)


def _in_hbm(
    arena: Arena, names: tuple[str, ...], n: int, size: int, width: int, itemsize: int
) -> dict[tuple[str, int], Block]:
    starts = range(0, n, size)
    return {
        (name, b): arena.allocate("HBM", name, (min(size, n - start), width), index=(b,), itemsize=itemsize)
        for name in names
        for b, start in enumerate(starts)
    }


def _slice(span: range) -> slice:
    return slice(span.start, span.stop)


def _future(rows: slice, cols: slice) -> Tensor:
    return torch.arange(cols.start, cols.stop)[None, :] > torch.arange(rows.start, rows.stop)[:, None]


def _check(q: Tensor, k: Tensor, v: Tensor, tiling: Tiling, live: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 2 or not x.dtype.is_floating_point:
            raise BadInput(f"{name} must be a floating (N, d) matrix of one head, got {x.dtype} {tuple(x.shape)}")
        if x.shape != q.shape or x.dtype != q.dtype:
            raise BadInput(
                f"{name} must match q's shape {tuple(q.shape)} and dtype {q.dtype}, got {tuple(x.shape)} {x.dtype}"
            )
        if torch.isnan(x).any():
            raise BadInput(f"{name} holds NaN")
    grid = tiling.grid(q.shape[0])
    if live is not None and (tuple(live.shape) != grid or live.dtype != torch.bool):
        raise BadInput(f"live must be bool of shape (T_r, T_c) = {grid}, got {live.dtype} {tuple(live.shape)}")
