"""``sparsey``: sparse distributed codes in superposition (Rinkus and Leveille 2017, arXiv 1710.07829).

Every input is stored on one exposure as one winner in each of Q competitive modules (CMs) of K cells. How much chance
there is in choosing winners falls with the familiarity G of the input, so similar inputs get codes that intersect more,
without any comparison with stored items: storing, the code of a cue and its class cost the same however many items are
held. (The nearest items that ``read`` names beside them are looked up among all stored codes, for whoever looks.) All
codes lie in one binary weight matrix; how they intersect is the semantic memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.associative._csa import IMAGES, SMOOTH, Csa, draw, win_probabilities
from workbench.memory.associative._macs import SELECTIONS, Codes, Decay, Macs, grid_fields
from workbench.memory.associative._overlap import distinct_codes, intersections, nearest_other
from workbench.memory.associative.base import AssociativeMemory, Recollection, label_of
from workbench.memory.base import MEMORIES

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "IMAGES",
    "SMOOTH",
    "Csa",
    "Decay",
    "Macs",
    "Sparsey",
    "distinct_codes",
    "draw",
    "intersections",
    "win_probabilities",
]

#: G with both signals below which a frame is coded by what is seen alone.
BACK_OFF = 0.8


@MEMORIES.register("sparsey")
class Sparsey(AssociativeMemory):
    """Macs over an image (or one over a plain vector), a class field above them, optionally time.

    Args:
        shape: (rows, columns) of the input, or its length N: then one mac sees everything.
        q, k: CMs of a mac and cells of a CM.
        patch, stride: side of a mac's square field and step between fields, in pixels; unused for a vector.
        pi: (least, most) active inputs with which a mac answers; most None is all.
        csa: constants of the draw; None takes those tuned for images or for a vector.
        freeze: mean weight from which a mac learns no more (None: never); freeze_by: "mac" or "cell".
        select: how codes are chosen while storing: "csa", or as baselines "random" and "max".
        temporal: learn from each frame's code to the next (H) and from a mac above them all back down (D).
        upper: (q, k) of that mac above.
        decay: fading of weights set once; None keeps them.
        seed: of every draw, also of those that break ties in reading: what was read before a pattern is stored can
            change its code.
    """

    slug = "sparsey"

    def __init__(
        self,
        shape: int | Sequence[int] = (24, 16),
        q: int = 8,
        k: int = 16,
        patch: int = 6,
        stride: int = 2,
        pi: tuple[int, int | None] = (2, None),
        csa: Csa | None = None,
        freeze: float | None = 0.2,
        freeze_by: str = "mac",
        select: str = "csa",
        temporal: bool = False,
        upper: tuple[int, int] = (16, 16),
        decay: Decay | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if select not in SELECTIONS:
            raise BadInput(f"select must be one of {', '.join(SELECTIONS)}, got {select!r}")
        self.shape = _checked_shape(shape)
        self.q, self.k, self.patch, self.stride, self.pi = q, k, patch, stride, _checked_pi(pi)
        for name, given, kind in (("csa", csa, Csa), ("decay", decay, Decay)):
            if not (given is None or isinstance(given, kind)):
                raise BadInput(f"{name} is None or a {kind.__name__}(...), got {given!r}")
        self.csa = csa or (IMAGES if len(self.shape) == 2 else SMOOTH)
        self.freeze, self.freeze_by, self.select = freeze, freeze_by, select
        self.temporal, self.upper, self.decay, self.seed = temporal, upper, decay, whole("seed", seed, 0)
        self.n_inputs = int(np.prod(self.shape))
        self._clear()

    def _clear(self) -> None:
        if len(self.shape) == 2:
            fields = grid_fields(*self.shape, self.patch, self.stride)
        else:
            fields = np.arange(self.n_inputs)[None]
        above = self.upper[0] * self.upper[1] if self.temporal else 0
        self.macs = Macs(
            fields, self.n_inputs, self.q, self.k, self.csa, pi=self.pi, freeze=self.freeze, freeze_by=self.freeze_by,
            horizontal=self.temporal, above=above, decay=self.decay,
        )  # fmt: skip
        cells = len(self.macs) * self.q * self.k
        self.top = (
            Macs(np.arange(cells)[None], cells, *self.upper, SMOOTH, horizontal=True, freeze=self.freeze)
            if self.temporal
            else None
        )
        self._rng = np.random.default_rng(self.seed)
        self._patterns: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []
        self._rows: list[dict[str, Any]] = []
        self._class_weights: dict[Any, np.ndarray] = {}

    # ---- one pattern ----------------------------------------------------------------------------------------------

    def write(self, pattern: Any, label: Any = None) -> int:
        return self._store(self.checked(pattern), label_of(label))[0]

    def checked(self, pattern: Any) -> np.ndarray:
        """A pattern as a bool vector (N,); an image must stand upright: (rows, columns) as in ``shape``, or flat."""
        array = super().checked(pattern)
        sides = tuple(side for side in np.shape(pattern) if side != 1)
        if len(sides) > 1 and sides != tuple(side for side in self.shape if side != 1):
            raise BadInput(f"a pattern has shape {self.shape} here, or is flat, got {np.shape(pattern)}")
        return array

    def _store(
        self, x: np.ndarray, label: Any, before: np.ndarray | None = None, over: np.ndarray | None = None
    ) -> tuple[int, Codes]:
        codes = self.macs.code(x, self._rng, learning=True, select=self.select, before=before, over=over)
        new = self.macs.learn(x, codes, before, over)
        active = codes.active
        total = int((x[self.macs.fields].sum(1) * active).sum()) * self.q
        item, cells = len(self._rows), self.macs.cells(codes.winners)
        if label is not None:
            held = self._class_weights.setdefault(label, np.zeros(cells.size, bool))
            held |= cells.ravel()
        g, eta = (float(values[active].mean()) if active.any() else 0.0 for values in (codes.g, codes.eta))
        self._patterns.append(np.packbits(x))
        self._codes.append(codes.winners.astype(np.int16))
        self._rows.append({"item": item, "class": label, "g": g, "eta": eta, "new_weights": new, "weights": total})
        note = "stored" if active.any() else "stored with an empty code: no mac saw enough active inputs"
        self._log.append("write", [item], note, g=g, eta=eta, new_weights=new, frozen=int(self.frozen.sum()))
        return item, codes

    @property
    def frozen(self) -> np.ndarray:
        """Which macs have learnt their last, (M,) bool."""
        return ~self.macs.open_cells().max(1)

    def code(self, pattern: Any) -> Codes:
        """What every mac answers to a pattern when it only recognises."""
        return self.macs.code(self.checked(pattern), self._rng, learning=False)

    def read(self, cue: Any, k: int = 5) -> Recollection:
        x, k = self.checked(cue), whole("k", k, 0)
        codes = self.macs.code(x, self._rng, learning=False)
        found = self._recollect(codes, k)
        self._log.append("read", found.items[:1], found.note or "nearest code", g=found.familiarity)
        return found

    def _recollect(self, codes: Codes, k: int) -> Recollection:
        if not codes.active.any():
            return Recollection(codes.winners, 0.0, note="no mac saw enough active inputs: the code is empty")
        overlaps = self.overlaps(codes.winners)
        best = np.argsort(-overlaps, kind="stable")[:k]
        cells = self.macs.cells(codes.winners).ravel()
        scores = {label: float((held & cells).sum()) for label, held in self._class_weights.items()}
        g = float(codes.g[codes.active].mean())
        return Recollection(codes.winners, g, tuple(map(int, best)), tuple(map(float, overlaps[best])), scores)

    def overlaps(self, winners: np.ndarray) -> np.ndarray:
        """Code intersection of ``winners`` (M, Q) with every stored code: share of the cue's winners, (items,)."""
        if not self._codes:
            return np.zeros(0)
        on = winners >= 0
        return ((np.stack(self._codes) == winners) & on).sum((1, 2)) / max(int(on.sum()), 1)

    # ---- sequences ------------------------------------------------------------------------------------------------

    def write_sequence(self, frames: Sequence[Any], label: Any = None) -> list[int]:
        """Store frames in one pass, each linked to the one before; returns their item numbers."""
        self._need_time()
        checked = [self.checked(frame) for frame in frames]
        if len(checked) < 2:
            raise BadInput(f"a sequence has at least two frames, got {len(checked)}")
        label_of(label)
        items, before, over, above_before = [], None, None, None
        for x in checked:
            item, codes = self._store(x, label, before, over)
            items.append(item)
            above = self._above(codes.winners, above_before, learning=True)
            before, over, above_before = codes.winners, self._top_cells(above.winners), above.winners
        return items

    def recall_sequence(self, first: Any, length: int) -> list[Recollection]:
        """The frames that follow ``first``, by the links alone: the first is seen, the others come from H."""
        self._need_time()
        whole("length", length, 1)
        codes = self.macs.code(self.checked(first), self._rng, learning=False)
        out, winners = [self._recollect(codes, 5)], codes.winners
        for _ in range(length - 1):
            v = self.macs.recalled(winners)
            following = np.where((v.max(-1) > 0), v.argmax(-1), -1)
            codes = Codes(following, (following >= 0).max(1), v.max(-1).mean(-1), np.ones(len(v)), v, v)
            out.append(self._recollect(codes, 5))
            winners = following
        return out

    def follow(self, frames: Sequence[Any]) -> list[Recollection]:
        """Recognise frames one after another: U x H (x D) while G stays at ``BACK_OFF`` or above, U alone otherwise."""
        self._need_time()
        out: list[Recollection] = []
        before = over = above_before = None
        for frame in map(self.checked, frames):
            codes = self.macs.code(frame, self._rng, learning=False, before=before, over=over)
            if before is not None and codes.active.any() and codes.g[codes.active].mean() < BACK_OFF:
                codes = self.macs.code(frame, self._rng, learning=False)
            out.append(self._recollect(codes, 5))
            above = self._above(codes.winners, above_before, learning=False)
            before, over, above_before = codes.winners, self._top_cells(above.winners), above.winners
        return out

    def _above(self, winners: np.ndarray, before: np.ndarray | None, *, learning: bool) -> Codes:
        assert self.top is not None
        seen = self.macs.cells(winners).ravel()
        codes = self.top.code(seen, self._rng, learning=learning, before=before)
        if learning:
            self.top.learn(seen, codes, before)
        return codes

    def _top_cells(self, winners: np.ndarray) -> np.ndarray:
        assert self.top is not None
        return self.top.cells(winners).ravel()

    def _need_time(self) -> None:
        if self.top is None:
            raise BadInput("this memory stores single patterns; make it with temporal=True for sequences")

    # ---- looking --------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self._log.append("reset", [], "emptied")
        self._clear()

    def nbytes(self) -> int:
        return self.macs.nbytes() + (self.top.nbytes() if self.top is not None else 0)

    def mean_weight(self) -> np.ndarray:
        """Share of each mac's weights that are set, (M,)."""
        return self.macs.w.mean((1, 2))

    def codes(self) -> np.ndarray:
        """Codes of all stored items, (items, M, Q); -1 where a mac was not active."""
        shape = (0, len(self.macs), self.q)
        return np.stack(self._codes).astype(int) if self._codes else np.zeros(shape, int)

    def patterns(self) -> np.ndarray:
        """All stored patterns, (items, N) bool."""
        if not self._patterns:
            return np.zeros((0, self.n_inputs), bool)
        return np.unpackbits(np.stack(self._patterns), axis=1, count=self.n_inputs).astype(bool)

    def accuracy(self, items: Sequence[int] | None = None) -> np.ndarray:
        """Share of CMs that answer an item's pattern with its stored code now, one number per item."""
        held = range(len(self._rows))
        which = held if items is None else items
        if strange := [item for item in which if item not in held]:
            raise BadInput(f"item {strange[0]} is not held; there are {len(held)}, counted from 0")
        patterns, found = self.patterns(), []
        for item in which:
            stored = self._codes[item]
            on = stored >= 0
            again = self.macs.code(patterns[item], self._rng, learning=False).winners
            found.append(((again == stored) & on).sum() / max(int(on.sum()), 1))
        return np.array(found)

    def contents(self) -> pd.DataFrame:
        """One row per item: class, code, G and eta at storage, nearest other code, recall now, weights it set."""
        import pandas as pd

        before = self._rng.bit_generator.state  # looking must not change what is drawn for the next item
        try:
            recall = self.accuracy()
        finally:
            self._rng.bit_generator.state = before
        frame = pd.DataFrame(self._rows, columns=["item", "class", "g", "eta", "new_weights", "weights"])
        frame["shared_weights"] = 1.0 - frame["new_weights"] / frame["weights"].clip(lower=1)
        frame["best_overlap"] = nearest_other(self.codes(), self.k)
        frame["recall_now"] = recall
        frame["code"] = [code.astype(int).ravel().tolist() for code in self._codes]
        return frame.drop(columns="weights")


def _checked_shape(shape: Any) -> tuple[int, ...]:
    sides = (shape,) if np.ndim(shape) == 0 else tuple(shape)
    if len(sides) not in (1, 2):
        raise BadInput(f"shape is a length or (rows, columns), got {shape!r}")
    return tuple(whole("a side of shape", side, 1) for side in sides)


def _checked_pi(pi: Any) -> tuple[int, int | None]:
    if not isinstance(pi, (tuple, list)) or len(pi) != 2:
        raise BadInput(f"pi is (least, most) active inputs, most None for all, got {pi!r}")
    return whole("pi[0]", pi[0], 1), None if pi[1] is None else whole("pi[1]", pi[1], 1)
