"""The measurements of Just read twice: by hand, on the trained models, on prompts, of states; each yields tidy rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from workbench.studies import _jrt_models as models
from workbench.studies._jrt_claims import EMBEDDED, PREFIX, RECURRENT
from workbench.studies.base import Progress

Row = dict[str, Any]
SLUG = "just-read-twice"

#: How the language models on notes are called in frames and figures.
NAMES = {"causal": RECURRENT, "prefix": PREFIX}


def by_hand(settings: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """E1: a sum of random codes; every unit draws codes and sets of its own."""
    from workbench.tasks.disjointness import accuracy

    for unit in range(settings["hand_draws"]):
        number = settings["first_seed"] + 1_000 * seed + unit
        frame = accuracy(settings["hand_dims"], settings["hand_sizes"], settings["hand_trials"], number)
        table = frame.groupby(["dim", "first", "second", "passes"])["correct"].mean().reset_index()
        for row in table.itertuples():
            named = {"item": f"{row.passes} x", "first": row.first, "second": row.second, "x": row.dim}
            yield {"experiment": "by hand", **named, "unit": str(unit), "metric": "accuracy", "value": row.correct,
                   "n": settings["hand_trials"]}  # fmt: skip


# ---- set disjointness ---------------------------------------------------------------------------------------------


def sets(settings: Mapping[str, Any], seed: int, made: Iterable[tuple[str, str, Any]], device: str) -> Iterator[Row]:
    """E2: models (mode, training seed, model) on fresh sequences of every pair of sizes."""
    asked = _test_sets(settings, seed)
    for mode, unit, model in made:
        size = models.state_bytes(model.config.dim, _key_dim(model))
        for (first, second), streams in asked.items():
            right = answers_right(model, streams, device, settings["test_batch"])
            yield {"experiment": "sets", "item": mode, "first": first, "second": second, "x": size, "unit": unit,
                   "metric": "accuracy", "value": right, "n": len(streams)}  # fmt: skip


def _key_dim(model: Any) -> int:
    return int(next(mixer["key_dim"] for mixer in model.config.mixers if "key_dim" in mixer))


def _test_sets(settings: Mapping[str, Any], seed: int) -> dict[tuple[int, int], Any]:
    from workbench_datasets.set_disjointness import set_disjointness

    count, words = settings["test_sequences"], settings["vocabulary"]
    number = settings["first_seed"] + seed
    return {
        (first, second): set_disjointness(count, first, second, vocabulary=words, seed=number, split="test")
        for first, second in settings["test_sizes"]
    }


def answers_right(model: Any, streams: Any, device: str, batch: int) -> float:
    """Share of sequences whose last token's likeliest successor is the target."""
    import torch

    right = 0
    for begin in range(0, len(streams), batch):
        part = streams[begin : begin + batch]
        found = next_words(model, torch.as_tensor(part.ids).long().to(device), None)
        right += int((found.cpu() == torch.as_tensor(part.targets[:, -1])).sum())
    return right / len(streams)


def next_words(model: Any, ids: Any, keep: Any) -> Any:
    """The likeliest word after the last token of every row."""
    import torch

    with torch.no_grad():
        return model(input_ids=ids, attention_mask=keep, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1)


def shipped(prefix: str) -> dict[str, Any]:
    """Models of the bundle whose names begin with ``prefix``; a BundleError says how to make it where it is missing."""
    return {name: model for name, model in _bundle().items() if name.startswith(prefix)}


@lru_cache(maxsize=1)
def _bundle() -> dict[str, Any]:
    from workbench.training.tiny import bundle_path, load_bundle

    return load_bundle(bundle_path(SLUG))


def shipped_sets() -> Iterator[tuple[str, str, Any]]:
    for name, model in shipped("sets-").items():
        yield name.removeprefix("sets-").rsplit("-", 1)[0], "shipped", model


def live_training(settings: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """Forty steps of the smallest prefix model: that training itself works here, not that it gets anywhere."""
    from functools import partial

    from workbench.training.tiny import Recipe, train

    dim, key_dim = settings["live_state"]
    small = {**settings, "stages": settings["stages"][:1], "sequences": settings["live_sequences"], "stage_steps": []}
    stage = models.sets_stages(small)
    recipe = Recipe(steps=settings["live_steps"], batch=settings["live_batch"], lr=settings["lr"], warmup=5,
                    next_token=0.0, data_seed=seed)  # fmt: skip
    build = partial(models.build, "prefix", dim, key_dim, settings["vocabulary"])
    number = settings["first_seed"] + seed
    done = train(build, stage(0), recipe, (number,), device="cpu", loss=models.last_word_loss)
    for row in done.losses.itertuples():
        yield {"experiment": "live training", "item": "prefix", "x": row.step, "unit": "0", "metric": "loss",
               "value": row.loss}  # fmt: skip


def curves(made: models.Made, every: int) -> Iterator[Row]:
    """Losses of a training, a mean over ``every`` steps a point; and what it took."""
    table = made.losses.assign(x=(made.losses["step"] - 1) // every * every + every)
    for (unit, step), loss in table.groupby(["seed", "x"])["loss"].mean().items():
        yield {
            "experiment": "training",
            "item": made.name,
            "x": step,
            "unit": str(unit),
            "metric": "loss",
            "value": loss,
        }
    taken = {"seconds": made.record["seconds"], "steps": made.record["steps_done"], "complete": made.complete}
    for metric, value in taken.items():
        yield {"experiment": "training", "item": made.name, "unit": made.record["how"], "metric": metric,
               "value": float(value)}  # fmt: skip


# ---- prompts ------------------------------------------------------------------------------------------------------


def prompts(
    settings: Mapping[str, Any], seed: int, made: Iterable[tuple[str, str, Any]], device: str, progress: Progress
) -> Iterator[Row]:
    """E3: the same questions put once and twice to the embedded model and to ours (mode, training seed, model)."""
    from workbench_datasets.notes import notes

    number = settings["first_seed"] + seed
    for mode, unit, model in made:
        asked = notes(settings["items"], settings["facts"], seed=number)
        yield from _asked(NAMES[mode], unit, reader(model, device), asked, words_of, None, 1)
    if settings["embedded_items"]:
        loaded = _embedded(device)
        few = notes(settings["embedded_items"], settings["embedded_facts"], seed=number)
        count = lambda text: loaded.encode(text)["input_ids"].shape[1]  # noqa: E731
        yield from _asked(EMBEDDED, "shipped", _generating(loaded, progress), few, count, loaded.max_positions, 8)


def _asked(
    item: str,
    unit: str,
    answer: Callable[[Sequence[str]], Sequence[str]],
    asked: Sequence[Any],
    count: Callable[[str], int],
    context_size: int | None,
    new_tokens: int,
) -> Iterator[Row]:
    from workbench.tasks.jrt_prompt import ask

    frame = ask(answer, asked, count, context_size, repeats=(1, 2), new_tokens=new_tokens)
    for row in frame.itertuples():
        yield {"experiment": "prompt", "item": item, "x": row.repeats, "unit": f"{unit}.{row.item}",
               "metric": "correct", "value": row.correct}  # fmt: skip
    for repeats, tokens in frame.groupby("repeats")["tokens"].mean().items():
        yield {"experiment": "prompt", "item": item, "x": repeats, "unit": unit, "metric": "tokens", "value": tokens}


def words_of(text: str) -> int:
    from workbench_datasets.notes import encode

    return len(encode(text))


def reader(model: Any, device: str = "cpu", batch: int = 64) -> Callable[[Sequence[str]], list[str]]:
    """Prompts -> the next word, for a language model on notes; shorter prompts are padded on the left."""
    import torch

    from workbench_datasets.notes import decode, encode

    def answer(texts: Sequence[str]) -> list[str]:
        found: list[str] = []
        for begin in range(0, len(texts), batch):
            rows = [encode(text) for text in texts[begin : begin + batch]]
            longest = max(map(len, rows))
            ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
            found += [decode([word]) for word in next_words(model, ids, ids > 0).tolist()]
        return found

    return answer


@lru_cache(maxsize=1)
def _embedded(device: str) -> Any:
    from workbench.models import load

    return load("embedded", device=device)


def _generating(loaded: Any, progress: Progress, batch: int = 20) -> Callable[[Sequence[str]], list[str]]:
    def answer(texts: Sequence[str]) -> list[str]:
        found: list[str] = []
        for begin in progress(range(0, len(texts), batch), "embedded"):
            made = loaded.generate(list(texts[begin : begin + batch]), max_new_tokens=8, stop="\n")
            found += [one.new_text for one in made]
        return found

    return answer


# ---- states -------------------------------------------------------------------------------------------------------


def states(settings: Mapping[str, Any]) -> Iterator[Row]:
    """C6: bytes of the state after a prefix and after decoding beyond it, measured on its tensors."""
    import torch

    from workbench.memory.layers.base import nbytes
    from workbench.memory.layers.just_read_twice import JustReadTwice

    for dim, key_dim in settings["states"]:
        for mode in ("causal", "prefix"):
            layer = JustReadTwice(dim, models.HEADS, key_dim=key_dim, mode=mode)
            with torch.no_grad():
                for tokens in (1, 64, 512):
                    _, state = layer(torch.zeros(1, tokens, dim))
                    _, state = layer(torch.zeros(1, 3, dim), state)
                    yield {"experiment": "state", "item": mode, "x": tokens + 3, "unit": f"{dim}x{key_dim}",
                           "metric": "bytes", "value": float(nbytes(state))}  # fmt: skip
