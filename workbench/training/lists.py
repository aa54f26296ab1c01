"""``workbench train lists``: attention-only models of a few heads that answer what is left of a list.

A Llama in transformers' format whose MLPs write nothing: their last matrix is zero and is not trained. What is left is
embedding, attention, unembedding: every path of the answer goes through heads, which makes it a place to look for
channels between heads (Merullo et al. 2024, arXiv 2406.09519). Trained in minutes on one core.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.checks import whole
from workbench.errors import BadInput, ModelError
from workbench.storage import cache_dir, write_text

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from workbench.training.loop import Recipe

#: Steps, peak learning rate, batch: of the shipped models. Lists of 2 to ``LONGEST`` things are trained on.
STEPS = {"item": 3000, "colour": 8000}
PEAK = {"item": 2e-3, "colour": 5e-4}
BATCH, LONGEST, CONTEXT = 64, 8, 128


def recipe(kind: str, steps: int | None = None) -> Recipe:
    from workbench.training.loop import Recipe

    decay = {"item": 0.1, "colour": 0.02}[kind]
    return Recipe(steps or STEPS[kind], peak_lr=PEAK[kind], warmup=100, weight_decay=decay, clip=1.0)


def build(layers: int = 3, heads: int = 4, width: int = 64, *, seed: int = 0) -> LlamaForCausalLM:
    """A fresh attention-only model over the words of the lists; equal seeds give equal weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from workbench_datasets.list_prompts import words

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words()), hidden_size=width, intermediate_size=1, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=CONTEXT,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.05,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        layer.mlp.requires_grad_(False)
        layer.post_attention_layernorm.requires_grad_(False)
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; every text begins with ``<|bos|>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from workbench_datasets.list_prompts import words

    table = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words())}, unk_token="<|eos|>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    table.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=table, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|eos|>", unk_token="<|eos|>",
        model_max_length=CONTEXT,
    )  # fmt: skip


def train_lists(kind: str = "item", out: str | Path | None = None, *, steps: int | None = None, layers: int = 3,
                heads: int = 4, width: int = 64, batch: int = BATCH, seed: int = 0, device: str = "cpu",
                progress: bool = True) -> Path:  # fmt: skip
    """Train one list model and return the folder that holds it, loadable by ``workbench.models.load``.

    Args:
        kind: ``item`` (name the thing that is left) or ``colour`` (name its colour).
        out: folder of the model; one of the user's cache by default. steps: of ``batch`` prompts each, one list size a
            step, drawn evenly from 2 to 8; the shipped number by default. seed: of weights and data.

    Raises BadInput for an unknown kind, a device that is not there or sizes that make no model, ModelError when the
    loss is not finite.
    """
    from workbench.training._tiny_checks import device_of
    from workbench_datasets.list_prompts import KINDS

    if kind not in KINDS:
        raise BadInput(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    steps = whole("steps", steps) if steps else None
    layers, heads = whole("layers", layers), whole("heads", heads)
    width, batch = whole("width", width), whole("batch", batch)
    if width % (2 * heads):
        raise BadInput(f"width={width} must divide into {heads} heads of an even width, which rotary positions need")
    place = device_of(device)
    folder, plan = Path(out) if out else cache_dir("training", f"list-{kind}-seed{seed}"), recipe(kind, steps)
    begun, model = time.monotonic(), build(layers, heads, width, seed=seed).to(place)
    losses = _fit(model, kind, plan, batch, seed, progress)
    model.eval().cpu().save_pretrained(str(folder), safe_serialization=True)
    tokenizer().save_pretrained(str(folder))
    shape = {"layers": layers, "heads": heads, "width": width, "batch": batch}
    _write_recipe(folder, kind, plan, shape, seed, losses, time.monotonic() - begun)
    write_card(folder)
    return folder


def _fit(model: Any, kind: str, plan: Recipe, batch: int, seed: int, progress: bool) -> list[float]:
    """Cross-entropy (nats) of what is asked; the mean over every 100 steps."""
    import torch
    from tqdm.auto import trange

    from workbench.training.loop import optimiser

    device = next(model.parameters()).device
    optimise, model, curve, recent = optimiser(model, plan, device), model.train(), [], []
    for step in trange(plan.steps, desc=f"train list-{kind}", unit="step", disable=not progress):
        for group in optimise.param_groups:
            group["lr"] = plan.lr(step)
        loss = _loss(model, *_batch(kind, batch, seed, step, device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], plan.clip)
        optimise.step()
        optimise.zero_grad(set_to_none=True)
        recent.append(loss.detach())
        if len(recent) == 100 or step + 1 == plan.steps:
            curve.append(float(torch.stack(recent).mean()))
            recent.clear()
            if curve[-1] != curve[-1]:
                raise ModelError(f"loss is not finite near step {step + 1}: lower the learning rate")
    return curve


def _batch(kind: str, n: int, seed: int, step: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    import numpy as np
    import torch

    from workbench_datasets.list_prompts import list_prompts

    size = int(np.random.default_rng((seed, step)).integers(2, LONGEST + 1))
    made = list_prompts(kind, n, size, seed=1_000_000 * seed + step)
    return torch.from_numpy(made.ids[:, :-1]).to(device), torch.from_numpy(made.targets[:, :-1]).to(device)


def _loss(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    import torch

    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def _write_recipe(folder: Path, kind: str, plan: Recipe, shape: dict[str, int], seed: int, losses: list[float],
                  seconds: float) -> None:  # fmt: skip
    import torch
    import transformers

    from workbench.training.embedded import commit

    write_text(folder / "recipe.json", json.dumps({
        "kind": kind, **shape, "sizes": [2, LONGEST], "seed": seed, "optimiser": asdict(plan),
        "losses": [round(loss, 5) for loss in losses], "seconds": round(seconds, 1), "device": platform.machine(),
        "commit": commit(), "versions": {"python": platform.python_version(), "torch": torch.__version__,
                                         "transformers": transformers.__version__},
    }, indent=1))  # fmt: skip


#: Sizes and prompts of the card's table; seed of its prompts, which no training and no study uses.
SIZES, ASKED, CARD_SEED = (2, 4, 6, 8, 10, 12, 16, 20), 512, 90_001


def accuracy(model: Any, kind: str, size: int, n: int = ASKED, seed: int = CARD_SEED) -> float:
    """Share of ``n`` test prompts that the model answers right, of all words."""
    import torch

    from workbench_datasets.list_prompts import list_prompts

    made = list_prompts(kind, n, size, seed=seed, split="test")
    with torch.no_grad():
        best = model(input_ids=torch.from_numpy(made.ids[:, :-1]), use_cache=False).logits[:, -1].argmax(-1)
    return float((best.numpy() == made.answers).mean())


def write_card(folder: Path) -> None:
    """The model card of a trained folder: what it is, what was measured, how it was made."""
    from transformers import AutoModelForCausalLM

    from workbench.statistics import wilson

    made = json.loads((folder / "recipe.json").read_text())
    kind, plan = made["kind"], made["optimiser"]
    model = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    lines = []
    for size in SIZES:
        found = wilson(round(accuracy(model, kind, size) * ASKED), ASKED)
        lines.append(f"| {size} | {found.effect:.3f} | {found.low:.3f} to {found.high:.3f} |")
    write_text(folder / "README.md", _CARD.format(
        kind=kind, task=_TASKS[kind], table="\n".join(lines), asked=ASKED, steps=plan["steps"], lr=plan["peak_lr"],
        decay=plan["weight_decay"], clip=plan["clip"], **{name: made[name] for name in (
            "layers", "heads", "width", "batch", "seed", "seconds", "device", "commit")},
        torch=made["versions"]["torch"], transformers=made["versions"]["transformers"],
    ))  # fmt: skip


_TASKS = {
    "item": "`LIST cup key hat TOOK hat cup LEFT` is answered by `key`.",
    "colour": "`LIST cup red key blue hat red TOOK hat red cup red LEFT` is answered by `blue`.",
}
_CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [memory-workbench, interpretability]
---

# list-{kind}

An attention-only model ({layers} layers of {heads} heads, width {width}, rotary positions) in Llama's format that says
what is left of a list: {task}
Its MLPs write nothing: their last matrix is zero and was never trained. It knows 53 words and no language; it is there
to be taken apart (`workbench run talking-heads` measures where its heads look and what they tell each other).

## Measured

Greedy answers among all words on {asked} test prompts a size, Wilson 95 % intervals. Training had 2 to 8 things.

| things | right | 95 % interval |
| --- | --- | --- |
{table}

## Recipe

`workbench train lists --kind {kind}`: AdamW, peak learning rate {lr}, 100 steps warm-up and cosine, weight decay
{decay}, clipping {clip}, {steps} steps of {batch} prompts, one list size a step; the loss is on what is named after
TOOK and on the answer. Seed {seed}; {seconds} s on one core ({device}), torch {torch}, transformers {transformers},
commit {commit}. The losses are in `recipe.json`.
Prompts: `workbench_datasets.list_prompts`. Weights are ours, Apache-2.0.
"""
