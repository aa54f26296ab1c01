"""The tiny models of the MoM study, their data (MQAR) and how they are trained.

Two blocks without an MLP, d = 128, two heads of 16 x 16, so that the state and not the width is what runs out. A single
memory is MoM with one memory and no shared one: the plain layer with the same initial weights (tests hold that). Equal
state means: *activated* floats a head, key_dim x value_dim of the memories that one token writes (single 256, MoM with
k = 2 and the shared one 768, expanded 16 x 48 = 768), or *total* floats (MoM 5 x 256 = 1,280; one of 36 x 36 = 1,296).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from torch import nn

_ONE = {"memories": 1, "top_k": 1, "shared": False, "aux_scale": 0.0}
_GDN, _GLA = {"rule": "gated-delta-net"}, {"rule": "gla"}

#: name -> settings of the layer, in the order of training: what the first claims need comes first.
VARIANTS: dict[str, dict[str, Any]] = {
    "GDN single": {**_GDN, **_ONE},
    "GDN MoM": _GDN,
    "GLA single": {**_GLA, **_ONE},
    "GLA MoM": _GLA,
    "GDN expanded": {**_GDN, **_ONE, "value_dim": 48},
    "GLA expanded": {**_GLA, **_ONE, "value_dim": 48},
    "GDN MoM, not shared": {**_GDN, "shared": False},
    "GDN MoM, no balance loss": {**_GDN, "aux_scale": 0.0},
    "GDN MoM, N=2": {**_GDN, "memories": 2, "top_k": 1},
    "GDN MoM, N=8": {**_GDN, "memories": 8, "top_k": 4},
    "GDN total": {**_GDN, **_ONE, "key_dim": 36, "value_dim": 36},
}
HEADS, BLOCKS, SIZE = 2, 2, 16


def build(variant: str, settings: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """A new model of one variant; the caller has seeded torch."""
    from workbench.models.mixer import MixerConfig, MixerLM

    mixer = {"mixer": "mom", "heads": HEADS, "key_dim": SIZE, "value_dim": SIZE, "conv_scope": settings["conv_scope"]}
    mixer |= {"chunk": settings["chunk"], **VARIANTS[variant]}
    return MixerLM(MixerConfig(settings["vocabulary"], settings["dim"], [mixer] * BLOCKS, mlp_ratio=0))


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
    """Few pairs first: over the first ``curriculum`` of the steps one size after the other joins the mixture."""
    pairs, opening = settings["train_pairs"], max(1, int(settings["curriculum"] * steps))
    fixed = (settings["sequences"], settings["length"], settings["vocabulary"], settings["data_seed"])

    def stage(step: int) -> Any:
        return _pool(tuple(pairs[: min(len(pairs), 1 + step * (len(pairs) - 1) // opening)]), *fixed)

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
        steps=steps, batch=settings["batch"], lr=settings["lr"], warmup=min(100, max(1, steps // 10)),
        weight_decay=0.1, next_token=0.0, data_seed=settings["data_seed"], log_every=50,
    )  # fmt: skip


def trained(
    variant: str, settings: Mapping[str, Any], steps: int, seeds: Sequence[int], device: str, **options: Any
) -> Any:
    """``workbench.training.tiny.Trained``: one model a seed."""
    from workbench.training.tiny import train

    make = partial(build, variant, settings)
    return train(
        make, stages(settings, steps), recipe(settings, steps), seeds, device=device, stack=settings["stack"], **options
    )


def affordable(settings: Mapping[str, Any], seeds: Sequence[int], device: str) -> int:
    """Steps that fit into ``train_seconds``, the same for every variant, at most ``steps``, in fifties.

    The rule, set before any run: a step of one memory and of the mixture are timed; the others are taken to cost in
    proportion to the floats that they hold.
    """
    from workbench.training.tiny import fitted, seconds_a_step

    pool = stages({**settings, "sequences": 512}, 1)(0)
    wanted, options = recipe(settings, settings["steps"]), {"device": device, "stack": settings["stack"], "steps": 10}
    one, mixture = (
        seconds_a_step(partial(build, name, settings), pool, wanted, seeds, **options)
        for name in ("GDN single", "GDN MoM")
    )
    total = sum(one + (mixture - one) * (_held(extra) - 1) / 4 for extra in VARIANTS.values())
    return max(50, fitted(wanted, total, settings["train_seconds"]).steps // 50 * 50)


def _held(extra: Mapping[str, Any]) -> float:
    """Floats held, in memories of 16 x 16."""
    groups = extra.get("memories", 4) + extra.get("shared", True)
    return groups * extra.get("key_dim", SIZE) * extra.get("value_dim", SIZE) / SIZE**2


def ship(models: Mapping[str, Any], made_with: Any) -> None:
    """Write the first seed's models beside the recorded runs; one that diverged is left out."""
    import torch

    from workbench.training.tiny import bundle_target, save_bundle

    whole = {name: m for name, m in models.items() if all(bool(torch.isfinite(p).all()) for p in m.parameters())}
    save_bundle(bundle_target("mom"), whole, made_with)
