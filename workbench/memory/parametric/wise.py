"""``wise``: edits in a copy of one MLP matrix, reached only when a prompt calls for them (Wang et al. 2024).

arXiv 2405.14768, NeurIPS 2024. The side memory W' begins as W_v. An edit moves a random share rho of its entries until
the target is said and the two outputs of the matrix lie apart on the edit's prompt and together on an unrelated one. A
prompt is answered by the side memory iff Delta = ||a (W' - W_v)|| exceeds eps, the least Delta of an edit, times
``act_ratio``. Shards (edits under one mask) are merged into one side memory, or into one of several (WISE-Retrieve).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.parametric._contexts import own_contexts
from workbench.memory.parametric._rows import Rows, encode, padded, target_ids
from workbench.memory.parametric._wise_checks import check
from workbench.memory.parametric._wise_merge import conflicts, merged, ties
from workbench.memory.parametric._wise_route import delta, margin_loss, nonlinearity
from workbench.memory.parametric.base import Edit, Learned, ParametricMemory, Served, main_only

__all__ = ["WISE", "Side", "conflicts", "margin_loss", "merged", "ties"]


@dataclass(frozen=True)
class Side:
    """One side memory: ``change`` = W' - W_v (d_out, d_in), its ``eps``, the numbers of the edits it holds."""

    change: Tensor
    eps: float = float("inf")
    edits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Margins:
    """alpha, beta, gamma and the clamp in the units of the model at hand."""

    alpha: float
    beta: float
    gamma: float
    clamp: float


@MEMORIES.register("wise")
class WISE(ParametricMemory):
    """Side memories of one MLP matrix, with routing, sharding and merging.

    Args:
        module, layer: the matrix W_v by its path, or the MLP's second matrix of a layer.
        alpha, beta, gamma: margins of Delta: at most alpha on unrelated text, at least beta on an edit's prompt, at
            least gamma between the two. act_ratio: share of the least Delta of an edit that is the threshold.
        lr, weight_decay, steps: of SGD on W'; it stops early at a loss <= .02 that changes by <= 1e-4.
        clamp: W' stays within W_v +- clamp, entry by entry.
        rho: share of entries that the edits of one shard may move. save_freq: edits of a shard. merge_freq: edits
            between mergings. A shard that waits for its merging is served like a side memory (the paper looks only
            after merging).
        merge: "ties", "linear" or "slerp". density: share of a shard's largest entries that Ties keeps.
        mode: "merge": one side memory, a later merging mixes ``mix`` of the new with the rest of the old; "retrieve":
            every merging makes a side memory with its own eps; the largest Delta above its threshold answers.
        routing: "linear", the paper's Delta; "activated", the released code's (through the MLP's nonlinearity).
        route_by: "prompt": decided once and kept while the answer is generated; "token": by every pass anew.
        units: "absolute", or "model": margins in median token norms of W_v a on the negatives, the clamp in standard
            deviations of W_v.
        contexts: beginnings written by the model itself before the prompt, beside the bare prompt.
        negatives: unrelated texts, used in turn by edits that bring none. seed: of masks and contexts.
    """

    slug = "wise"
    small = {"units": "model", "alpha": 0.25, "beta": 1.0, "gamma": 0.5, "clamp": 10.0, "lr": 0.3, "steps": 20,
             "contexts": 3, "save_freq": 12, "merge_freq": 96}  # fmt: skip

    def __init__(
        self, module: str = "", layer: int = -2, *, alpha: float = 5.0, beta: float = 20.0, gamma: float = 10.0,
        act_ratio: float = 0.88, lr: float = 1.0, weight_decay: float = 1e-5, steps: int = 70, clamp: float = 1.0,
        rho: float = 0.2, save_freq: int = 500, merge_freq: int = 1000, merge: str = "ties", density: float = 0.53,
        mode: str = "merge", mix: float = 0.4, routing: str = "linear", route_by: str = "prompt",
        units: str = "absolute", contexts: int = 10, negatives: Sequence[str] = (), seed: int = 0,
    ):  # fmt: skip
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check(given)
        super().__init__()
        self.module, self.layer, self.seed, self.contexts = module, layer, int(seed), int(contexts)
        self.alpha, self.beta, self.gamma, self.act_ratio, self.clamp = alpha, beta, gamma, act_ratio, clamp
        self.lr, self.weight_decay, self.steps, self.rho = lr, weight_decay, int(steps), rho
        self.save_freq, self.merge_freq, self.merge, self.density = int(save_freq), int(merge_freq), merge, density
        self.mode, self.mix, self.routing, self.route_by, self.units = mode, mix, routing, route_by, units
        self.negatives = list(negatives)
        self._beginnings: list[str] | None = None
        self._unit: float | None = None

    # -- state --------------------------------------------------------------------------------------------------------

    def _empty(self) -> None:
        zero = torch.zeros(self.place.weight.shape, dtype=torch.float32, device=self.place.weight.device)
        self.sides: list[Side] = []  # merged
        self.shards: list[Side] = []  # written, waiting to be merged
        self.current = Side(zero)
        self.drawn = 0  # masks drawn so far
        self._mask: tuple[int, Tensor] | None = None

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        named = self._named()
        tensors = {name: side.change for name, side in named.items()}
        told = {name: {"eps": side.eps, "edits": list(side.edits)} for name, side in named.items()}
        return tensors, {"sides": told, "drawn": self.drawn, "beginnings": self._beginnings, "unit": self._unit}

    def _restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        def made(kind: str) -> list[Side]:
            names = sorted((n for n in tensors if n.startswith(f"{kind} ")), key=lambda n: int(n.split()[1]))
            return [self._side(tensors[name], values["sides"][name]) for name in names]

        self.sides, self.shards = made("side"), made("shard")
        self.current = self._side(tensors["current"], values["sides"]["current"])
        self.drawn, self._beginnings, self._unit = values["drawn"], values["beginnings"], values["unit"]
        self._mask = None

    @staticmethod
    def _side(change: Tensor, told: Mapping[str, Any]) -> Side:
        return Side(change, float(told["eps"]), tuple(told["edits"]))

    def _named(self) -> dict[str, Side]:
        """Every side memory by its name, merged ones first, the one that is written to last."""
        _ = self.model
        made = {f"side {i}": side for i, side in enumerate(self.sides)}
        made |= {f"shard {i}": side for i, side in enumerate(self.shards)}
        return made | {"current": self.current}

    def served(self) -> list[Side]:
        """The side memories that can answer, in the order that routes count them."""
        return [side for side in self._named().values() if side.edits]

    def _sides(self) -> int:
        return len(self.served())

    def mask(self, shard: int | None = None) -> Tensor:
        """Which entries (d_out, d_in) the edits of a shard may move, bool; shards count from 0 over all mergings."""
        _ = self.model
        number = self.drawn if shard is None else shard
        if self._mask is None or self._mask[0] != number:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
            drawn = torch.rand(tuple(self.place.weight.shape), generator=generator) < self.rho
            self._mask = number, drawn.to(self.place.weight.device)
        return self._mask[1]

    def eps(self) -> list[float]:
        """Thresholds of ``served()``: the least Delta of an edit times ``act_ratio``."""
        return [side.eps * self.act_ratio for side in self.served()]

    def _where(self, number: int) -> str:
        return next((name for name, side in self._named().items() if number in side.edits), "")

    def _eps_of(self, where: str) -> float:
        named = self._named()
        return named[where].eps * self.act_ratio if where in named else float("nan")

    def merge_now(self) -> None:
        """Merge the shards, the one being written included, into a side memory."""
        _ = self.model
        self._close_shard()
        if self.shards:
            self._merge()

    # -- serving ------------------------------------------------------------------------------------------------------

    def _serve(self, inputs: Tensor, main: Tensor, span: Tensor, route: Tensor | None) -> Served:
        sides = self.served()
        if not sides:
            return main_only(main)
        outputs = [self._output(inputs, side.change) for side in sides]
        deltas = torch.stack([delta(output, main, span, self._act()) for output in outputs], -1)  # b sides
        chosen = self.route(deltas) if route is None or self._by_token(route) else route.clamp(max=len(sides) - 1)
        output = main.clone()
        for i, made in enumerate(outputs):
            output[chosen == i] = made[chosen == i]
        shown = torch.where(chosen >= 0, deltas.gather(1, chosen.clamp(min=0)[:, None])[:, 0], deltas.amax(1))
        return Served(output, chosen, shown)

    def _by_token(self, route: Tensor) -> bool:
        return self.route_by == "token" and self._forced is None

    def route(self, deltas: Tensor) -> Tensor:
        """Which side memory answers, from Deltas (B, sides): the largest of those above their threshold, else -1."""
        above = deltas > torch.tensor(self.eps(), device=deltas.device)
        best = deltas.masked_fill(~above, -1.0).argmax(1)
        return torch.where(above.any(1), best, torch.full_like(best, -1))

    def _output(self, inputs: Tensor, change: Tensor) -> Tensor:
        return self.place.output(inputs, self.place.weight.to(change.dtype) + change)

    def _act(self) -> Callable[[Tensor], Tensor] | None:
        return None if self.routing == "linear" else nonlinearity(self.model, self.place.path)

    # -- learning -----------------------------------------------------------------------------------------------------

    def _check(self, edit: Edit) -> None:
        super()._check(edit)
        if not edit.negative.strip() and not self.negatives:
            raise BadInput(
                "WISE learns where an edit does not belong from an unrelated prompt, and none is at hand: give "
                "negative='some other text', or WISE(negatives=[...]) for all edits"
            )

    def _learn(self, edit: Edit) -> Learned:
        rows, other = self._batch(edit)
        margins, mask = self._margins(edit), self.mask()
        change, losses = self.current.change, list[float]()
        for _ in range(self.steps):
            loss, gradient = self._gradient(rows, other, margins, change)
            losses.append(loss)
            if self._settled(losses):
                break
            moved = change - self.lr * (gradient + self.weight_decay * (self.place.weight + change)) * mask
            change = moved.clamp(-margins.clamp, margins.clamp)
        far = float(self._delta_of(rows, change)[~other].mean())
        self._put(change, far)
        return Learned(len(losses), tuple(losses), far, float(change.norm()), "current")

    def _put(self, change: Tensor, far: float) -> None:
        held = self.current
        self.current = Side(change, min(held.eps, far), (*held.edits, len(self._edits)))
        if self.mode == "merge":  # one threshold for all: the least Delta of any edit
            least = min(side.eps for side in self._named().values())
            self.sides = [Side(side.change, least, side.edits) for side in self.sides]
            self.shards = [Side(side.change, least, side.edits) for side in self.shards]
            self.current = Side(self.current.change, least, self.current.edits)

    @staticmethod
    def _settled(losses: Sequence[float]) -> bool:
        return len(losses) > 1 and losses[-1] <= 0.02 and abs(losses[-1] - losses[-2]) <= 1e-4

    def _gradient(self, rows: Rows, other: Tensor, margins: Margins, change: Tensor) -> tuple[float, Tensor]:
        """Loss and its gradient in W' where it stands."""
        leaf = change.detach().requires_grad_()
        output = self._output(rows.prefix.inputs, leaf)
        cross = functional.cross_entropy(rows.prefix.logits(output).float(), rows.gold)
        apart = delta(output, rows.prefix.main, rows.span, self._act())
        loss = cross + margin_loss(apart[~other], apart[other], margins.alpha, margins.beta, margins.gamma)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), gradient

    def _delta_of(self, rows: Rows, change: Tensor) -> Tensor:
        with torch.no_grad():
            return delta(self._output(rows.prefix.inputs, change), rows.prefix.main, rows.span, self._act())

    def _batch(self, edit: Edit) -> tuple[Rows, Tensor]:
        """The fact behind every beginning and alone, then the unrelated prompt; and which rows are unrelated (B,)."""
        prompts = [edit.prompt, *(f"{text}. {edit.prompt}" for text in self.beginnings())]
        target = target_ids(self.tokenizer, edit.target)
        ids = [encode(self.tokenizer, prompt) for prompt in prompts] + [encode(self.tokenizer, self._negative(edit))]
        rows = self._run(padded(ids, [target] * len(prompts) + [[]], self.place.weight.device))
        other = torch.arange(len(ids), device=rows.ids.device) == len(prompts)
        return rows, other

    def _negative(self, edit: Edit) -> str:
        return edit.negative or str(self.negatives[len(self._edits) % len(self.negatives)])

    def beginnings(self) -> list[str]:
        """The contexts, written by the model when they are first needed."""
        if self._beginnings is None:
            with self.silent():
                self._beginnings = own_contexts(self.model, self.tokenizer, self.contexts, self.seed)
        return self._beginnings

    def _margins(self, edit: Edit) -> Margins:
        if self.units == "absolute":
            return Margins(self.alpha, self.beta, self.gamma, self.clamp)
        unit, spread = self.unit(edit), float(self.place.weight.float().std())
        return Margins(self.alpha * unit, self.beta * unit, self.gamma * unit, self.clamp * spread)

    def unit(self, edit: Edit | None = None) -> float:
        """Median token norm of W_v a on the negatives; measured once."""
        if self._unit is None:
            texts = list(self.negatives) or [self._negative(edit) if edit else ""]
            rows = self._texts(texts)
            self._unit = float(rows.prefix.main.float().norm(dim=-1)[rows.span].median())
        return self._unit

    # -- shards -------------------------------------------------------------------------------------------------------

    def _after_write(self) -> None:
        if len(self._edits) % self.save_freq == 0:
            self._close_shard()
        if len(self._edits) % self.merge_freq == 0:
            self.merge_now()

    def _close_shard(self) -> None:
        if not self.current.edits:
            return
        self.shards = [*self.shards, self.current]
        eps = self.current.eps if self.mode == "merge" else float("inf")
        self.current = Side(torch.zeros_like(self.current.change), eps)
        self.drawn += 1
        self._log.append(
            "update", self.shards[-1].edits, f"shard {self.drawn - 1} is full; a new mask", mask=self.drawn
        )

    def _merge(self) -> None:
        new = Side(
            merged(self.merge, [shard.change for shard in self.shards], self.density),
            min(shard.eps for shard in self.shards),
            tuple(number for shard in self.shards for number in shard.edits),
        )
        if self.mode == "merge" and self.sides:
            old = self.sides[0]
            mixed = self.mix * new.change + (1 - self.mix) * old.change
            new = Side(mixed, min(new.eps, old.eps), (*old.edits, *new.edits))
            self.sides = []
        self.sides, count = [*self.sides, new], len(self.shards)
        self.shards = []
        why = f"{count} shards merged by {self.merge} into side memory {len(self.sides) - 1}"
        self._log.append("merge", new.edits, why, into=list(new.edits))
