"""What a run goes on from: its own checkpoint, in any stage of a curriculum; and what it leaves as it was."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_kit as kit
import torch
from safetensors.torch import load_file

from workbench.errors import BadInput, ModelError
from workbench.models.mixer import MixerConfig, MixerLM
from workbench.training.tiny import Pool, Recipe, answer_loss, as_pool, train
from workbench_datasets.set_disjointness import sizes_pool


class Killed(Exception):
    pass


def until(last):
    """A progress bar that is killed before step ``last``."""

    def bar(steps, label):
        for step in steps:
            if step == last:
                raise Killed
            yield step

    return bar


def weights(trained):
    return [p.detach() for model in trained.models for p in model.parameters()]


def test_a_curriculum_leaves_its_pools_as_they_are_and_goes_on_in_any_stage(tmp_path):
    """Stages of one shape are loaded into the same memory on a GPU: that memory must not be the pools' own."""
    first, second, other = (kit.pool(seed=seed) for seed in (1, 2, 3))
    before, checkpoint = [pool.ids.clone() for pool in (first, second)], tmp_path / "run.safetensors"

    def trained(later, **options):
        return train(kit.build, lambda s: first if s < 9 else later, kit.RECIPE, (0, 1), device="cpu", **options)

    whole = trained(second)
    assert torch.equal(first.ids, before[0])
    assert torch.equal(second.ids, before[1])
    with pytest.raises(Killed):
        trained(second, checkpoint=checkpoint, progress=until(15))  # checkpoints stand at 6 and 12
    with pytest.raises(ModelError, match="latest data differ"):
        trained(other, checkpoint=checkpoint)
    resumed = trained(second, checkpoint=checkpoint)
    assert all(torch.equal(p, q) for p, q in zip(weights(whole), weights(resumed), strict=True))
    assert whole.losses.equals(resumed.losses)


def mixer(window):
    settings = {"mixer": "sliding-window-attention", "heads": 2, "window": window}
    return lambda seed: MixerLM(MixerConfig(kit.VOCABULARY, 8, [settings]))


def scaled(scale):
    made = kit.pool()
    return Pool(made.ids, made.targets, {"scale": np.full(len(made), scale, np.float32)})


@pytest.mark.parametrize(
    ("build", "pools", "message"),
    [((mixer(2), mixer(5)), (kit.pool(), kit.pool()), "model differ"),
     ((kit.build, kit.build), (scaled(1), scaled(2)), "data differ")],
)  # fmt: skip
def test_a_run_of_the_same_shapes_may_still_be_another(build, pools, message, tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    train(build[0], pools[0], kit.RECIPE, (0,), device="cpu", checkpoint=checkpoint, budget_seconds=1e-9)
    with pytest.raises(ModelError, match=message):
        train(build[1], pools[1], kit.RECIPE, (0,), device="cpu", checkpoint=checkpoint)
    assert train(build[0], pools[0], kit.RECIPE, (0,), device="cpu", checkpoint=checkpoint).complete


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    train(kit.build_with_dropout, kit.pool(), Recipe(steps=2, warmup=1), (0,), device="cpu")
    assert torch.equal(torch.rand(3), wanted)


def test_padded_sequences_are_masked_in_training_as_they_are_in_scoring():
    made = sizes_pool([(2, 4), (4, 8)], 20, vocabulary=32, side="left")
    assert torch.equal(as_pool(made).extras["attention_mask"], torch.as_tensor(made.ids > 0))
    assert not as_pool(sizes_pool([(2, 4), (4, 2)], 20, vocabulary=32)).extras
    marked = Pool(made.ids, made.targets, {"attention_mask": made.ids > 0})
    recipe = Recipe(steps=3, batch=4, warmup=1)
    losses = [train(mixer(4), pool, recipe, (0,), device="cpu").losses for pool in (made, marked)]
    assert losses[0].equals(losses[1])


def test_no_checkpoint_holds_weights_that_are_not_finite(tmp_path):
    """The loss of the last step before a checkpoint may be fine and its gradient not."""
    seen, checkpoint = [], tmp_path / "run.safetensors"

    def spoiling(run, batch):
        seen.append(1)
        loss, right = answer_loss()(run, batch)
        return loss + (0 * loss).sqrt() if len(seen) == 12 else loss, right  # the root's slope at 0 is infinite

    with pytest.raises(ModelError, match="weight of seed 0 is not finite before step 12"):
        train(kit.build, kit.pool(), replace(kit.RECIPE, log_every=50), (0,), device="cpu", checkpoint=checkpoint,
              loss=spoiling)  # fmt: skip
    held = load_file(checkpoint)
    assert held["history"].isfinite().sum() == 2 * 6
    assert all(value.isfinite().all() for name, value in held.items() if name != "history")


class Scaled(kit.Tiny):
    """With a number as a parameter, and a frozen embedding."""

    def __init__(self, frozen=True):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.embed.weight.requires_grad_(not frozen)

    def forward(self, input_ids, scale=None):
        return SimpleNamespace(logits=super().forward(input_ids).logits * self.scale)


@pytest.mark.parametrize("stack", [False, True])
def test_frozen_parameters_stay_and_numbers_are_learned(stack):
    build, recipe = lambda seed: Scaled(), Recipe(steps=3, batch=4, warmup=1, weight_decay=0.5)
    made = train(build, kit.pool(), recipe, (0, 1), device="cpu", stack=stack)
    for seed, model in zip((0, 1), made.models):
        torch.manual_seed(seed)
        assert torch.equal(model.embed.weight, Scaled().embed.weight)
        assert model.scale != 1
    frozen = lambda seed: Scaled().requires_grad_(False)  # noqa: E731
    with pytest.raises(BadInput, match="all frozen"):
        train(frozen, kit.pool(), recipe, (0,), device="cpu")
