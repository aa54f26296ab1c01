"""The recipe runner on a tiny model: same seed same curve, a kill changes nothing, packing never mixes documents."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from workbench.errors import BadInput, ModelError, UnknownName
from workbench.training import train_embedded
from workbench.training.embedded import shipped_tokenizer
from workbench.training.mixture import MIXTURE, world_makers
from workbench.training.stream import Stream, StreamSpec, batches

STEPS = 12
#: Waits after the seventh step to be killed: on a busy machine the others may be over before anybody has looked.
TRAIN = """
import signal, torch
from workbench.training import loop, train_embedded
torch.set_num_threads(1)
log = loop.Run._log
def log_and_wait(run, *words):
    log(run, *words)
    if run.step == 7:
        signal.pause()
loop.Run._log = log_and_wait
train_embedded("embedded-relu", {out!r}, steps={steps}, size="tiny", device="cpu", progress=False)
"""


def tiny(out, **settings):
    torch.set_num_threads(1)
    settings = {"steps": STEPS, "size": "tiny", "device": "cpu", "progress": False, **settings}
    return train_embedded("embedded-relu", out, **settings)


def curve(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("whole"))


def test_loss_falls_and_recipe_is_recorded(whole):
    losses = curve(whole)
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.1
    recipe = json.loads((whole / "recipe.json").read_text())
    assert recipe["complete"] is True
    assert recipe["tokens"] == STEPS * recipe["batch_tokens"]


def test_killed_run_resumes_to_the_same_curve_and_weights(whole, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", TRAIN.format(out=str(out), steps=STEPS)])
    log = out / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and len(log.read_text().splitlines()) >= 7):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "model.safetensors").exists()
    tiny(out)
    assert curve(out) == curve(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_budget_stops_with_a_whole_checkpoint_and_the_rest_follows(whole, tmp_path):
    out = tiny(tmp_path, budget_seconds=0.0)
    assert json.loads((out / "recipe.json").read_text())["complete"] is False
    tiny(out)
    assert curve(out) == curve(whole)


def test_checkpoint_of_another_recipe_is_refused(whole):
    with pytest.raises(ModelError, match="another run"):
        tiny(whole, seed=5)


def test_trained_folder_loads_with_plain_transformers(whole):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(whole), AutoTokenizer.from_pretrained(whole)
    with torch.no_grad():
        logits = model.float()(torch.tensor([tokenizer("Where does he live?")["input_ids"]])).logits
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"variant": "embeded"}, UnknownName), ({"size": "huge"}, BadInput), ({"steps": 0}, BadInput)],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, settings, error):
    with pytest.raises(error, match=r"expected|did you mean"):
        train_embedded(out=tmp_path / "x", **{"size": "tiny", **settings})
    assert not (tmp_path / "x").exists()


def spec():
    return StreamSpec(str(shipped_tokenizer()), batch_tokens=2048, context=512, batches_per_shard=2)


def test_stream_is_reproducible_from_any_step():
    first = [b.tokens for _, b in zip(range(5), batches(spec()))]
    later = [b.tokens for _, b in zip(range(2), batches(spec(), start=3))]
    assert all((a == b).all() for a, b in zip(first[3:], later))
    assert not (first[0] == first[1]).all()


def test_batches_are_full_and_weigh_answers():
    batch = Stream(spec()).shard(0)[0]
    assert len(batch.tokens) == len(batch.inputs) == len(batch.weights) == batch.lengths.sum() == 2048
    assert batch.lengths.max() <= 512
    assert (batch.weights > 1).any()
    starts = np.concatenate([[0], np.cumsum(batch.lengths)[:-1]])
    assert (batch.weights[starts] == 0).all()


def test_every_portion_has_a_maker_and_a_reason():
    from workbench_datasets.small_world import world

    makers = world_makers(world())
    for portion in MIXTURE:
        assert portion.kind in {*makers, "books", "repeat"}
        assert portion.reason
        assert portion.share > 0


def test_packed_attention_equals_documents_apart():
    from workbench.training.packed import packed_attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, 30, 8, generator=generator) for h in (4, 2, 2))
    ends = [0, 7, 8, 30]
    out, _ = packed_attention(None, q, k, v, None, cu_seqlens=torch.tensor([*ends, 30, 30]), longest=30)
    for a, b in itertools.pairwise(ends):
        alone, _ = packed_attention(
            None, q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], None, cu_seqlens=torch.tensor([0, b - a]), longest=30
        )
        torch.testing.assert_close(out[:, a:b], alone)
