"""What the MoM study measures: facts by hand, recall, routing, a decoding step, training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from workbench.studies import _mom_models as tiny
from workbench.studies._trainings import learned as means

Lines = Iterator[dict[str, Any]]
FULL_ATTENTION = "full attention"


def line(part: str, variant: str, x: float, metric: str, value: float, model: Any = 0, unit: Any = 0) -> dict[str, Any]:
    named = {"part": part, "variant": variant, "x": float(x), "model": str(model), "unit": str(unit)}
    return {**named, "metric": metric, "value": float(value)}


def by_hand(settings: Mapping[str, Any], seed: int) -> Lines:
    """Facts of four domains under the same key codes, nothing trained."""
    from workbench.tasks.interference import interference

    seeds = [1_000 * (seed + 1) + i for i in range(settings["hand_seeds"])]
    row: Any
    for row in interference(settings["hand_facts"], seeds=seeds).itertuples():
        yield line("by hand", row.route, row.facts, "recall", row.recall, unit=row.unit)


# ---- trained models -----------------------------------------------------------------------------------------------


def asked(variant: str, models: Sequence[Any], settings: Mapping[str, Any], seed: int) -> Lines:
    """Share of keys answered right, by pairs told; one line a model and group of sequences."""
    from workbench.tasks.recall import answers

    groups, n = settings["groups"], settings["test_sequences"]
    for pairs, length in settings["tests"]:
        pool = tiny.probe(settings, pairs, length, 10_000 + seed)
        part = "recall" if length <= settings["longest"] else "long"
        for i, model in enumerate(models):
            table = answers(model, pool)
            for unit, right in table["right"].groupby(table["sequence"] * groups // n):
                yield line(part, variant, pairs, "recall", right.mean(), i, unit)


@torch.no_grad()
def routed(variant: str, models: Sequence[Any], settings: Mapping[str, Any], seed: int) -> Lines:
    """Share of the tokens that each memory of each layer takes; unit is "group:memory"."""
    if models[0].blocks[0].mixer.memories == 1:
        return
    pairs, length = settings["routing_test"]
    pool = tiny.probe(settings, pairs, length, 20_000 + seed)
    for i, model in enumerate(models):
        ids = torch.as_tensor(pool.ids, dtype=torch.int64, device=model.device)
        for group, rows in enumerate(ids.chunk(settings["groups"])):
            for layer, aux in enumerate(model(input_ids=rows, use_cache=False).aux):
                for memory, share in enumerate(aux["aux/share"].tolist()):
                    yield line("routing", variant, layer, "share", share, i, f"{group}:{memory}")


def sizes(variant: str, model: Any) -> Lines:
    """What is compared: floats of the matrices that a token writes and that are held, weights that it uses and all."""
    active, total = tiny.state_floats(model)
    yield line("size", variant, 0, "activated floats", active)
    yield line("size", variant, 0, "total floats", total)
    count = sum(p.numel() for p in model.parameters())
    yield line("size", variant, 0, "parameters", count)
    yield line("size", variant, 0, "active parameters", count - sum(_idle(block.mixer) for block in model.blocks))


def _idle(layer: Any) -> int:
    """Weights of the routed memories that a token is not sent to."""
    if layer.single_kv_proj:
        return 0
    stacked = [layer.to_k, layer.to_v, *(w for w in layer.gates.parameters() if len(w) == layer.groups and w.dim() > 1)]
    return sum(w[0].numel() for w in stacked) * (layer.memories - layer.top_k)


def learned(variant: str, losses: Any, every: int = 50) -> Lines:
    """Loss (nats) and share of right answers while training, means of ``every`` steps."""
    for x, number, metric, value in means(losses, every):
        yield line("training", variant, x, metric, value, number)


def live(settings: Mapping[str, Any], seed: int) -> Lines:
    """A few steps of one small mixture: does the loss fall?"""
    small = {**settings, **settings["live"]}
    losses = tiny.trained("GDN MoM", small, tiny.Plan(small["steps"]), (seed,), settings["device"]).losses
    for step, loss in zip(losses["step"], losses["loss"]):
        yield line("live training", "GDN MoM", step, "loss", loss)


# ---- one token ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def decoding(settings: Mapping[str, Any], seed: int) -> Lines:
    """Seconds and bytes of a decoding step of one layer after so many tokens, beside attention over all of them."""
    from workbench.memory.layers.base import build_layer, nbytes

    torch.manual_seed(seed)
    dim = settings["decode_dim"]
    layers = {"GDN MoM": build_layer("mom", dim, heads=4, impl=settings["impl"])}
    layers[FULL_ATTENTION] = build_layer("sliding-window-attention", dim, heads=4, window=None)
    for variant, layer in layers.items():
        layer.to(settings["device"]).eval()
        x, state, read = torch.randn(1, max(settings["contexts"]) + 1, dim, device=settings["device"]), None, 0
        for context in settings["contexts"]:
            _, state = layer(x[:, read:context], state)
            read = context
            for unit, seconds in enumerate(_steps(layer, x[:, context : context + 1], state, settings["decode_steps"])):
                yield line("decoding", variant, context, "seconds", seconds, unit=unit)
            yield line("decoding", variant, context, "state bytes", nbytes(state))


def _steps(layer: Any, token: torch.Tensor, state: Any, count: int) -> list[float]:
    """Seconds of the same step again and again; the first ones are not counted."""
    from workbench.systems.timing import seconds_of

    return [seconds_of(lambda: layer(token, state), token.device) for _ in range(count + 3)][3:]
