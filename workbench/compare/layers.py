"""Recall against bytes of state, every registered sequence memory on the same probe (``workbench.tasks.pairs``).

The shipped models were trained once, by ``RECIPE``, three seeds a point; they are evaluated on fresh streams each time.
A layer that is not among them, because somebody registered it, is trained on the spot by the same recipe.

**Equal state.** ``state_bytes`` counts all that one stream carries from token to token, in float32: matrices, momenta,
rows of a convolution, keys and values of a window, and for full attention those of all 32 tokens. Weights are not
counted, nor is the width of the token. So that no layer's favourite size decides, each is taken at three widths, and
``at_budget`` answers the question of equal size: the best point of a layer whose state fits into a number of bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import is_whole
from workbench.errors import BadInput, ModelError, UnknownName
from workbench.memory.base import MEMORIES
from workbench.memory.layers.base import layer_names
from workbench.tasks.pairs import PAIRS, PairConfig, PairModel, pair_loss, pair_stream
from workbench.training import tiny

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BUDGETS",
    "DIMS",
    "RATES",
    "RECIPE",
    "SEEDS",
    "Line",
    "at_budget",
    "compare",
    "lines",
    "shipped_path",
    "train_line",
]

#: Widths at which every layer is taken.
DIMS = (8, 16, 32)
#: Chosen on seed 0, where baselines, Based, Just read twice, Titans and MoM were looked at; scored seeds are others.
#: The lower rates are for what diverges at the first; they were added when titans-mac did, whose forward pass descends
#: by itself.
RATES = (1e-2, 3e-3, 1e-3)
RECIPE = tiny.Recipe(steps=600, batch=32, lr=RATES[0], warmup=20, weight_decay=0.01, next_token=0.0, log_every=100)
SEEDS = (10, 11, 12)
#: Streams to learn from, and fresh ones to score on.
LEARN, SCORE = 20_000, 250
#: Bytes of state at which the table compares.
BUDGETS = (512, 2048, 8192, 32768)


@dataclass(frozen=True)
class Line:
    """One layer under one of its ``compared`` settings; ``name`` tells them apart."""

    name: str
    slug: str
    settings: dict[str, Any]

    def variant(self, dim: int, seed: int) -> str:
        return f"{self.name}@{dim}/{seed}"

    def model(self, dim: int) -> PairModel:
        return PairModel(PairConfig(dim=dim, mixers=[{"mixer": self.slug, **self.settings}]))


def lines(names: Iterable[str] | None = None) -> list[Line]:
    """The lines of these layers (default: of all that are registered).

    Raises:
        UnknownName: a name that is no registered sequence memory. BadInput: one text in place of names, or none.
    """
    known = layer_names()
    chosen = known if names is None else list(dict.fromkeys(names))
    if isinstance(names, str) or not chosen:
        raise BadInput(f"names={names!r} must be one or more sequence memories, [{known[0]!r}] say; None takes all")
    for name in chosen:
        if name not in known:
            raise UnknownName("sequence memory", name, known)
    return [line for slug in chosen for line in _lines_of(slug)]


def _lines_of(slug: str) -> list[Line]:
    made: Any = MEMORIES.get(slug)
    several: Sequence[dict[str, Any]] = made.compared
    shared = set.intersection(*(set(settings.items()) for settings in several))
    told = [", ".join(f"{k}={v}" for k, v in settings.items() if (k, v) not in shared) for settings in several]
    return [Line(f"{slug} ({words})" if words else slug, slug, dict(s)) for words, s in zip(told, several)]


def shipped_path(*, write: bool = False) -> Path:
    """The file of trained models: one of your own (beside ``WORKBENCH_RECORDED``) before the shipped one."""
    from workbench_datasets import recorded
    from workbench_datasets.files import files_root

    own = recorded.folder().parent / "models" / "layers" / "compare-layers.safetensors"
    return own if write or own.is_file() else files_root() / "models" / "layers" / own.name


def train_line(
    line: Line,
    dim: int,
    *,
    seeds: Sequence[int] = SEEDS,
    device: str = "auto",
    progress: Callable[..., Iterable[int]] | None = None,
) -> dict[int, PairModel]:
    """One model a seed, by ``RECIPE``; where that diverges, again at the next lower of ``RATES``.

    A seed that diverges at all of them has no model here.
    """
    pool, made = pair_stream(LEARN, seed=1), dict[int, PairModel]()
    for seed in seeds:
        for rate in RATES:
            recipe, label = replace(RECIPE, lr=rate), f"{line.name}, width {dim}, seed {seed}"
            with contextlib.suppress(ModelError):
                trained = tiny.train(
                    lambda seed: line.model(dim), pool, recipe, (seed,), device=device, progress=progress,
                    loss=pair_loss, label=label,
                )  # fmt: skip
                made[seed] = trained.models[0].cpu()
                break
    return made


def compare(
    names: Iterable[str] | None = None,
    *,
    dims: Sequence[int] | None = None,
    anew: bool = False,
    seeds: Sequence[int] = SEEDS,
    device: str = "auto",
    save: bool = False,
    progress: Callable[..., Iterable[Any]] | None = None,
    told: Callable[[str], Any] = lambda text: None,
) -> pd.DataFrame:
    """One row a line and width, sorted by layer: line, slug, dim, bytes, parameters, seeds, accuracy, low, high,
    chance, source ("shipped", or "trained here").

    ``accuracy`` is the mean over the seeds' models of the share of questions whose likeliest answer is right, on fresh
    streams; low and high are Student's t interval over seeds (NaN with one seed).

    Args:
        names: slugs; default all that are registered. dims: widths, default ``DIMS``.
        anew: train all, and not only what is not shipped. seeds, device: of what is trained.
        save: write all models of this call to the file of shipped ones (a new file, by this call's lines alone).
        progress: ``progress(items, label)`` iterates over steps of a training. told: is given each point's name.

    Raises:
        UnknownName, BadInput: names that are no layers, widths below 1, seeds below 0, a device that is not there.
    """
    import pandas as pd

    dims = DIMS if dims is None else dims
    several = isinstance(dims, Sequence) and len(dims) > 0
    if not several or any(not is_whole(d, 1) for d in dims):
        raise BadInput(f"dims={dims!r} must be one or more widths >= 1")
    dims = [int(dim) for dim in dims]
    tiny.device_of(device)  # also where all that is asked for is shipped
    seeds = tiny.whole_seeds(seeds)
    chosen = lines(names)
    held = {} if anew or not shipped_path().is_file() else tiny.bundle_record(shipped_path())["models"]
    rows, made = [], dict[str, PairModel]()
    for line, dim in ((line, dim) for line in chosen for dim in dims):
        told(f"{line.name}, width {dim}")
        stored = [name for name in (line.variant(dim, seed) for seed in SEEDS) if name in held]
        if stored:
            models, source = tiny.load_bundle(shipped_path(), stored), "shipped"
        else:
            trained = train_line(line, dim, seeds=seeds, device=device, progress=progress)
            models, source = {line.variant(dim, seed): model for seed, model in trained.items()}, "trained here"
        made.update(models)
        point = {"line": line.name, "slug": line.slug, "dim": dim}
        rows.append({**point, **_score(line.model(dim), list(models.values())), "source": source})
    if save:
        tiny.save_bundle(shipped_path(write=True), made, {**vars(RECIPE), "task": "pair stream", "seeds": list(seeds)})
    return pd.DataFrame(rows)


def _score(fresh_model: PairModel, models: list[PairModel]) -> dict[str, Any]:
    """Sizes are those of any model of the line; without a trained one the accuracy is NaN."""
    from workbench.tasks.recall import across_seeds, recall, state_bytes

    fresh, mixer = pair_stream(SCORE, seed=2), fresh_model.blocks[0].mixer
    found = {seed: recall(model, fresh, by=()) for seed, model in enumerate(models)}
    row = across_seeds(found).iloc[0] if found else dict.fromkeys(("accuracy", "low", "high"), np.nan)
    return {
        "bytes": state_bytes(fresh_model, 2 * PAIRS),
        "parameters": sum(value.numel() for value in mixer.parameters()),
        "seeds": len(models),
        "accuracy": float(row["accuracy"]),
        **{name: float(np.clip(row[name], 0, 1)) for name in ("low", "high")},
        "chance": fresh.chance,
    }


def at_budget(frame: pd.DataFrame, budgets: Sequence[int] = BUDGETS) -> pd.DataFrame:
    """One row a line, one column a budget of bytes: the best accuracy whose state fits; NaN where none does.

    Raises:
        BadInput: a frame without line, bytes or accuracy.
    """
    import pandas as pd

    if missing := [name for name in ("line", "bytes", "accuracy") if name not in frame]:
        raise BadInput(f"frame has no {', '.join(missing)}; at_budget takes what compare gives back")
    table = {
        budget: frame[frame["bytes"] <= budget].groupby("line")["accuracy"].max().reindex(frame["line"].unique())
        for budget in budgets
    }
    return pd.DataFrame(table)
