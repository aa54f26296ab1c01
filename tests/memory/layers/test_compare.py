"""The comparison of layers: its probe, its budgets, models that are shipped or trained on the spot, its command."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from workbench.cli import app
from workbench.compare import layers as task
from workbench.errors import BadInput, UnknownName
from workbench.memory.base import MEMORIES
from workbench.memory.layers.base import layer_names
from workbench.memory.layers.linear_attention import LinearAttention
from workbench.tasks.pairs import KEYS, PAIRS, VALUES, PairConfig, PairModel, pair_loss, pair_stream
from workbench.training import tiny


class Registered(LinearAttention):
    """A layer of somebody else."""

    slug = "registered-elsewhere"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 1}, {"heads": 2})


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    monkeypatch.setattr(task, "RECIPE", replace(task.RECIPE, steps=40, batch=8))
    monkeypatch.setattr(task, "LEARN", 200)
    MEMORIES.register("registered-elsewhere")(Registered)
    yield tmp_path
    MEMORIES._known.pop("registered-elsewhere", None)


def test_a_stream_tells_each_key_once_and_asks_it_once() -> None:
    pool = pair_stream(50, pairs=5, keys=7, values=3, seed=4)
    told, asked = pool.ids[:, :5], pool.ids[:, 5:]
    for row in range(50):
        pairs = {int(i) // 4: int(i) % 4 for i in told[row]}
        assert len(pairs) == 5
        assert 0 not in pairs.values()
        assert [pairs[int(i) // 4] for i in asked[row]] == pool.targets[row, 5:].tolist()
    assert (asked % 4 == 0).all()
    assert (pool.targets[:, :5] == -100).all()
    assert not torch.equal(pool.ids, pair_stream(50, pairs=5, keys=7, values=3, seed=5).ids)
    values = np.bincount(pair_stream(500, seed=1).targets[:, PAIRS:].numpy().ravel(), minlength=VALUES + 1)
    assert values[0] == 0
    assert values[1:].min() > 0.7 * 500 * PAIRS / VALUES  # chance is one in VALUES


def test_an_exact_memory_solves_the_probe_and_a_blank_one_guesses() -> None:
    """A delta rule with hand-made weights: orthogonal keys, each write complete, the value read out as it is."""
    size = KEYS + VALUES
    settings = {"mixer": "delta-net", "heads": 1, "key_dim": KEYS, "value_dim": VALUES, "conv": 0}
    model = PairModel(PairConfig(dim=size, mixers=[settings]))
    mixer, eye = model.blocks[0].mixer, torch.eye(size)
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.weight[1 : VALUES + 1, KEYS:] = torch.eye(VALUES)
        model.embed.weight[VALUES + 1 :, :KEYS] = torch.eye(KEYS)
        mixer.to_qkv.weight.copy_(torch.cat([eye[:KEYS], eye[:KEYS], eye[KEYS:]]))
        mixer.to_beta.weight.zero_()
        mixer.to_beta.weight[:, KEYS:] = 20  # a token with a value is written, a question is not
        mixer.to_beta.bias.fill_(-20)
        mixer.to_out.weight.copy_(eye[:, KEYS:])
        model.lm_head.weight.zero_()
        model.lm_head.weight[1:, KEYS:] = torch.eye(VALUES)
    fresh = pair_stream(200, seed=3)
    batch = {"input_ids": fresh.ids, "targets": fresh.targets}
    assert pair_loss(model, batch)[1] == 1
    with torch.no_grad():
        mixer.to_out.weight.zero_()
    assert pair_loss(model, batch)[1] < 0.1


def test_lines_are_named_by_what_tells_them_apart() -> None:
    assert {line.slug for line in task.lines()} == set(layer_names())
    names = [line.name for line in task.lines(["sliding-window-attention", "gla"])]
    assert names == ["sliding-window-attention (window=8)", "sliding-window-attention (window=None)", "gla"]
    with pytest.raises(UnknownName, match="linear-attention"):
        task.lines(["linear-atention"])


@pytest.mark.parametrize("line", task.lines(), ids=lambda line: line.name)
def test_every_line_can_be_built_at_every_width(line: task.Line) -> None:
    sizes = []
    for dim in task.DIMS:
        model, pool = line.model(dim), pair_stream(2, seed=1)
        loss, _ = pair_loss(model, {"input_ids": pool.ids, "targets": pool.targets})
        loss.backward()
        assert torch.isfinite(loss)
        sizes.append(model.blocks[0].mixer.state_bytes(1, 2 * PAIRS))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_a_registered_layer_joins_and_is_trained_on_the_spot(elsewhere) -> None:
    frame = task.compare(["registered-elsewhere"], dims=(8,), seeds=(10, 11))
    assert list(frame["line"]) == ["registered-elsewhere (heads=1)", "registered-elsewhere (heads=2)"]
    assert set(frame["source"]) == {"trained here"}
    assert list(frame["bytes"]) == [8 * 9 * 4, 2 * 4 * 5 * 4]
    assert frame["accuracy"].between(0, 1).all()
    assert (frame["low"] <= frame["accuracy"]).all()


def test_what_was_saved_is_evaluated_and_not_trained_again(elsewhere) -> None:
    first = task.compare(["registered-elsewhere"], dims=(8, 16), seeds=(10,), save=True)
    again = task.compare(["registered-elsewhere"], dims=(8, 16))
    assert set(again["source"]) == {"shipped"}
    np.testing.assert_allclose(again["accuracy"], first["accuracy"], atol=0.02)  # stored in half precision
    assert again["low"].isna().all()  # one seed has no interval
    about = tiny.bundle_record(task.shipped_path())
    assert about["recipe"]["steps"] == 40
    assert set(task.compare(["registered-elsewhere"], dims=(8,), seeds=(10,), anew=True)["source"]) == {"trained here"}


def test_every_memory_of_the_house_is_shipped_and_recalls_better_with_a_larger_state() -> None:
    held = tiny.bundle_record(task.shipped_path())["models"]
    built_in = [line for line in task.lines() if MEMORIES.home(line.slug)]
    wanted = {line.variant(dim, seed) for line in built_in for dim in task.DIMS for seed in task.SEEDS}
    assert wanted - set(held) == set()
    frame = task.compare(["delta-net", "linear-attention", "base-conv"])
    assert set(frame["source"]) == {"shipped"}
    assert set(frame["seeds"]) == {3}
    for name in ("delta-net", "linear-attention"):
        small, middle, large = frame.loc[frame["line"] == name, "accuracy"]
        assert small < middle < large
        assert large > 0.95
    assert (frame.loc[frame["line"] == "base-conv", "accuracy"] < 0.06).all()  # two tokens of state recall nothing


def test_a_budget_takes_the_best_point_that_fits() -> None:
    frame = pd.DataFrame(
        {"line": ["a", "a", "b"], "bytes": [100, 400, 1000], "accuracy": [0.5, 0.4, 0.9]}
    )  # the wider one of "a" is the worse one
    table = task.at_budget(frame, (50, 500, 5000))
    assert table.loc["a"].tolist()[1:] == [0.5, 0.5]
    assert table.loc["b", 5000] == 0.9
    assert np.isnan([table.loc["a", 50], table.loc["b", 500]]).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pair_stream(0), "streams"),
        (lambda: pair_stream(1, pairs=33), "32 keys"),
        (lambda: pair_stream(1, values=0), "values"),
        (lambda: PairConfig(keys=1), "keys"),
        (lambda: task.compare(dims=()), "dims"),
        (lambda: task.compare(dims=(0,)), "dims"),
        (lambda: task.compare(dims=8), "dims"),
        (lambda: task.compare("gla"), "names='gla'"),
        (lambda: task.compare([]), "names"),
        (lambda: task.compare(["gla"], seeds=()), "seeds"),
        (lambda: task.compare(["gla"], seeds=3), "seeds"),
        (lambda: task.compare(["gla"], device="tpu"), "device"),
        (lambda: task.at_budget(pd.DataFrame({"line": ["a"]})), "no bytes, accuracy"),
    ],
)
def test_bad_input_is_named(call: Any, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        call()


def test_the_command_prints_a_table_json_and_a_chart(elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "DIMS", (8,))
    chart = elsewhere / "recall.svg"
    ran = CliRunner().invoke(app, ["compare", "layers", "registered-elsewhere", "-o", str(chart)])
    assert ran.exit_code == 0, ran.output
    assert "registered-elsewhere (heads=2) *" in ran.stdout
    assert "registered-elsewhere (heads=2), width 8" in ran.stderr  # the bar's
    assert "not counted" in ran.stdout
    assert "<svg" in chart.read_text()
    ran = CliRunner().invoke(app, ["compare", "layers", "registered-elsewhere", "--json"])
    told = json.loads(ran.stdout)
    assert [row["low"] for row in told["rows"]] == [None, None]
    assert told["rows"][0]["bytes"] == 288
    assert "weights are not counted" in told["equal_state"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nothing"], "sequence memory"),
        (["gla", "-o", "x.gif"], "x.gif"),
        (["gla", "-o", "no/such/folder/x.svg"], "there is no folder no/such/folder"),
        (["gla", "--seeds", "0"], "seeds"),
        (["gla", "--device", "tpu"], "device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
    ],
)
def test_the_command_refuses_before_it_trains(arguments: list[str], match: str) -> None:
    ran = CliRunner().invoke(app, ["compare", "layers", *arguments])
    assert ran.exit_code == 2
    assert match in ran.stderr
