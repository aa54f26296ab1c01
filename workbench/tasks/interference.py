"""Interference by hand: facts of several domains under the same key codes, written once into matrix memories.

``domains`` x ``count`` facts. The same ``count`` codes come back in every domain with another value, so a key differs
between domains only by its domain's direction: key = unit(code + rho * direction). One shuffled pass of the delta
rule (beta 1, no decay), then every fact is asked for; an answer is right when its own value is the nearest of all.
Nothing is trained, so all that differs between routes is which memory a fact is written to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

Router = Callable[["Facts", np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Facts:
    """``keys``, ``values`` (F, d) of unit length, ``domain`` (F,), ``centres`` (domains, d), ``order`` of writing."""

    keys: np.ndarray
    values: np.ndarray
    domain: np.ndarray
    centres: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class Route:
    """How facts find memories: the router's logits (F, N), how many memories are taken, what keys are turned into."""

    logits: Router
    top_k: int = 1
    shared: bool = False
    features: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None


def draw(count: int, *, rho: float = 0.3, domains: int = 4, width: int = 32, seed: int = 0) -> Facts:
    """``domains * count`` facts; ``rho`` >= 0 is the length of the domain's part beside the code's 1."""
    if min(count, domains, width) < 1 or rho < 0:
        raise BadInput(f"count={count}, domains={domains}, width={width} must be at least 1 and rho={rho} at least 0")
    rng = np.random.default_rng(seed)
    codes, centres = (_unit(rng.normal(size=(n, width))) for n in (count, domains))
    values = _unit(rng.normal(size=(domains * count, width)))
    domain, code = np.divmod(np.arange(domains * count), count)
    keys = _unit(codes[code] + rho * centres[domain])
    return Facts(keys, values, domain, centres, rng.permutation(domains * count))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _one(facts: Facts, rng: np.random.Generator) -> np.ndarray:
    return np.zeros((len(facts.keys), 1))


def _by_domain(facts: Facts, rng: np.random.Generator) -> np.ndarray:
    """What a linear router can see: the domain's direction in the key, with the code's noise upon it."""
    return facts.keys @ facts.centres.T


def _noisy(facts: Facts, rng: np.random.Generator) -> np.ndarray:
    return _by_domain(facts, rng) + 0.1 * rng.normal(size=(len(facts.keys), len(facts.centres)))


def _told(facts: Facts, rng: np.random.Generator) -> np.ndarray:
    return np.eye(len(facts.centres))[facts.domain]


def _by_lot(facts: Facts, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(len(facts.keys), len(facts.centres)))


def _silu(keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    z = keys @ rng.normal(size=(keys.shape[1], 4 * keys.shape[1]))
    return _unit(z / (1 + np.exp(-z)))


def _fourier(keys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random Fourier features of a Gaussian kernel of width 1/3: near keys fall apart."""
    z = 3 * keys @ rng.normal(size=(keys.shape[1], 4 * keys.shape[1]))
    return _unit(np.cos(z + rng.uniform(0, 2 * np.pi, z.shape[1])))


#: Four memories unless it says single; the wide ones hold as many floats as the four.
ROUTES = {
    "single": Route(_one),
    "single, 4x wider": Route(_one, features=_silu),
    "single, 4x wider, Fourier": Route(_one, features=_fourier),
    "domain router": Route(_by_domain),
    "noisy router": Route(_noisy),
    "by lot": Route(_by_lot),
    "told the domain": Route(_told),
    "domain router, top 2": Route(_by_domain, top_k=2),
    "domain router + shared": Route(_by_domain, shared=True),
}


def weights(logits: np.ndarray, top_k: int, shared: bool) -> np.ndarray:
    """Softmax, the ``top_k`` largest, renormalised: (F, N), and a column of ones for a shared memory."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    taken = np.argsort(-p, axis=1, kind="stable")[:, :top_k]
    kept = np.zeros_like(p)
    np.put_along_axis(kept, taken, np.take_along_axis(p, taken, 1), 1)
    kept /= kept.sum(1, keepdims=True)
    return np.hstack([kept, np.ones((len(p), 1))]) if shared else kept


def write(keys: np.ndarray, values: np.ndarray, w: np.ndarray, order: np.ndarray) -> np.ndarray:
    """One pass of the delta rule into the memories with a weight above 0: (N, d_k, d_v)."""
    memories = np.zeros((w.shape[1], keys.shape[1], values.shape[1]))
    for t in order:
        for m in np.flatnonzero(w[t]):
            memories[m] += np.outer(keys[t], values[t] - keys[t] @ memories[m])
    return memories


def recall(facts: Facts, route: str, *, seed: int = 0) -> np.ndarray:
    """Whether each fact's own value is the nearest of all to what is read, (F,) bool."""
    if route not in ROUTES:
        raise BadInput(f"route must be one of {', '.join(ROUTES)}, got {route!r}")
    chosen, rng = ROUTES[route], np.random.default_rng([seed, 1])
    keys = facts.keys if chosen.features is None else chosen.features(facts.keys, rng)
    w = weights(chosen.logits(facts, rng), chosen.top_k, chosen.shared)
    memories = write(keys, facts.values, w, facts.order)
    read = np.einsum("fm,fk,mkv->fv", w, keys, memories)
    return np.argmax(read @ facts.values.T, 1) == np.arange(len(keys))


def interference(
    counts: Sequence[int] = (8, 16, 32), *, rho: float = 0.3, seeds: Sequence[int] = tuple(range(8))
) -> pd.DataFrame:
    """Share of facts recalled: route, facts (a domain), rho, unit (the seed), recall."""
    import pandas as pd

    rows = []
    for count in counts:
        for seed in seeds:
            facts = draw(count, rho=rho, seed=seed)
            rows += [(route, count, rho, seed, recall(facts, route, seed=seed).mean()) for route in ROUTES]
    return pd.DataFrame(rows, columns=["route", "facts", "rho", "unit", "recall"])
