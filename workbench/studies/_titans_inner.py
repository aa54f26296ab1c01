"""Titans without an outer loop: a neural memory alone, written by streams of pairs with known answers.

Four questions of the paper's card, each with the constants that were fixed there: does the memory need depth (A1), how
many correlated pairs does it hold (A2), does forgetting help what came last (A3), what does a chunk cost (A4). All
seeds (and all settings that share a depth) run as rows of one batch; every write goes through the library's chunk form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, normalize

from workbench.errors import BadInput
from workbench_kernels.linear_memory import NeuralState, neural_memory, read_memory, surprise

if TYPE_CHECKING:
    import pandas as pd

EXPANSION = 4


@dataclass(frozen=True)
class Rule:
    """How a memory is written: depth L_M, step theta, momentum eta, forgetting alpha per token, chunk b.

    ``reset`` = (tokens before the end, alpha of that one token); ``features``: the key first goes through that many
    random GELU features (a wide linear memory); ``hebbian``: v k' is added, no error is looked at.
    """

    layers: int = 1
    theta: float = 0.1
    eta: float = 0.0
    alpha: float = 0.0
    chunk: int = 1
    decay_to: str = "zero"
    reset: tuple[int, float] | None = None
    features: int = 0
    hebbian: bool = False


def first_weights(layers: int, d_in: int, d_out: int, rows: int, seed: int) -> tuple[Tensor, ...]:
    """Hidden weights N(0, 1/d_in), the last matrix zero: an empty memory answers 0. One (rows, 1, in, out) a layer."""
    if layers < 1:
        raise BadInput(f"layers={layers}: a memory has at least one weight matrix")
    generator = torch.Generator().manual_seed(seed)
    sizes = [d_in, *[EXPANSION * d_in] * (layers - 1), d_out]
    shapes = list(pairwise(sizes))
    hidden = [torch.randn(rows, 1, a, b, generator=generator) / a**0.5 for a, b in shapes[:-1]]
    return (*hidden, torch.zeros(rows, 1, *shapes[-1]))


def _gates(rules: Sequence[Rule], repeats: int, length: int) -> dict[str, Tensor]:
    """theta, eta, alpha of every token, (rules x repeats, length, 1)."""
    gates = {name: torch.tensor([getattr(rule, name) for rule in rules]) for name in ("theta", "eta", "alpha")}
    full = {name: gate[:, None, None].repeat(1, length, 1) for name, gate in gates.items()}
    for row, rule in enumerate(rules):
        if rule.reset is not None:
            if not 0 < rule.reset[0] <= length:
                raise BadInput(f"reset {rule.reset[0]} tokens before the end of {length}: choose 1 to {length}")
            full["alpha"][row, length - rule.reset[0]] = rule.reset[1]
    return {name: gate.repeat_interleave(repeats, 0) for name, gate in full.items()}


def _together(rules: Sequence[Rule]) -> Rule:
    shared = {(rule.layers, rule.chunk, rule.decay_to, rule.features, rule.hebbian) for rule in rules}
    if len(shared) != 1:
        raise BadInput("rules of one batch must agree in layers, chunk, decay_to, features and hebbian")
    return rules[0]


def run(rules: Sequence[Rule], k: Tensor, v: Tensor, seed: int) -> tuple[Tensor, Tensor, NeuralState]:
    """Write (R, S, d) pairs by every rule, reading each key just before it is written.

    Returns the keys as the memory saw them (rules R, S, d'), what it answered before each write, and its final state.
    """
    one = _together(rules)
    repeats, length, d = k.shape
    if one.features:
        lift = torch.randn(d, one.features, generator=torch.Generator().manual_seed(seed + 1)) / d**0.5
        k = normalize(gelu(k @ lift), dim=-1)
    k, v = (x.repeat(len(rules), 1, 1)[:, :, None] for x in (k, v))
    first = first_weights(one.layers, k.shape[-1], v.shape[-1], repeats, seed)
    first = tuple(w.repeat(len(rules), 1, 1, 1) for w in first)
    state = NeuralState(first, tuple(map(torch.zeros_like, first)))
    if one.hebbian:
        w = torch.einsum("bshk,bshv->bhkv", k, v)
        return k[:, :, 0], torch.full_like(v[:, :, 0], torch.nan), NeuralState((w,), state.momentum)
    kept: dict[str, Any] = {"initial": first} if one.decay_to == "init" else {}
    gates = _gates(rules, repeats, length)
    with torch.no_grad():
        y, state = neural_memory(
            k, k, v, **gates, state=state, chunk=one.chunk, read="pre", decay_to=one.decay_to, **kept
        )
    return k[:, :, 0], y[:, :, 0], state


def right(answers: Tensor, values: Tensor, truth: Tensor) -> Tensor:
    """Is the nearest of the unit-norm ``values`` (R, N, d) to each answer (R, S, d) the true one (R, S)? (R, S)."""
    return (answers @ values.mT).argmax(-1) == truth


def _recall(rules: Sequence[Rule], k: Tensor, v: Tensor, seed: int, last: int | None = None) -> Tensor:
    """Share of the (last) pairs recalled after one pass, (rules, R); candidates are all values of the stream."""
    keys, _, state = run(rules, k, v, seed)
    values = v.repeat(len(rules), 1, 1)
    n = k.shape[1]
    asked = torch.arange(n)[-(last or n) :]
    answers = read_memory(state.weights, keys[:, asked, None])[:, :, 0]
    answers = torch.nan_to_num(answers)  # a memory that diverged recalls nothing
    found = right(answers, values, asked.expand(len(keys), -1)).float().mean(-1)
    return found.reshape(len(rules), -1)


def correlated_pairs(n: int, d: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Keys unit(N(0, I) + one common N(0, I) vector), values random unit vectors; (seeds, n, d) each."""

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        common = torch.randn(1, d, generator=generator)
        keys = torch.randn(n, d, generator=generator) + common
        return normalize(keys, dim=-1), normalize(torch.randn(n, d, generator=generator), dim=-1)

    keys, values = zip(*map(draw, seeds))
    return torch.stack(keys), torch.stack(values)


def interaction_stream(length: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [a_i ; b_j] of 6 x 6 orthonormal codes, values of a double-centred random table: no part helps alone.

    Returns keys (seeds, length, 16), the 36 unit values (seeds, 36, 16) and the number of each token's value.
    """

    def draw(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        codes = [torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q[:6] for _ in range(2)]
        table = torch.randn(6, 6, 16, generator=generator)
        table = table - table.mean(0, keepdim=True) - table.mean(1, keepdim=True) + table.mean((0, 1), keepdim=True)
        i, j = torch.randint(6, (2, length), generator=generator)
        keys = torch.cat([codes[0][i], codes[1][j]], -1)
        return normalize(keys, dim=-1), normalize(table.reshape(36, 16), dim=-1), 6 * i + j

    keys, values, which = zip(*map(draw, seeds))
    return torch.stack(keys), torch.stack(values), torch.stack(which)


Lines = Iterator[dict[str, Any]]


def _lines(part: str, variant: str, x: float, found: Tensor) -> Lines:
    for unit, value in enumerate(found.tolist()):
        yield {"part": part, "variant": variant, "x": x, "unit": str(unit), "metric": "accuracy", "value": value}


def needs_depth(settings: dict[str, Any], seeds: Sequence[int]) -> Lines:
    """A1: online accuracy of the last 500 of a stream, memories of 1 to 4 matrices."""
    keys, values, which = interaction_stream(settings["length"], seeds)
    streamed = values.gather(1, which[:, :, None].expand(-1, -1, values.shape[-1]))
    for layers, thetas in settings["thetas"].items():
        rules = [Rule(int(layers), theta) for theta in thetas]
        _, answers, _ = run(rules, keys, streamed, seeds[0])
        some = slice(-settings["last"], None)
        found = right(
            torch.nan_to_num(answers[:, some]),
            values.repeat(len(rules), 1, 1),
            which.repeat(len(rules), 1)[:, some],
        )
        for theta, row in zip(thetas, found.float().mean(-1).reshape(len(rules), -1)):
            yield from _lines("A1", f"{layers} layers, θ {theta:g}", float(layers), row)


#: A2's ways of writing, of growing power; the last two hold as many floats (8 x 32^2) as the 2-layer memory or more.
CAPACITY = {
    "Hebbian": Rule(hebbian=True),
    "delta": Rule(theta=0.5),
    "delta + momentum": Rule(theta=0.25, eta=0.5),
    "2 layers": Rule(2, 0.2),
    "wide linear": Rule(theta=0.05, eta=0.9, features=256),
    "3 layers": Rule(3, 0.2),
}


def capacity(settings: dict[str, Any], seeds: Sequence[int]) -> Lines:
    """A2: recall of N correlated pairs after a single pass."""
    for n in settings["pairs"]:
        k, v = correlated_pairs(n, settings["d"], seeds)
        for name in settings["rules"]:
            yield from _lines("A2", name, n, _recall([CAPACITY[name]], k, v, seeds[0])[0])


def forgetting(settings: dict[str, Any], seeds: Sequence[int]) -> Lines:
    """A3: recall of the last 32 of 1,056 pairs; rules that share a depth and a decay target run together."""
    k, v = correlated_pairs(settings["pairs"], settings["d"], seeds)
    last = settings["last"]
    deep = {"theta": settings["theta"], "layers": 2}
    groups: list[dict[str, Rule]] = [
        {
            "2 layers, α .01 to initial": Rule(**deep, alpha=0.01, decay_to="init"),
            "2 layers, reset α 1": Rule(**deep, reset=(last, 1.0), decay_to="init"),
            "2 layers, reset α .5": Rule(**deep, reset=(last, 0.5), decay_to="init"),
        },
        {"2 layers, no decay": Rule(**deep), "2 layers, α .01 to zero": Rule(**deep, alpha=0.01)},
        {
            "linear, no decay": Rule(theta=0.25, eta=0.5),
            "linear, α .01": Rule(theta=0.25, eta=0.5, alpha=0.01),
        },
    ]
    for group in groups:
        found = _recall(list(group.values()), k, v, seeds[0], last)
        for name, row in zip(group, found):
            yield from _lines("A3", name, last, row)


def chunks(settings: dict[str, Any], seeds: Sequence[int]) -> Lines:
    """A4: recall of 64 pairs when gradients are taken at the start of a chunk of b."""
    k, v = correlated_pairs(settings["pairs"], settings["d"], seeds)
    for b in settings["chunks"]:
        rules = {
            "2 layers, θ .2": Rule(2, 0.2, chunk=b),
            "2 layers, θ .05": Rule(2, 0.05, chunk=b),
            "linear, θ .25, η .5": Rule(1, 0.25, 0.5, chunk=b),
        }
        deep, flat = list(rules.values())[:2], list(rules.values())[2:]
        found = torch.cat([_recall(deep, k, v, seeds[0]), _recall(flat, k, v, seeds[0])])
        for name, row in zip(rules, found):
            yield from _lines("A4", name, b, row)


def surprise_trace(rule: Rule, k: Tensor, v: Tensor, seed: int = 0, top: int = 5) -> pd.DataFrame:
    """One stream (S, d) token by token: what surprised, what the momentum carried, what was known before and after.

    Columns: position, surprise ||grad||, momentum ||S_t||, theta, eta, alpha, before and after ||M(k) - v||^2, nearest
    (numbers of the ``top`` nearest values before the write).
    """
    import pandas as pd

    if rule.hebbian or rule.features:
        raise BadInput("a surprise trace is of a memory that takes gradient steps on the keys: no hebbian, no features")

    length, d = k.shape
    keys, values = k[None, :, None], v[None, :, None]
    first = first_weights(rule.layers, d, v.shape[-1], 1, seed)
    state = NeuralState(first, tuple(map(torch.zeros_like, first)))
    gates = _gates([rule], 1, length)
    kept: dict[str, Any] = {"initial": first} if rule.decay_to == "init" else {}
    lines = []
    for t in range(length):
        at = slice(t, t + 1)
        key, value = keys[:, at], values[:, at]
        anchor = state.weights if state.anchor is None else state.anchor
        norm = surprise(anchor, key, value)
        answer = read_memory(state.weights, key)[0, 0, 0]
        _, state = neural_memory(
            key, key, value, **{n: g[:, at] for n, g in gates.items()}, state=state,
            chunk=rule.chunk, decay_to=rule.decay_to, **kept,
        )  # fmt: skip
        after = read_memory(state.weights, key)[0, 0, 0]
        carried = torch.stack([s.square().sum() for s in state.momentum]).sum().sqrt()
        lines.append(
            {"position": t, "surprise": float(norm), "momentum": float(carried)}
            | {name: float(gate[0, t, 0]) for name, gate in gates.items()}
            | {"before": float((answer - v[t]).square().sum()), "after": float((after - v[t]).square().sum())}
            | {"nearest": (v @ answer).topk(min(top, length)).indices.tolist()}
        )
    return pd.DataFrame(lines)
