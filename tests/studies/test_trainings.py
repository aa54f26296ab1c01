"""Variants trained in turn: what is left out is said, what is a mistake is raised, losses are means by step."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
import torch

from workbench.errors import BadInput
from workbench.models.mixer import MixerConfig, MixerLM
from workbench.studies._trainings import had, learned
from workbench.studies.base import Progress
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
