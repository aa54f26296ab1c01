"""Small list models: prompts whose answer is what is left, a recipe that learns, the shipped weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from workbench.errors import BadInput, UnknownName
from workbench.models import embedded, load
from workbench.tasks.lists import list_trials
from workbench.tasks.remaining import answers
from workbench.training.lists import accuracy, build, train_lists
from workbench_datasets.list_prompts import KINDS, list_prompts, words


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 5, 12])
def test_the_answer_is_the_one_entry_that_was_not_taken(kind, size):
    made, table = list_prompts(kind, 30, size, seed=3), words()
    for ids, targets, place, listed, parts in zip(made.ids, made.targets, made.place, made.listed, made.parts):
        text = [table[token] for token in ids]
        took, left = text.index("TOOK"), text.index("LEFT")
        step = 1 if kind == "item" else 2
        entries = [tuple(text[i : i + step]) for i in range(2, took, step)]
        taken = [tuple(text[i : i + step]) for i in range(took + 1, left, step)]
        assert len(entries) == size
        assert len({entry[0] for entry in entries}) == size
        rest = [entry for entry in entries if entry[0] not in {other[0] for other in taken}]
        assert rest == [entries[place]]
        assert set(taken) <= set(entries)
        assert text[-1] == rest[0][-1]
        assert [table[token] for token in listed] == [entry[-1] for entry in entries]
        assert [text[i] for i in np.flatnonzero(parts == 0)] == list(entries[place])
        assert (parts == 2).sum() == len(taken) * step
        asked = np.flatnonzero(targets >= 0)
        assert (targets[asked] == ids[asked + 1]).all()
        assert len(asked) == size


def test_prompts_depend_on_seed_and_split_and_bad_sizes_are_named():
    first = list_prompts("item", 8, 6, seed=1).ids
    assert np.array_equal(first, list_prompts("item", 8, 6, seed=1).ids)
    assert not np.array_equal(first, list_prompts("item", 8, 6, seed=2).ids)
    assert not np.array_equal(first, list_prompts("item", 8, 6, seed=1, split="test").ids)
    with pytest.raises(ValueError, match="size"):
        list_prompts("item", 1, 41)
    with pytest.raises(BadInput, match="kind='shape'"):
        list_trials("shape", 1, 4)


def test_only_attention_writes_into_the_residual():
    model, ids = build(layers=2, heads=2, width=16, seed=1), torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids).logits
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.mlp.up_proj.weight)  # whatever the MLP computes is not written
        assert torch.equal(model(ids).logits, before)
        model.model.layers[0].self_attn.o_proj.weight.mul_(2)
        assert not torch.equal(model(ids).logits, before)


def test_a_short_training_learns_and_says_how_it_was_made(tmp_path):
    folder = train_lists("item", tmp_path / "run", steps=200, layers=1, heads=2, width=16, progress=False)
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["losses"][-1] < recipe["losses"][0] - 0.1
    assert recipe["optimiser"]["steps"] == 200
    again = train_lists("item", tmp_path / "again", steps=200, layers=1, heads=2, width=16, progress=False)
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    loaded = load(folder)
    assert loaded.n_layers == 1
    assert loaded.tokenizer("LIST key hat TOOK hat LEFT")["input_ids"][0] == 0
    assert "| 20 |" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("given", "mention"),
    [({"kind": "shape"}, "kind='shape'"), ({"layers": 0}, "layers must be a whole .* got 0"),
     ({"width": 20, "heads": 4}, "width=20"), ({"steps": -3}, "steps must be a whole .* got -3"),
     ({"batch": 1.5}, "batch must be a whole .* got 1.5")],
)  # fmt: skip
def test_bad_recipes_are_refused(given, mention, tmp_path):
    with pytest.raises(BadInput, match=mention):
        train_lists(out=tmp_path, **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", embedded.LISTS)
def test_shipped_models_answer_what_they_were_trained_on(name):
    kind, loaded = name.removeprefix("list-"), load(name)
    asked = list_trials(kind, 100, 6, seed=70_001)
    assert answers(loaded, asked)["correct"].mean() >= 0.9
    assert accuracy(loaded.model, kind, 20, n=100, seed=70_002) < 0.6  # far beyond the training's lists
    assert sum(file.stat().st_size for file in embedded.path(name).iterdir()) < 1_000_000
    with pytest.raises(UnknownName, match="list-item"):
        embedded.path("list-shape")
