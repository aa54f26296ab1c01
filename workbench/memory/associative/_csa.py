"""The code selection algorithm (CSA) of Sparsey as pure functions, and its constants.

Symbols (Rinkus and Leveille 2017): V familiarity of a cell, G familiarity of the whole input, eta the expansivity,
psi a cell's weight in the draw, rho its probability; Q competitive modules (CMs) of K cells, one winner each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import BadInput

SIGMOIDS = ("logistic", "power")


@dataclass(frozen=True)
class Csa:
    """Constants of the draw.

    floor: G^-, the familiarity up to which the draw is uniform, in [0, 1). gamma: how much a familiar code is favoured
    (eta reaches 1 + gamma K). chi: how late eta rises. sigmoid: (s1, s2, s3, s4) of 1 / (1 + s1 exp(-s2 (V - s3)))^s4.
    shape "power" puts the power on the exponential instead, 1 / (1 + (s1 exp(-s2 (V - s3)))^s4); the author's
    published curve is (0.1, 4, 1, 8).
    """

    floor: float = 0.1
    gamma: float = 10.0
    chi: float = 2.0
    sigmoid: tuple[float, float, float, float] = (1.0, 12.0, 0.6, 1.0)
    shape: str = "logistic"

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor < 1.0:
            raise BadInput(f"floor (G^-) must lie in [0, 1), got {self.floor}")
        if not (0.0 <= self.gamma < np.inf and 0.0 < self.chi < np.inf):
            raise BadInput(
                f"gamma must be at least 0 and chi above 0, both finite, got gamma={self.gamma}, chi={self.chi}"
            )
        if len(self.sigmoid) != 4 or not all(np.isfinite(self.sigmoid)) or self.sigmoid[0] <= 0 or self.sigmoid[3] <= 0:
            raise BadInput(f"sigmoid must be four finite numbers with s1 > 0 and s4 > 0, got {self.sigmoid}")
        if self.shape not in SIGMOIDS:
            raise BadInput(f"shape must be one of {', '.join(SIGMOIDS)}, got {self.shape!r}")


#: Constants for one coding field that sees the whole input, and for many that see small parts of an image.
SMOOTH = Csa()
IMAGES = Csa(floor=0.6, gamma=100.0, chi=4.0, sigmoid=(1.0, 40.0, 0.9, 1.0))


def global_familiarity(v: np.ndarray) -> np.ndarray:
    """G = mean over CMs of the largest V in the CM; ``v`` (..., Q, K) gives (...)."""
    return v.max(-1).mean(-1)


def expansivity(g: np.ndarray, k: int, csa: Csa) -> np.ndarray:
    """eta = 1 + max(0, (G - G^-) / (1 - G^-))^chi gamma K: 1 for something new, 1 + gamma K for something known."""
    return 1.0 + np.clip((np.asarray(g) - csa.floor) / (1.0 - csa.floor), 0.0, None) ** csa.chi * csa.gamma * k


def squash(v: np.ndarray, csa: Csa) -> np.ndarray:
    """sigma(V) in (0, 1), rising in V."""
    s1, s2, s3, s4 = csa.sigmoid
    odds = s1 * np.exp(np.minimum(-s2 * (np.asarray(v, dtype=float) - s3), 700.0))  # beyond, exp has no number
    return 1.0 / (1.0 + odds) ** s4 if csa.shape == "logistic" else 1.0 / (1.0 + odds**s4)


def win_weights(v: np.ndarray, eta: np.ndarray, csa: Csa) -> np.ndarray:
    """psi = (eta - 1) sigma(V) + 1, shape of ``v`` (..., Q, K); ``eta`` (...)."""
    return (np.asarray(eta)[..., None, None] - 1.0) * squash(v, csa) + 1.0


def win_probabilities(v: np.ndarray, csa: Csa) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(G, eta, psi, rho) of familiarities ``v`` (..., Q, K); rho sums to 1 in every CM."""
    g = global_familiarity(v)
    eta = expansivity(g, v.shape[-1], csa)
    psi = win_weights(v, eta, csa)
    return g, eta, psi, psi / psi.sum(-1, keepdims=True)


def draw(rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One winner per CM with probabilities ``rho`` (..., Q, K): indices (..., Q)."""
    edges = np.cumsum(rho, -1)
    point = rng.random(rho.shape[:-1])[..., None] * edges[..., -1:]  # rounding must not leave a gap at the end
    return (point >= edges).sum(-1).clip(max=rho.shape[-1] - 1)


def largest(v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The cell with the largest V in every CM, ties by a random draw: indices (..., Q)."""
    return np.where(v == v.max(-1, keepdims=True), rng.random(v.shape), -1.0).argmax(-1)
