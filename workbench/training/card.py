"""The model card of a trained folder, written from what its ``recipe.json`` and ``evaluation.json`` say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.storage import write_text

_ABOUT = {
    "embedded": "A small Llama-format language model (8 layers, width 256, 8 heads, 4 key-value heads, SwiGLU) "
    "trained by this project on public-domain English novels and a generated small world.",
    "embedded-relu": "The ReLU sibling of `embedded` (GPT-NeoX format, rotary positions, 4x two-matrix ReLU MLP with "
    "biases), on the same kinds of data: for studies that need exact zeros in the MLP.",
}


def write_card(folder: str | Path, *, remarks: str = "") -> Path:
    """Write ``README.md`` into a model folder that holds ``recipe.json`` and ``evaluation.json``."""
    folder = Path(folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    rows = json.loads((folder / "evaluation.json").read_text())["rows"]
    return write_text(folder / "README.md", _card(recipe, rows, remarks))


def _card(recipe: dict[str, Any], rows: list[dict[str, Any]], remarks: str) -> str:
    name, optimiser, versions = recipe["variant"], recipe["optimiser"], recipe["versions"]
    seen, tokenizer = f"{recipe['tokens'] / 1e6:.0f} M", recipe["tokenizer_sha256"][:16]
    mixture = "\n".join(_portion(portion) for portion in recipe["mixture"])
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [memory-workbench, small-world]
---

# {name}

{_ABOUT[name]}
It is an object of study, not an assistant: it knows an invented world by heart, reads facts from its context, and has
induction heads. The tokenizer adds a `<|bos|>`; to continue a stream, encode with `add_special_tokens=False`.

## Measured

`workbench models eval {name}`: greedy answers, exact match, Wilson 95 % intervals. Question seeds, unseen people,
held-out frames, held-out compositions and the two held-out books were never in training.

| measure | case | value | 95 % interval | n | gate |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(_line(row) for row in rows)}
{remarks}
## Recipe

`workbench train {name}`: AdamW, peak learning rate {optimiser["peak_lr"]}, {optimiser["warmup"]} steps warm-up and
cosine, weight decay {optimiser["weight_decay"]}, clipping {optimiser["clip"]}, dropout {optimiser.get("dropout", 0.0)},
{recipe["steps"]} steps of {recipe["batch_tokens"]} tokens ({seen}), context {recipe["context"]},
documents packed without attention across them, bf16 autocast. World seed {recipe["world_seed"]}, data seed
{recipe["seed"]}, share of contradicting passages {recipe["rho"]}. The loss curve is `training.csv`.

| documents | share of tokens (before normalising) | weight of answers | reason |
| --- | --- | --- | --- |
{mixture}

## Provenance

{recipe["device"]}, {recipe["seconds"]} s of training, Python {versions["python"]}, torch {versions["torch"]},
transformers {versions["transformers"]}, commit {recipe["commit"]}, tokenizer sha256 `{tokenizer}`.
Text: eleven novels in the public domain (held out: A Tale of Two Cities, The Adventures of Sherlock Holmes) and
documents of `workbench_datasets.small_world` and `workbench_datasets.dialogues`. Weights are ours, Apache-2.0.
"""


def _portion(p: dict[str, Any]) -> str:
    return f"| {p['kind']} | {p['share']:.3f} | {p['answer_weight']} | {p['reason']} |"


def _line(row: dict[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    interval = "" if low is None else f"{low:.3f} to {high:.3f}"
    gate = "" if row.get("gate") is None else f"{row['gate']:.2f}"
    return f"| {row['metric']} | {row['group']} | {row['value']:.3f} | {interval} | {row.get('n') or ''} | {gate} |"
