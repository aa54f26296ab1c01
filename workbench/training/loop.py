"""A plain training loop that a kill cannot hurt: AdamW, warm-up and cosine, bf16 on CUDA, atomic checkpoints, log."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.errors import ModelError, StorageError
from workbench.storage import write_text

if TYPE_CHECKING:
    from workbench.training.stream import Batch


@dataclass(frozen=True)
class Recipe:
    """Optimiser and schedule; ``steps`` fixes the schedule, so a resumed run follows the same curve."""

    steps: int
    peak_lr: float = 2e-3
    final_share: float = 0.05
    warmup: int = 500
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    dropout: float = 0.0
    checkpoint_every: int = 2000
    log_every: int = 20
    slots: int = 512  # room for document ends in a batch: a fixed shape compiles once

    def lr(self, step: int) -> float:
        if step < self.warmup:
            return self.peak_lr * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.peak_lr * (self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Finished:
    """What a run did: steps reached, tokens read, seconds in this process, and whether the schedule is complete."""

    steps: int
    tokens: int
    seconds: float
    complete: bool
    losses: tuple[float, ...]


def optimiser(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW that decays matrices only (no norms, no biases)."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=recipe.betas, fused=device.type == "cuda")


def device_batch(batch: Batch, slots: int, device: torch.device) -> dict[str, Tensor]:
    """A batch as tensors: ids, positions from 0 in each document, ends of documents padded to a fixed number."""
    import numpy as np

    ends = np.cumsum(batch.lengths)
    if len(ends) > slots:
        raise ModelError(f"{len(ends)} documents in one batch: expected at most {slots}; raise Recipe.slots")
    starts = np.concatenate([[0], ends])
    positions = np.arange(len(batch.tokens)) - np.repeat(starts[:-1], batch.lengths)
    cu = np.full(slots + 1, len(batch.tokens), np.int32)
    cu[: len(starts)] = starts
    arrays = {
        "targets": batch.tokens.astype(np.int64),
        "ids": batch.inputs.astype(np.int64),
        "positions": positions.astype(np.int64),
        "weights": batch.weights,
    }
    made = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    made["cu_seqlens"] = torch.from_numpy(cu)
    if device.type == "cuda":
        made = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in made.items()}
    return made


def weighted_loss(model: nn.Module, ids: Tensor, targets: Tensor, positions: Tensor, weights: Tensor,
                  cu_seqlens: Tensor, longest: int) -> Tensor:  # fmt: skip
    """Mean cross-entropy (nats) of the next target token, weighted; document starts have weight 0."""
    logits = model(
        input_ids=ids[None], position_ids=positions[None], use_cache=False, cu_seqlens=cu_seqlens, longest=longest
    ).logits[0, :-1]
    losses = nn.functional.cross_entropy(logits.float(), targets[1:], reduction="none")
    return (losses * weights[1:]).sum() / weights[1:].sum()


def add_dropout(model: nn.Module, share: float) -> None:
    """Dropout on what attention and MLP write to the residual stream, in training mode only (Llama has none)."""
    if not share:
        return
    ends = ("o_proj", "down_proj", "attention.dense", "dense_4h_to_h")
    for name, module in model.named_modules():
        if name.endswith(ends):
            module.register_forward_hook(lambda m, _, out: nn.functional.dropout(out, share, m.training))


class Run:
    """One training run in a folder: ``log.jsonl`` and ``checkpoint/`` live there; starting again resumes."""

    def __init__(
        self, model: Any, recipe: Recipe, folder: Path, *, device: torch.device, identity: dict[str, Any], longest: int
    ):
        self.model, self.recipe, self.device, self.longest = model.to(device), recipe, device, longest
        self.folder = Path(folder)
        self.identity = {**identity, "recipe": asdict(recipe)}
        add_dropout(self.model, recipe.dropout)
        self.optimiser = optimiser(self.model, recipe, device)
        self.step, self.tokens = 0, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        cuda = device.type == "cuda"
        self.autocast = torch.autocast("cuda", torch.bfloat16, enabled=cuda)
        self.loss = torch.compile(weighted_loss, dynamic=False) if cuda else weighted_loss
        self.curve: list[float] = []

    # -- checkpoints ----------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def _state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": p.detach().cpu().contiguous() for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            for key, value in self.optimiser.state.get(p, {}).items():
                tensors[f"optimiser.{key}.{name}"] = value.detach().cpu().contiguous()
        return tensors

    def save(self) -> None:
        """Write a new checkpoint beside the old one, then put it in its place (a kill leaves one whole checkpoint)."""
        from safetensors.torch import save_file

        fresh, old = self.folder / ".checkpoint.new", self.folder / ".checkpoint.old"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            fresh.mkdir(parents=True)
            save_file(self._state(), fresh / "state.safetensors")
            state = {"step": self.step, "tokens": self.tokens, **self.identity}
            write_text(fresh / "state.json", json.dumps(state, indent=1))
            shutil.rmtree(old, ignore_errors=True)
            if self.checkpoint.exists():
                os.replace(self.checkpoint, old)
            os.replace(fresh, self.checkpoint)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise StorageError(f"cannot write a checkpoint in {self.folder}: {error.strerror or error}") from error

    def resume(self) -> bool:
        """Continue from the checkpoint in the folder if there is one; another recipe's checkpoint is refused."""
        from safetensors.torch import load_file

        places = (self.checkpoint, self.folder / ".checkpoint.old")
        place = next((p for p in places if (p / "state.json").is_file()), None)
        if place is None:
            return False
        state = json.loads((place / "state.json").read_text())
        different = [key for key, value in json.loads(json.dumps(self.identity)).items() if state.get(key) != value]
        if different:
            raise ModelError(
                f"{place} belongs to another run ({', '.join(different)} differ): choose another folder or resume=False"
            )
        tensors = load_file(place / "state.safetensors")
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"model.{name}"])
                keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"optimiser.{key}.{name}" in tensors]
                self.optimiser.state[p] = {k: self._moved(tensors[f"optimiser.{k}.{name}"], k) for k in keys}
        self.step, self.tokens = state["step"], state["tokens"]
        self._trim_log()
        return True

    def _moved(self, tensor: Tensor, key: str) -> Tensor:
        return tensor if key == "step" and self.device.type != "cuda" else tensor.to(self.device)

    def _trim_log(self) -> None:
        """Drop lines that a killed process wrote after its last checkpoint."""
        path = self.folder / "log.jsonl"
        if path.is_file():
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
            write_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= self.step))

    # -- the loop -------------------------------------------------------------------------------------------------

    def train(self, stream: Iterator[Batch], *, budget_seconds: float | None = None, progress: bool = True) -> Finished:
        """Run to the end of the schedule, or stop with a checkpoint when the budget is used up."""
        from tqdm.auto import tqdm

        begun, self.model = time.monotonic(), self.model.train()
        bar = tqdm(total=self.recipe.steps, initial=self.step, desc="train", unit="step", disable=not progress)
        pending: list[tuple[int, Tensor]] = []
        with bar, (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            while self.step < self.recipe.steps:
                pending.append((self.step + 1, self._advance(next(stream))))
                bar.update(1)
                if self.step % self.recipe.log_every == 0 or self.step == self.recipe.steps:
                    self._log(log, pending, begun)
                    bar.set_postfix(loss=f"{self.curve[-1]:.3f}", refresh=False)
                    if budget_seconds is not None and time.monotonic() - begun > budget_seconds:
                        break
                if self.step % self.recipe.checkpoint_every == 0:
                    self.save()
            self.save()
        seconds = time.monotonic() - begun
        return Finished(self.step, self.tokens, seconds, self.step >= self.recipe.steps, tuple(self.curve))

    def _advance(self, batch: Batch) -> Tensor:
        made = device_batch(batch, self.recipe.slots, self.device)
        torch.manual_seed(self.identity.get("seed", 0) * 1_000_003 + self.step)  # dropout depends on the step alone
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr(self.step)
        with self.autocast:
            loss = self.loss(self.model, **made, longest=self.longest)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += len(batch.tokens)
        return loss.detach()

    def _log(self, log: Any, pending: list[tuple[int, Tensor]], begun: float) -> None:
        values = torch.stack([loss for _, loss in pending]).tolist()
        if not all(math.isfinite(value) for value in values):
            raise ModelError(f"loss is not finite near step {self.step}: lower peak_lr; the last checkpoint is whole")
        self.curve += values
        seconds = round(time.monotonic() - begun, 2)
        line = {"step": self.step, "loss": round(sum(values) / len(values), 5), "lr": self.recipe.lr(self.step - 1),
                "tokens": self.tokens, "seconds": seconds}  # fmt: skip
        log.write(json.dumps(line) + "\n")
        log.flush()
        pending.clear()
