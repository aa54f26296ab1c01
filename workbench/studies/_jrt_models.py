"""The tiny models of Just read twice and how they are trained: set disjointness in three modes, notes in two.

Every model alternates BaseConv and one kind of linear attention, twice, without an MLP; the embedding is tied to the
output. Modes differ in the attention alone (and the centred window of the non-causal one), so equal sizes have equal
states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from workbench.studies.base import Progress

MODES = ("causal", "prefix", "non-causal")
#: Language models on notes: mode -> name in the bundle.
NOTES = {"causal": "notes-causal", "prefix": "notes-prefix"}
HEADS, BLOCKS = 2, 2


def variant(mode: str, dim: int, key_dim: int) -> str:
    return f"sets-{mode}-{dim}x{key_dim}"


def build(mode: str, dim: int, key_dim: int, vocabulary: int, seed: int = 0) -> nn.Module:
    """A model of ``BLOCKS`` pairs; the caller has seeded torch."""
    from workbench.models.mixer import MixerConfig, MixerLM

    attention = {"mixer": "just-read-twice", "heads": HEADS, "key_dim": key_dim, "mode": mode}
    pair = [{"mixer": "base-conv", "causal": mode != "non-causal"}, attention]
    config = MixerConfig(vocab_size=vocabulary, dim=dim, mixers=pair * BLOCKS, mlp_ratio=0, tie=True)
    model = MixerLM(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=dim**-0.5)
    return model


def state_bytes(dim: int, key_dim: int) -> int:
    """Of all attention layers of one model: layers x heads x D x (d_head + 1) x 4 bytes."""
    return BLOCKS * HEADS * (1 + key_dim + key_dim**2) * (dim // HEADS + 1) * 4


# ---- data ---------------------------------------------------------------------------------------------------------


def masked(streams: Any) -> Any:
    """A pool whose padding (0 is no word of either language) the model leaves out."""
    from workbench.training.tiny import Pool

    return Pool(streams.ids, streams.targets, {"attention_mask": streams.ids > 0})


def sets_stages(settings: Mapping[str, Any]) -> Callable[[int], Any]:
    """Short sequences first: the search is learned sooner, and a short step costs a fraction.

    Every stage has pairs of sizes of one length in all, so that nothing is padded. ``stage_steps`` are the planned
    steps at which the later stages begin.
    """
    from workbench.training.tiny import as_pool
    from workbench_datasets.set_disjointness import sizes_pool

    each, given = settings["sequences"], {"vocabulary": settings["vocabulary"], "seed": settings["data_seed"]}
    made = [as_pool(sizes_pool(sizes, each, **given)) for sizes in settings["stages"]]
    return lambda step: made[sum(step >= begin for begin in settings["stage_steps"])]


def notes_stages(settings: Mapping[str, Any]) -> Callable[[int], Any]:
    """Notes read once first, then half of them read twice; the names are those of training."""
    from workbench_datasets.notes import notes, notes_pool
    from workbench_datasets.streams import join

    count, facts = settings["notes"], settings["facts"]
    made = notes(count, facts, split="context", seed=settings["data_seed"])
    once, twice = notes_pool(made[: count // 2]), notes_pool(made[count // 2 :], 2)
    pools = [masked(once), masked(join([once, twice], side="left"))]
    return lambda step: pools[step >= settings["notes_short_steps"]]


# ---- training -----------------------------------------------------------------------------------------------------


def seeds_of(settings: Mapping[str, Any], seed: int) -> list[int]:
    """Training seeds of a study seed: no two study seeds share one."""
    return [1_000 * seed + own for own in settings["train_seeds"]]


@dataclass(frozen=True)
class Made:
    """The models of one variant, one a seed; ``losses``: seed, step, loss; ``record``: what fixed the training."""

    name: str
    mode: str
    models: list[Any]
    losses: Any
    record: dict[str, Any]
    complete: bool = True


def train_sets(
    settings: Mapping[str, Any], device: str, progress: Progress, left: Callable[[], float] = lambda: math.inf
) -> Iterator[Made]:
    """Every mode at every state size, all with the same number of steps.

    The rule, set before any run: the dearest variant (prefix, largest) is timed for ``timed_steps`` steps at the full
    length, seeds stacked and in turn; the number of steps is what the faster way fits into its share of ``train_s``,
    one in ``timed_for``, at most ``steps``.
    ``left()`` seconds are left for all; a variant that they cut is told apart by ``Made.complete``, one without any is
    not begun.
    """
    stage, largest = sets_stages(settings), max((dim, key_dim) for dim, key_dim in settings["states"])
    cells = [(mode, dim, key_dim) for dim, key_dim in settings["states"] for mode in MODES]
    words = settings["vocabulary"]
    builds = {(mode, dim, key_dim): _builder(mode, dim, key_dim, words) for mode, dim, key_dim in cells}
    steps, stack = _fitting(settings, stage, builds["prefix", *largest], device)
    for mode, dim, key_dim in cells:
        if left() > 0:
            make = partial(_train, settings, stage, "steps", stack=stack, device=device, progress=progress, left=left)
            yield make(builds[mode, dim, key_dim], steps, variant(mode, dim, key_dim), mode)


def train_notes(
    settings: Mapping[str, Any], device: str, progress: Progress, left: Callable[[], float] = lambda: math.inf
) -> Iterator[Made]:
    """Based and JRT-RNN on the same notes, the same steps."""
    from workbench_datasets.notes import vocabulary

    own = {**settings, "lr": settings["notes_lr"], "batch": settings["notes_batch"]}
    make = partial(_train, own, notes_stages(own), "notes_steps", device=device, progress=progress, left=left)
    dim, key_dim = settings["notes_state"]
    for mode, name in NOTES.items():
        yield make(_builder(mode, dim, key_dim, len(vocabulary())), settings["notes_steps"], name, mode)


def _builder(mode: str, dim: int, key_dim: int, vocabulary: int) -> Callable[[int], nn.Module]:
    return partial(build, mode, dim, key_dim, vocabulary)


def last_word_loss(run: Callable[..., Any], batch: dict[str, Any]) -> tuple[Any, Any]:
    """Cross-entropy (nats) of what follows the last token, and the share that was the likeliest word."""
    from torch.nn.functional import cross_entropy

    inputs = {name: value for name, value in batch.items() if name != "targets"}
    logits, targets = run(**inputs, logits_to_keep=1).logits[:, 0], batch["targets"][:, -1]
    return cross_entropy(logits, targets), (logits.argmax(-1) == targets).double().mean()


def _recipe(settings: Mapping[str, Any], steps: int) -> Any:
    from workbench.training.tiny import Recipe

    warmup = min(settings["warmup"], steps // 10)
    return Recipe(steps=steps, batch=settings["batch"], lr=settings["lr"], warmup=warmup, next_token=0.0,
                  data_seed=settings["data_seed"])  # fmt: skip


def _train(
    settings: Mapping[str, Any],
    stage: Callable[[int], Any],
    planned: str,
    builder: Callable[[int], nn.Module],
    steps: int,
    name: str,
    mode: str,
    *,
    stack: bool | None = None,
    device: str,
    progress: Callable[..., Iterable[int]],
    left: Callable[[], float] = lambda: math.inf,
) -> Made:
    """``stage`` speaks of the planned number of steps; with fewer, its changes come earlier in proportion."""
    from workbench.training.tiny import train

    def at(step: int) -> Any:
        return stage(step * settings[planned] // steps)

    seconds = left()
    words: dict[str, Any] = {"device": device, "label": name, "progress": progress, "loss": last_word_loss}
    words |= {"stack": stack, "budget_seconds": seconds if math.isfinite(seconds) else None}
    done = train(builder, at, _recipe(settings, steps), settings["train_seeds"], **words)
    return Made(name, mode, done.models, done.losses, {**done.record, "how": done.how}, done.complete)


def _fitting(
    settings: Mapping[str, Any], stage: Callable[[int], Any], builder: Callable[[int], nn.Module], device: str
) -> tuple[int, bool | None]:
    """(steps, whether to stack the seeds)."""
    from workbench.training.tiny import faster_way

    if not settings["train_s"]:
        return settings["steps"], None
    last, timed = stage(settings["steps"] - 1), settings["timed_steps"]
    recipe = _recipe(settings, max(timed, 2))
    words: dict[str, Any] = {"device": device, "loss": last_word_loss, "steps": timed}
    stack, a_step = faster_way(builder, last, recipe, settings["train_seeds"], **words)
    fit = int(settings["train_s"] / settings["timed_for"] / a_step)
    return max(timed, min(settings["steps"], fit)), stack


def first_of_each(made: Sequence[Made]) -> dict[str, Any]:
    """The first seed's model of every variant: what ships."""
    return {one.name: one.models[0] for one in made}
