"""``workbench train embedded``: the recipe of the models that ship with the workbench."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput, UnknownName
from workbench.storage import cache_dir, write_text

if TYPE_CHECKING:
    from workbench.training.loop import Recipe
    from workbench.training.stream import StreamSpec

FULL_STEPS = {"embedded": 22500, "embedded-relu": 25000}  # of 32,768 tokens each, as shipped
# Measured: with dropout 0.1 the Llama variant stayed at chance when several unknown people had to be told apart
# (1 in 6 on six episodes), while the ReLU variant learned it and read held-out prose better than without.
DROPOUT = {"embedded": 0.0, "embedded-relu": 0.1}


def train_embedded(variant: str = "embedded", out: str | Path | None = None, *, steps: int | None = None, seed: int = 0,
                   device: str | None = None, resume: bool = True, size: str = "full", rho: float = 0.1,
                   budget_seconds: float | None = None, workers: int | None = None, shards: str | Path | None = None,
                   progress: bool = True) -> Path:  # fmt: skip
    """Train one of the embedded models and return the folder that holds it, loadable by transformers.

    Args:
        variant: ``embedded`` (Llama, SwiGLU) or ``embedded-relu`` (GPT-NeoX, ReLU MLP).
        out: folder of the run (checkpoints, log) with the model in it; a folder of the user's cache by default.
        steps: optimiser steps (the schedule ends there); the shipped number by default.
        seed: of initial weights and data.
        device: ``cuda``, ``cpu``; CUDA when there is one.
        resume: continue from the folder's checkpoint if it belongs to the same recipe.
        rho: share of question passages that contradict the world's facts.
        size: ``full`` or ``tiny`` (seconds on a CPU, for tests; without books).
        budget_seconds: stop after about so long with a checkpoint and an export.
        shards: folder in which ``stream.write_shards`` lays out the data, to share it between trainings.
        workers: processes that write the data ahead (default: the cores but two on CUDA, none for tiny).

    Raises:
        UnknownName, BadInput: an unknown variant, a bad size or number of steps, a device that is not there.
        ModelError: the folder holds a checkpoint of another recipe, or the loss is not finite.
        FileNotFoundError: the full size needs the books and one is absent.
    """
    from workbench.training import loop, packed, shapes
    from workbench.training._tiny_checks import device_of
    from workbench.training.stream import batches

    _check(variant, size, steps, shapes.VARIANTS, tuple(shapes.SIZES))
    place = device_of(device or "auto")
    folder = Path(out) if out else cache_dir("training", f"{variant}-{size}-seed{seed}")
    recipe, spec = _plan(variant, size, steps, seed, folder, rho)
    model = shapes.build(variant, size, _vocabulary(spec), spec.context, seed, packed.register())
    identity = _identity(variant, size, seed, spec)
    run = loop.Run(model, recipe, folder, device=place, longest=spec.context, identity=identity)
    if resume:
        run.resume()
    ready = Path(shards) if shards else None
    stream = batches(spec, start=run.step, workers=_workers(workers, size, place.type), shards=ready)
    finished = run.train(stream, budget_seconds=budget_seconds, progress=progress)
    stream.close()  # type: ignore[attr-defined]
    _export(run.model, spec, folder)
    _write_recipe(folder, variant, size, seed, recipe, spec, finished, place)
    return folder


def _check(variant: str, size: str, steps: int | None, variants: tuple[str, ...], sizes: tuple[str, ...]) -> None:
    if variant not in variants:
        raise UnknownName("model variant", variant, variants)
    if size not in sizes:
        raise BadInput(f"size={size!r}: expected one of {', '.join(sizes)}")
    if steps is not None and steps < 1:
        raise BadInput(f"steps={steps!r}: expected at least 1")


def _plan(variant: str, size: str, steps: int | None, seed: int, folder: Path, rho: float) -> tuple[Recipe, StreamSpec]:
    from workbench.training.loop import Recipe
    from workbench.training.stream import StreamSpec

    if size == "full":
        data = prepare_data(folder / "data")
        return Recipe(steps or FULL_STEPS[variant], dropout=DROPOUT[variant]), replace(data, seed=seed, rho=rho)
    spec = StreamSpec(str(shipped_tokenizer()), batch_tokens=2048, context=512, batches_per_shard=4, seed=seed, rho=rho)
    return Recipe(steps or 20, dropout=DROPOUT[variant], warmup=5, checkpoint_every=5, log_every=1, slots=512), spec


def shipped_tokenizer() -> Path:
    from workbench_datasets.files import files_root

    return files_root() / "models" / "embedded"


def prepare_data(folder: Path) -> StreamSpec:
    """Tokenise the training books once (``books.npy``, uint16) and lay out prose paragraphs beside them."""
    import numpy as np

    from workbench.training.stream import StreamSpec
    from workbench.training.tokenizer import load_tokenizer
    from workbench_datasets import books

    folder.mkdir(parents=True, exist_ok=True)
    tokens, prose, source = folder / "books.npy", folder / "prose.txt", shipped_tokenizer()
    if not (tokens.is_file() and prose.is_file()):
        texts = books.load("train")
        tokenizer = load_tokenizer(source)
        made = tokenizer.backend_tokenizer.encode_batch(list(texts.values()), add_special_tokens=False)
        encoded = [[*one.ids, tokenizer.eos_token_id] for one in made]
        write_text(prose, "\n".join(books.paragraphs(texts)))
        temporary = folder / f"books.{os.getpid()}.tmp.npy"  # two trainings may lay it out at once
        np.save(temporary, np.concatenate([np.array(ids, np.uint16) for ids in encoded]))
        os.replace(temporary, tokens)
    return StreamSpec(str(source), str(tokens), str(prose))


def _vocabulary(spec: StreamSpec) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(spec.tokenizer) / "tokenizer.json")).get_vocab_size()


def _workers(workers: int | None, size: str, device: str) -> int:
    if workers is not None:
        return workers
    return max(1, (os.cpu_count() or 2) - 2) if size == "full" and device == "cuda" else 0


def _identity(variant: str, size: str, seed: int, spec: StreamSpec) -> dict[str, Any]:
    mixture = [[p.kind, p.share, p.answer_weight, p.noise] for p in spec.mixture]
    return {"variant": variant, "size": size, "seed": seed, "tokenizer": _tokenizer_hash(spec), "mixture": mixture,
            "batch_tokens": spec.batch_tokens, "context": spec.context, "rho": spec.rho}  # fmt: skip


def _tokenizer_hash(spec: StreamSpec) -> str:
    return hashlib.sha256((Path(spec.tokenizer) / "tokenizer.json").read_bytes()).hexdigest()


def _export(model: Any, spec: StreamSpec, folder: Path) -> None:
    """The model in float16 with its tokenizer, as transformers loads it; the trained model stays as it is."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from workbench.training.tokenizer import load_tokenizer

    config = AutoConfig.for_model(**{**model.config.to_dict(), "dtype": "float16"})
    half = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float16)
    half.load_state_dict({name: value.to(torch.float16).cpu() for name, value in model.state_dict().items()})
    half.generation_config.update(do_sample=False, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    half.save_pretrained(str(folder), safe_serialization=True)
    load_tokenizer(spec.tokenizer).save_pretrained(str(folder))


def _write_recipe(folder: Path, variant: str, size: str, seed: int, recipe: Recipe, spec: StreamSpec, finished: Any,
                  device: Any) -> None:  # fmt: skip
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    mixture = [asdict(portion) for portion in spec.mixture]
    write_text(folder / "recipe.json", json.dumps({
        "variant": variant, "size": size, "seed": seed, "optimiser": asdict(recipe), "mixture": mixture,
        "batch_tokens": spec.batch_tokens, "context": spec.context, "rho": spec.rho, "world_seed": spec.world_seed,
        "tokenizer_sha256": _tokenizer_hash(spec), "steps": finished.steps, "tokens": finished.tokens,
        "seconds": round(finished.seconds, 1), "complete": finished.complete, "device": name, "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__},
    }, indent=1))  # fmt: skip


def commit() -> str:
    """The checkout's commit, or ``unknown`` outside one."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        made = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return made.stdout.strip()
