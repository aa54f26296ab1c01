"""Tiny trainings on the card: a recorded step is the step, whichever way the seeds are run; killed runs go on."""

from __future__ import annotations

import pytest
import torch

from workbench.models.mixer import MixerConfig, MixerLM
from workbench.training.tiny import Pool, Recipe, seconds_a_step, train
from workbench_datasets.mqar import mqar

SLUGS = ("gated-delta-net", "linear-attention", "titans", "mom")
RECIPE = Recipe(steps=16, batch=8, lr=3e-3, warmup=4, checkpoint_every=5, log_every=5)


def builder(slug, double=True):
    def build(seed):
        model = MixerLM(MixerConfig(vocab_size=32, dim=16, mixers=[{"mixer": slug, "heads": 2}] * 2))
        return model.double() if double else model

    return build


def pool(seed=0, n=64):
    made = mqar(n, pairs=2, length=24, vocabulary=32, seed=seed)
    return Pool(made.ids, made.targets)


def losses(trained):
    return torch.tensor(trained.losses["loss"].to_numpy())


@pytest.mark.parametrize("slug", SLUGS)
def test_stacked_and_recorded_steps_are_plain_ones(slug):
    plain = train(builder(slug), pool(), RECIPE, (0, 1), device="cuda", stack=False, graph=False)
    for stack, graph in ((True, False), (False, True), (True, True)):
        other = train(builder(slug), pool(), RECIPE, (0, 1), device="cuda", stack=stack, graph=graph)
        assert other.how == f"{'stacked' if stack else 'in turn'}, {'graph' if graph else 'eager'}"
        torch.testing.assert_close(losses(other), losses(plain), rtol=1e-7, atol=1e-7)
        for one, two in zip(other.models, plain.models, strict=True):
            for p, q in zip(one.parameters(), two.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_the_card_draws_the_batches_that_the_processor_draws():
    card = train(builder("gated-delta-net"), pool(), RECIPE, (0, 1), device="cuda")
    processor = train(builder("gated-delta-net"), pool(), RECIPE, (0, 1), device="cpu")
    # the rate and AdamW's bias corrections are float32 tensors on the card; another batch would differ by a tenth
    torch.testing.assert_close(losses(card), losses(processor), rtol=1e-4, atol=1e-4)


def test_a_curriculum_of_equal_and_other_sizes_is_followed_by_the_graph():
    first, second, third = pool(1), pool(2), pool(3, n=100)

    def stage(step):
        return first if step < 6 else second if step < 10 else third

    recorded = train(builder("gated-delta-net"), stage, RECIPE, (0,), device="cuda")
    plain = train(builder("gated-delta-net"), stage, RECIPE, (0,), device="cuda", stack=False, graph=False)
    torch.testing.assert_close(losses(recorded), losses(plain), rtol=1e-7, atol=1e-7)


def test_a_stopped_run_goes_on_under_a_graph(tmp_path):
    class Stopped(Exception):
        pass

    def stopping(steps, label):
        for step in steps:
            if step == 12:
                raise Stopped
            yield step

    settings = {"device": "cuda", "checkpoint": tmp_path / "run.safetensors"}
    build = builder("gated-delta-net")
    with pytest.raises(Stopped):
        train(build, pool(), RECIPE, (0, 1), progress=stopping, **settings)
    again = train(build, pool(), RECIPE, (0, 1), **settings)
    whole = train(build, pool(), RECIPE, (0, 1), device="cuda")
    torch.testing.assert_close(losses(again), losses(whole), rtol=1e-7, atol=1e-7)


def test_a_model_that_looks_at_values_falls_back_and_says_so():
    class Looking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(32, 8), torch.nn.Linear(8, 32)

        def forward(self, input_ids):
            from types import SimpleNamespace

            x = self.embed(input_ids)
            return SimpleNamespace(logits=self.head(-x if bool(x.abs().sum() > 1e9) else x))

    made = train(lambda seed: Looking(), pool(), RECIPE, (0, 1), device="cuda")
    assert made.complete
    assert made.how.startswith("in turn, eager, not stacked")
    assert "no graph" in made.how


def test_a_recorded_step_is_faster_than_a_plain_one():
    """A ratio in one run: a hundred launches against one."""
    build = builder("gated-delta-net", double=False)
    plain = seconds_a_step(build, pool(), RECIPE, (0, 1, 2), device="cuda", stack=False, graph=False)
    recorded = seconds_a_step(build, pool(), RECIPE, (0, 1, 2), device="cuda")
    assert recorded < 0.5 * plain
