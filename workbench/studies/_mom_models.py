"""The tiny models of the MoM study, their data (MQAR) and how they are trained.

Two blocks without an MLP, d = 64, two heads of 8 x 8, so that the state and not the width is what runs out. A single
memory is MoM with one memory and no shared one: the plain layer with the same initial weights (tests hold that). Equal
state means: *activated* floats a head, key_dim x value_dim of the memories that one token writes (single 64, MoM with
k = 2 and the shared one 192, expanded 8 x 24 = 192), or *total* floats (MoM 5 x 64 = 320; one of 18 x 18 = 324).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from torch import nn

_ONE = {"memories": 1, "top_k": 1, "shared": False, "aux_scale": 0.0}
_GDN, _GLA = {"rule": "gated-delta-net"}, {"rule": "gla"}

#: name -> settings of the layer, in the order of training: what the first claims need comes first.
VARIANTS: dict[str, dict[str, Any]] = {
    "GDN single": {**_GDN, **_ONE},
    "GDN MoM": _GDN,
    "GLA single": {**_GLA, **_ONE},
    "GLA MoM": _GLA,
    "GDN expanded": {**_GDN, **_ONE, "value_dim": 24},
    "GLA expanded": {**_GLA, **_ONE, "value_dim": 24},
    "GDN MoM, not shared": {**_GDN, "shared": False},
    "GDN MoM, no balance loss": {**_GDN, "aux_scale": 0.0},
    "GDN MoM, N=2": {**_GDN, "memories": 2, "top_k": 1},
    "GDN MoM, N=8": {**_GDN, "memories": 8, "top_k": 4},
    "GDN total": {**_GDN, **_ONE, "key_dim": 18, "value_dim": 18},
}
HEADS, BLOCKS, SIZE = 2, 2, 8
#: The language models (``_corpus_lm``): one memory, the mixture, one memory as wide as what the mixture activates.
LANGUAGE: dict[str, tuple[dict[str, Any], int]] = {
    "GDN single": ({**_GDN, **_ONE}, 1),
    "GDN MoM": (_GDN, 1),
    "GDN expanded": ({**_GDN, **_ONE}, 3),
}


class Plan(NamedTuple):
    """How all variants are trained: the steps, and whether seeds are stacked (None: as the machine has it)."""

    steps: int
    stack: bool | None = None


def build(variant: str, settings: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A new model of one variant; the caller has seeded torch."""
    from workbench.models.mixer import MixerConfig, MixerLM

    mixer = {"mixer": "mom", "heads": HEADS, "key_dim": SIZE, "value_dim": SIZE, "conv_scope": settings["conv_scope"]}
    mixer |= {"chunk": settings["chunk"], "impl": settings["impl"], **VARIANTS[variant]}
    model = MixerLM(MixerConfig(settings["vocabulary"], settings["dim"], [mixer] * BLOCKS, mlp_ratio=0))
    nn.init.normal_(model.get_input_embeddings().weight, std=settings["dim"] ** -0.5)
    return model


def language_models(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The mixers of the language models; keys and values are dim / heads wide, values of the expanded 3 times that."""
    shared = {"mixer": "mom", **{name: settings[name] for name in ("conv_scope", "chunk", "impl")}}
    size = settings["dim"] // settings["heads"]
    return {
        name: {**shared, "key_dim": size, "value_dim": wide * size, **own} for name, (own, wide) in LANGUAGE.items()
    }


def state_floats(model: Any) -> tuple[int, int]:
    """(activated, total) floats of the matrices of all layers and heads: what a token writes, what is held."""
    active = total = 0
    for block in model.blocks:
        layer = block.mixer
        one = layer.heads * layer.key_dim * layer.value_dim
        active, total = active + one * (layer.top_k + layer.shared), total + one * layer.groups
    return active, total


# ---- data ---------------------------------------------------------------------------------------------------------


def stages(settings: Mapping[str, Any], steps: int) -> Callable[[int], Any]:
    """Pools by step: (share of the steps, length, numbers of pairs) a stage, short sequences of few pairs first."""
    from workbench.training.tiny import stage_of_step

    place = stage_of_step([share for share, _, _ in settings["stages"]], steps)

    def stage(step: int) -> Any:
        _, length, pairs = settings["stages"][place(step)]
        return _pool(tuple(pairs), settings["sequences"], length, settings["vocabulary"], settings["data_seed"])

    return stage


@lru_cache(maxsize=8)
def _pool(pairs: tuple[int, ...], sequences: int, length: int, vocabulary: int, seed: int) -> Any:
    """As many sequences of each number of pairs; made once for all variants."""
    from workbench.training.tiny import as_pool
    from workbench_datasets.mqar import mqar
    from workbench_datasets.streams import join

    counts = [sequences // len(pairs) + (i < sequences % len(pairs)) for i in range(len(pairs))]
    given: Any = {"length": length, "vocabulary": vocabulary, "seed": seed}
    return as_pool(join([mqar(n, pairs=size, **given) for n, size in zip(counts, pairs)]))


def probe(settings: Mapping[str, Any], pairs: int, length: int, seed: int) -> Any:
    """Fresh sequences; no training sequence is among them."""
    from workbench_datasets.mqar import mqar

    given: Any = {"length": length, "vocabulary": settings["vocabulary"]}
    return mqar(settings["test_sequences"], pairs=pairs, seed=seed, split="test", **given)


# ---- training -----------------------------------------------------------------------------------------------------


def recipe(settings: Mapping[str, Any], steps: int) -> Any:
    from workbench.training.tiny import Recipe

    return Recipe(
        steps=steps, batch=settings["batch"], lr=settings["lr"], warmup=min(settings["warmup"], max(1, steps // 10)),
        weight_decay=0.0, next_token=0.0, data_seed=settings["data_seed"], log_every=50,
    )  # fmt: skip


def trained(
    variant: str, settings: Mapping[str, Any], plan: Plan, seeds: Sequence[int], device: str, **options: Any
) -> Any:
    """``workbench.training.tiny.Trained``: one model a seed."""
    from workbench.training.tiny import train

    make, made = partial(build, variant, settings), stages(settings, plan.steps)
    return train(make, made, recipe(settings, plan.steps), seeds, device=device, stack=plan.stack, **options)


def planned(settings: Mapping[str, Any], seeds: Sequence[int], device: str) -> Plan:
    """Steps that fit into ``train_seconds``, the same for every variant, at most ``steps``, in fifties.

    Never fewer than ``least_steps``: models that were hardly trained say nothing, so the last variants are left out
    instead when the time is up.

    The rule, set before any run: a step of the mixture at the last stage is timed with the seeds stacked and in turn,
    and the better way is taken for all; a step of one memory is timed in that way. Single memories are taken to cost
    what that one costs, mixtures what the mixture costs, those of more memories in proportion.
    """
    from workbench.training.tiny import fitted, seconds_a_step

    pool, wanted = stages({**settings, "sequences": 512}, 1)(1), recipe(settings, settings["steps"])

    def cost(name: str, stack: bool | None) -> float:
        made = partial(build, name, settings)
        return seconds_a_step(made, pool, wanted, seeds, device=device, stack=stack, steps=10)

    ways: dict[bool | None, float] = {stack: cost("GDN MoM", stack) for stack in (None, False)}
    stack = min(ways, key=lambda way: ways[way])
    one = cost("GDN single", stack)
    total = sum(_relative(extra) * (ways[stack] if _groups(extra) > 1 else one) for extra in VARIANTS.values())
    steps = fitted(wanted, total, settings["train_seconds"], least=1).steps // 50 * 50
    return Plan(max(steps, settings["least_steps"]), stack)


def _groups(extra: Mapping[str, Any]) -> int:
    return int(extra.get("memories", 4)) + int(extra.get("shared", True))


def _relative(extra: Mapping[str, Any]) -> float:
    """Cost beside the mixture of four, or beside one memory."""
    return max(1.0, _groups(extra) / 5)
