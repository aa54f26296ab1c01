"""Trains the embedded model's architecture with a given attention kernel: same seed, same batches, bfloat16."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.studies import _attention_race as racing

WARM_UP = 10  # steps that the speed leaves out
WIDTH, HEADS = 512, 8


def train(name: str, settings: Mapping[str, Any]) -> tuple[list[float], float]:
    """(loss of every step, tokens a second after the warm-up).

    ``settings``: train_steps, train_context, train_batch, and train_seconds, after which a kernel is stopped.
    """
    device = settings.get("device", "cuda")
    batches = _batches(settings).to(device)
    model = _model(name, int(batches.max()) + 1, settings["train_context"]).to(device, torch.bfloat16)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=device != "cpu")
    losses: list[Tensor] = []
    started = began = time.perf_counter()
    for step, batch in enumerate(batches):
        if step == WARM_UP:
            _wait(device)
            started = time.perf_counter()
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach())
        if step % 10 == 0 and step and _waited(device) - began > settings["train_seconds"]:
            break
    seconds = _waited(device) - started
    return torch.stack(losses).float().tolist(), max(len(losses) - WARM_UP, 1) * batches[0].numel() / seconds


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _waited(device: str) -> float:
    _wait(device)
    return time.perf_counter()


def _model(name: str, vocabulary: int, context: int) -> Any:
    """Llama shape of the embedded model, 512 wide, 8 layers; equal weights for every kernel."""
    from transformers import AutoModelForCausalLM

    from workbench.training import shapes

    config = shapes.config("embedded", "full", vocabulary, context)
    config.update({"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "head_dim": WIDTH // HEADS})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=_plugged(name))


def _plugged(name: str) -> str:
    """transformers' name for a contender of the race."""
    from workbench.models.attention import tensor_kernel

    if name == "standard":
        return "eager"
    kernel = racing.kernels([name])[name]
    return tensor_kernel(f"race-{name.replace(' ', '-')}", _causal(kernel)).plug()


def _causal(kernel: racing.Attention) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, **_: Any) -> Tensor:
        return kernel(q, k, v, causal)

    return attend


def _batches(settings: Mapping[str, Any]) -> Tensor:
    """(steps, batch, context) tokens: bytes of generated documents at random places, the same for every kernel."""
    from workbench_datasets.small_world import KINDS, world

    fresh, rng = world(seed=987), random.Random(0)
    text = "\n\n".join(fresh.document(kind, rng).text for _ in range(40) for kind in KINDS)
    stream = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    shape = (settings["train_steps"], settings["train_batch"])
    starts = torch.randint(len(stream) - settings["train_context"], shape, generator=torch.Generator().manual_seed(0))
    return stream[starts[..., None] + torch.arange(settings["train_context"])]
