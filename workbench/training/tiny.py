"""Training of tiny models on generated sequences: several seeds at once, and on a GPU each step as one CUDA graph.

Such models are bound by launches, not by arithmetic: a step is hundreds of kernels of a few microseconds. So the seeds
of a variant are stacked along a leading axis of their parameters (``torch.func.vmap``), and the whole step - drawing
the batch, forward, backward, clipping, AdamW - is recorded once and replayed. On a CPU the seeds take turns.

A stack of seeds is no module that ``accelerate`` could prepare, so this is torch alone; a single ``MixerLM`` trains
under accelerate or a Trainer as any other model does.

Everything a step needs follows from its number: the batch by a counter-based hash of (data seed, seed, step), the
learning rate by a table. A run that was killed goes on from its checkpoint as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.checks import number, whole
from workbench.errors import BadInput
from workbench.training._tiny_bundle import (
    bundle_path,
    bundle_record,
    bundle_target,
    load_bundle,
    save_bundle,
    ship,
    shipped,
)
from workbench.training._tiny_checks import device_of, id_table, whole_seeds
from workbench.training._tiny_stages import stage_of_step

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "IGNORE",
    "Pool",
    "Recipe",
    "Trained",
    "answer_loss",
    "as_pool",
    "bundle_path",
    "bundle_record",
    "bundle_target",
    "faster_way",
    "fitted",
    "load_bundle",
    "save_bundle",
    "seconds_a_step",
    "ship",
    "shipped",
    "stage_of_step",
    "train",
]

IGNORE = -100
SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class Recipe:
    """Optimiser and schedule; ``steps`` fixes the schedule, so a run that goes on follows the same curve.

    ``batch`` sequences a step and seed; ``lr`` the peak after ``warmup`` steps, falling to ``final_share`` of it;
    ``weight_decay`` on matrices only (no norms, biases, nor parameters marked ``_no_weight_decay``); ``clip`` the
    largest gradient norm of one seed; ``next_token`` the weight of the next-token loss where nothing is asked;
    ``data_seed`` orders the data.
    """

    steps: int
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    schedule: str = "cosine"
    final_share: float = 0.05
    next_token: float = 0.1
    data_seed: int = 0
    checkpoint_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every", "log_every"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        for name in ("warmup", "data_seed"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 0))
        for name in ("lr", "clip"):
            object.__setattr__(self, name, number(name, getattr(self, name), above=0))
        for name, most in (("weight_decay", None), ("next_token", None), ("final_share", 1)):
            object.__setattr__(self, name, number(name, getattr(self, name), 0, most))
        pair = isinstance(self.betas, Sequence) and len(self.betas) == 2
        if not pair or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas):
            raise BadInput(f"betas={self.betas!r}: expected two numbers from 0 to below 1")
        if self.schedule not in SCHEDULES:
            raise BadInput(f"schedule={self.schedule!r}: expected one of {', '.join(SCHEDULES)}")
        if self.warmup >= self.steps:
            raise BadInput(f"warmup={self.warmup} of {self.steps} steps: the peak would never be reached; lower warmup")

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, .."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[self.schedule]
        return self.lr * (self.final_share + (1 - self.final_share) * shape)


@dataclass(frozen=True)
class Pool:
    """N sequences to draw batches from: ``ids`` and ``targets`` (N, T), the token to predict *at* a position or -100.

    ``extras``: further arguments of the model's forward, (N, ..) each, drawn with their sequences (an
    ``attention_mask``, say).
    """

    ids: Any
    targets: Any
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids, targets = id_table("ids", self.ids), id_table("targets", self.targets)
        if ids.shape != targets.shape:
            raise BadInput(f"targets are {tuple(targets.shape)} but ids are {tuple(ids.shape)}: one target a token")
        if int(ids.min()) < 0:
            raise BadInput(f"ids hold {int(ids.min())}: expected token ids from 0 on")
        if not bool(((targets == IGNORE) | (targets >= 0)).all()):
            raise BadInput(f"targets must be token ids, or {IGNORE} where nothing is asked")
        extras = {name: torch.as_tensor(value) for name, value in self.extras.items()}
        for name, value in extras.items():
            if value.dim() == 0 or len(value) != len(ids):
                raise BadInput(f"extras[{name!r}] is {tuple(value.shape)}: expected {len(ids)} rows, as the pool has")
        for name, value in (("ids", ids), ("targets", targets), ("extras", extras)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def digest(self) -> str:
        """Hash of ids, targets and extras: a checkpoint goes on with the data that it began with."""
        held = hashlib.sha256()
        for table in (self.ids, self.targets):
            held.update(table.to(torch.int32).cpu().contiguous().numpy().tobytes())
        for name, value in sorted(self.extras.items()):
            held.update(f"{name} {value.dtype}".encode())
            held.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return held.hexdigest()[:16]


def as_pool(made: Any) -> Pool:
    """A pool of anything with ``ids`` and ``targets``: a ``Pool``, or what a generator of the datasets gives.

    Sequences of several ``lengths`` bring an ``attention_mask``, as they do where they are scored (``tasks.recall``).
    """
    if isinstance(made, Pool):
        return made
    if not (hasattr(made, "ids") and hasattr(made, "targets")):
        raise BadInput(f"a pool has ids and targets (N, T), got {type(made).__name__}")
    padded = hasattr(made, "lengths") and int(np.min(made.lengths)) < np.shape(made.ids)[1]
    return Pool(made.ids, made.targets, {"attention_mask": np.asarray(made.ids) != 0} if padded else {})


@dataclass
class Trained:
    """What a training gave.

    ``models``: one a seed, in eval mode, on the device they were trained on. ``losses``: seed, step (from 1), loss
    (nats), right (share of targets that were the likeliest token), lr. ``complete``: the schedule was finished. ``how``
    it ran: "stacked, graph" and the like, with the reason where it is not the fastest way. ``record``: recipe, seeds,
    sizes, seconds, as plain values.
    """

    models: list[Any]
    losses: pd.DataFrame
    complete: bool
    how: str
    record: dict[str, Any]


Loss = Callable[[Callable[..., Any], dict[str, Tensor]], Any]


def answer_loss(next_token: float = 0.1) -> Loss:
    """Cross-entropy (nats) at the asked positions, plus ``next_token`` times that of the next token at the others.

    Padding (id 0) is never predicted. The second value is the share of answers that were the likeliest token. A loss
    that the model adds of its own (``aux_loss`` of its output) is added.
    """

    def loss(run: Callable[..., Any], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = {name: value for name, value in batch.items() if name != "targets"}
        out = run(**inputs)
        logits, targets, ids = out.logits, batch["targets"], batch["input_ids"]
        asked = targets >= 0
        following = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], 1)
        other = ~asked & (following != 0)
        wanted = torch.where(asked, targets, following)
        nll = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
        total = _mean(nll, asked)
        if next_token:
            total = total + next_token * _mean(nll, other)
        if getattr(out, "aux_loss", None) is not None:
            total = total + out.aux_loss
        chosen = logits.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        right = ((chosen >= logits.amax(-1)) & asked).sum() / asked.sum().clamp_min(1)
        return total, right

    return loss


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen positions; 0 where there is none."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)


def train(
    build: Callable[[int], nn.Module],
    pool: Any,
    recipe: Recipe,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    device: str = "auto",
    stack: bool | None = None,
    graph: bool | None = None,
    loss: Loss | None = None,
    progress: Callable[..., Iterable[int]] | None = None,
    label: str = "train",
    checkpoint: str | Path | None = None,
    budget_seconds: float | None = None,
    diverged: str = "raise",
) -> Trained:
    """Train one model a seed.

    Args:
        build: makes the model of a seed; torch's generator is seeded with the seed before the call.
        pool: a :class:`Pool` (or anything with ``ids`` and ``targets``), or a function of the step that gives one: a
            curriculum. A pool that is the same object as the step before costs nothing.
        stack: one ``torch.func.vmap`` over the seeds; None: on a GPU where the model allows it. False: in turn.
        graph: replay the step as a CUDA graph; None: on a GPU where the model allows it.
        loss: ``loss(run, batch)`` gives a scalar, or (scalar, share of right answers); ``run(**inputs)`` is the model
            of one seed, ``batch`` holds ``input_ids``, ``targets`` (B, T) and the extras. Default: ``answer_loss``.
        progress: ``progress(steps, label)`` iterates over steps (``studies.base.Progress`` is one); None is silent.
        checkpoint: a safetensors file, written every ``recipe.checkpoint_every`` steps and at the end, atomically. If
            it is there, the run goes on from it: on a CPU as if it had never stopped, to the bit. One of another run
            (recipe, seeds, model, first or latest data) is refused; a ``loss`` of your own cannot be compared.
        budget_seconds: stop (with a checkpoint) when they are used up; ``complete`` is then False.
        diverged: "raise" a ModelError when a loss or a weight is not finite (seen every ``log_every`` steps and before
            a checkpoint), or "keep" going: the other seeds are not touched.

    Raises:
        BadInput: arguments that do not fit; nothing was trained. ModelError: a checkpoint of another run; a loss that
        is not finite.
    """
    from workbench.training._tiny_run import TinyRun

    seeds = whole_seeds(seeds)
    if diverged not in ("raise", "keep"):
        raise BadInput(f"diverged={diverged!r}: expected raise or keep")
    if budget_seconds is not None and not budget_seconds > 0:
        raise BadInput(f"budget_seconds={budget_seconds!r}: expected seconds above 0, or None")
    run = TinyRun(build, pool, recipe, seeds, device_of(device), loss, stack, graph)
    if checkpoint is not None:
        run.resume(Path(checkpoint))
    bar = progress or (lambda steps, label: steps)
    begun = time.monotonic()
    with _full_precision(), torch.random.fork_rng(devices=[]):  # on a CPU every step seeds torch's generator
        for step in bar(range(run.step, recipe.steps), label):
            run.advance()
            saving = checkpoint is not None and (step + 1) % recipe.checkpoint_every == 0
            if diverged == "raise" and (saving or (step + 1) % recipe.log_every == 0):
                run.check_finite()
            if checkpoint is not None and saving:
                run.save(Path(checkpoint))
            if budget_seconds is not None and run.seconds_since(begun) > budget_seconds:
                break
    if diverged == "raise":
        run.check_finite()
    if checkpoint is not None:
        run.save(Path(checkpoint))
    return run.finish(time.monotonic() - begun)


def seconds_a_step(
    build: Callable[[int], nn.Module],
    pool: Any,
    recipe: Recipe,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    device: str = "auto",
    stack: bool | None = None,
    graph: bool | None = None,
    loss: Loss | None = None,
    steps: int = 20,
) -> float:
    """Median seconds of a step, measured on models that are thrown away; what is done once is not counted."""
    from workbench.training._tiny_run import TinyRun

    enough = replace(recipe, steps=whole("steps", steps, 1) + 10 + recipe.warmup + TinyRun.before)
    run = TinyRun(build, pool, enough, whole_seeds(seeds), device_of(device), loss, stack, graph)
    with _full_precision(), torch.random.fork_rng(devices=[]):
        for _ in range(TinyRun.before):
            run.advance()
        return run.median_seconds(steps)


def faster_way(
    build: Callable[[int], nn.Module],
    pool: Any,
    recipe: Recipe,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    device: str = "auto",
    **settings: Any,
) -> tuple[bool, float]:
    """(stack, seconds a step): whether stacked seeds or seeds in turn are faster here, both timed; on a CPU in turn.

    Large steps gain nothing from a stack. What is tried are ``seconds_a_step``'s ``settings``.
    """
    timed = {}
    for stack in (True, False) if device_of(device).type == "cuda" and len(seeds) > 1 else (False,):
        timed[stack] = seconds_a_step(build, pool, recipe, seeds, device=device, stack=stack, **settings)
    best = min(timed, key=lambda stack: timed[stack])
    return best, timed[best]


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32: memories are sums over a stream, which its ten bits spoil."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def fitted(recipe: Recipe, seconds_a_step: float, budget_seconds: float, *, least: int = 100) -> Recipe:
    """The recipe with as many of its steps as fit into a budget; the warm-up keeps its share.

    Raises:
        BadInput: not even ``least`` steps fit; the message says what would.
    """
    number("seconds_a_step", seconds_a_step, above=0)
    steps = min(recipe.steps, int(budget_seconds / seconds_a_step))
    if steps < min(least, recipe.steps):
        raise BadInput(
            f"{budget_seconds:g} s hold {steps} steps of {seconds_a_step:.3g} s: at least {least} are asked for; allow "
            f"{least * seconds_a_step:.3g} s, or make the model smaller"
        )
    return replace(recipe, steps=steps, warmup=min(recipe.warmup, recipe.warmup * steps // recipe.steps))


def record_of(recipe: Recipe, seeds: Sequence[int], pool: Pool, parameters: int) -> dict[str, Any]:
    """What fixed a run, as plain values."""
    from workbench.provenance import code_version

    settings = {**asdict(recipe), "betas": list(recipe.betas)}
    return {"recipe": settings, "seeds": list(seeds), "sequences": len(pool), "tokens": int(pool.ids.shape[1]),
            "parameters": parameters, "code": code_version()}  # fmt: skip
