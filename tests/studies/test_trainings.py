"""Variants trained in turn: what is left out is said, what is a mistake is raised, losses are means by step."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
import torch

from workbench.errors import BadInput
from workbench.models.mixer import MixerConfig, MixerLM
from workbench.studies import _titans_trained as outer
from workbench.studies import titans
from workbench.studies._trainings import had, learned, made_by
from workbench.studies.base import Progress
from workbench.training import tiny
from workbench.training.tiny import Pool, Recipe, train


def made(mixer: str = "linear-attention", **options: float):
    ids = torch.randint(1, 9, (8, 6), generator=torch.Generator().manual_seed(0))
    config = {"vocab_size": 9, "dim": 8, "mixers": [{"mixer": mixer, "heads": 2}]}
    return train(lambda _: MixerLM(MixerConfig(**config)), Pool(ids, ids), Recipe(steps=5, warmup=1), (0, 1),
                 device="cpu", **options)  # fmt: skip


def test_what_cannot_be_had_whole_is_left_out_and_said(capsys):
    progress = Progress()

    def without_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert had("a", made, 1.0, progress).complete
    assert had("b", made, 0.0, progress) is None
    assert had("c", partial(made, budget_seconds=1e-9), 1.0, progress) is None
    assert had("d", without_memory, 1.0, progress) is None
    said = capsys.readouterr().err
    for line in ("b: left out, the time is up", "c: left out, the time was up", "d: left out, OutOfMemoryError"):
        assert line in said
    assert "a:" not in said


def test_settings_that_no_model_can_have_are_raised():
    with pytest.raises(BadInput, match="budget_seconds"):
        had("a", partial(made, "sliding-window-attention", budget_seconds=-1.0), 1.0, Progress())


def test_losses_are_means_of_the_steps_up_to_a_point():
    losses = pd.DataFrame({"seed": [7] * 5 + [3] * 5, "step": [*range(1, 6)] * 2, "loss": range(10), "right": 0.5})
    found = list(learned(losses, 2))
    assert [row for row in found if row[2] == "loss"] == [
        (2, 1, "loss", 5.5), (4, 1, "loss", 7.5), (6, 1, "loss", 9), (2, 0, "loss", 0.5), (4, 0, "loss", 2.5),
        (6, 0, "loss", 4),
    ]  # fmt: skip
    assert {row[3] for row in found if row[2] == "right"} == {0.5}


def test_what_ships_says_which_seed_and_curriculum_made_it():
    found = made_by(made(), {"stages": [[1.0, 6, 2]], "sequences": 8, "groups": 3})
    assert (found["steps"], found["seeds"], found["stages"], found["sequences"]) == (5, [0], [[1.0, 6, 2]], 8)
    assert "groups" not in found


TITANS = {
    "device": "cpu", "seeds": 1, "recipe": {"steps": 4, "batch": 2, "warmup": 1}, "train_seconds": 1e9,
    "timed_steps": 1, "relative_cost": 2.0, "stages": [[0.5, 32, 2], [0.5, 40, 3]], "sequences": 40, "deadline": 1e9,
    "lengths": [48], "distance_length": 48, "test_facts": 4, "facts": [2], "facts_length": 48, "test_sequences": 4,
    "groups": 2, "batch_tokens": 1_000, "cost_lengths": [8], "cost_repeats": 1,
}  # fmt: skip


def test_a_full_run_of_titans_in_small_trains_asks_ships_and_says_what_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    known = {name: outer.VARIANTS[name] for name in (outer.LMM, outer.WINDOW)}
    monkeypatch.setattr(outer, "VARIANTS", {**known, "broken": {"mixer": "titans", "depth": 0}})
    frame = pd.DataFrame(titans._trained(TITANS, 0, Progress()))
    assert set(frame["part"]) == {"cost", "training", "length", "distance", "facts"}
    assert set(frame[frame["part"] == "length"]["variant"]) == set(known)
    assert frame[frame["metric"] == "failed"]["variant"].tolist() == ["broken"]
    assert "broken failed" in capsys.readouterr().err
    record = tiny.bundle_record(tiny.bundle_path("titans"))
    assert set(record["models"]) == set(known)
    assert (record["recipe"]["seeds"], record["recipe"]["stages"]) == ([1_000], TITANS["stages"])
    late = pd.DataFrame(titans._trained({**TITANS, "deadline": 0.0}, 0, Progress()))
    assert set(late["part"]) == {"cost", "training"}
    assert capsys.readouterr().err.count("left out") == 3
