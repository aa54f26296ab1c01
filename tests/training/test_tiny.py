"""Tiny trainings: stacked equals apart, a killed run goes on as if nothing had happened, bad input is refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny_kit as kit
import torch

from workbench.errors import BadInput, BundleError, ModelError
from workbench.training.tiny import Pool, Recipe, answer_loss, faster_way, fitted, seconds_a_step, train

HERE = Path(__file__).parent


def weights(trained):
    return [{name: p.detach().clone() for name, p in model.named_parameters()} for model in trained.models]


def same(a, b, **close):
    for one, other in zip(weights(a), weights(b), strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], **(close or {"rtol": 0, "atol": 0}))


def test_stacked_seeds_are_trained_as_each_by_itself():
    recipe = Recipe(steps=15, batch=6, lr=5e-3, warmup=3, clip=0.5)
    stacked = train(kit.build_double, kit.pool(), recipe, (3, 5), device="cpu", stack=True)
    in_turn = train(kit.build_double, kit.pool(), recipe, (3, 5), device="cpu", stack=False)
    assert stacked.how.startswith("stacked")
    assert in_turn.how.startswith("in turn")
    same(stacked, in_turn, rtol=1e-9, atol=1e-9)
    for place, seed in enumerate((3, 5)):
        alone = train(kit.build_double, kit.pool(), recipe, (seed,), device="cpu")
        for name, value in weights(alone)[0].items():
            torch.testing.assert_close(value, weights(stacked)[place][name], rtol=1e-9, atol=1e-9)
    assert not torch.equal(weights(stacked)[0]["head.weight"], weights(stacked)[1]["head.weight"])


def test_a_step_is_adamw_with_clipping_as_torch_does_it():
    """Against a plain loop with torch's own clipping and optimiser on the batches that the run draws."""
    recipe = Recipe(steps=6, batch=5, lr=5e-3, warmup=2, clip=0.3, weight_decay=0.2, next_token=0.1)
    drawn = []

    def spying(run, batch):
        drawn.append(batch)
        return answer_loss(0.1)(run, batch)

    ours = train(kit.build_double, kit.pool(), recipe, (1,), device="cpu", loss=spying)
    torch.manual_seed(1)
    model = kit.build_double(1)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1.0, betas=recipe.betas)
    for step, batch in enumerate(drawn):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        logits, targets, ids = model(batch["input_ids"]).logits, batch["targets"], batch["input_ids"]
        asked = targets >= 0
        answers = torch.nn.functional.cross_entropy(logits[asked], targets[asked])
        follows = ~asked[:, :-1]
        following = torch.nn.functional.cross_entropy(logits[:, :-1][follows], ids[:, 1:][follows])
        loss = answers + 0.1 * following
        assert ours.losses.loss[step] == pytest.approx(loss.item(), rel=1e-10)
        share = (logits.argmax(-1) == targets)[asked].double().mean().item()
        assert ours.losses.right[step] == pytest.approx(share)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimiser.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, weights(ours)[0][name], rtol=1e-8, atol=1e-10)


def test_loss_falls_and_the_record_says_what_was_done():
    recipe = Recipe(steps=150, batch=16, lr=1e-2, warmup=10, next_token=0.0)
    made = train(kit.build, kit.pool(256), recipe, (0,), device="cpu")
    assert made.losses.loss[-10:].mean() < 0.9 * made.losses.loss[:10].mean()
    assert made.complete
    assert list(made.losses.columns) == ["seed", "step", "loss", "right", "lr"]
    assert made.losses.step.tolist() == list(range(1, 151))
    assert made.record["recipe"]["steps"] == 150
    assert made.record["recipe"]["data_seed"] == 0
    assert made.record["seeds"] == [0]
    assert made.record["sequences"] == 256
    assert not made.models[0].training


def test_data_order_follows_its_seed_and_initial_weights_theirs():
    base = train(kit.build, kit.pool(), kit.RECIPE, (0, 1), device="cpu")
    again = train(kit.build, kit.pool(), kit.RECIPE, (0, 1), device="cpu")
    same(base, again)
    other = Recipe(**{**kit.RECIPE.__dict__, "data_seed": 1})
    moved = train(kit.build, kit.pool(), other, (0, 1), device="cpu")
    assert moved.losses.loss[0] != base.losses.loss[0]


def test_batches_are_drawn_evenly_and_differ_by_seed_and_step():
    seen = []

    def counting(run, batch):
        seen.append(batch["input_ids"][:, 0].tolist())
        return answer_loss()(run, batch)

    ids = np.tile(np.arange(20)[:, None], (1, 4))  # the first token names the row
    targets = np.full((20, 4), -100)
    targets[:, -1] = 1
    train(kit.build, Pool(ids, targets), Recipe(steps=100, batch=50, warmup=1), (0, 1), device="cpu", loss=counting)
    assert len({tuple(rows) for rows in seen}) == 200
    counts = np.bincount(np.concatenate(seen), minlength=20)
    assert ((counts - 500) ** 2 / 500).sum() < 44  # chi squared, 19 degrees: 99.9 %


def test_extras_come_with_their_sequences():
    made = kit.pool()
    marked = Pool(made.ids, made.targets, {"scale": torch.arange(64, dtype=torch.float32)})
    rows = {row.tobytes(): i for i, row in enumerate(made.ids.numpy())}

    def looking(run, batch):
        for ids, scale in zip(batch["input_ids"], batch["scale"]):
            assert rows[ids.to(torch.int32).numpy().tobytes()] == int(scale)
        return run(input_ids=batch["input_ids"], scale=batch["scale"]).logits.square().mean()

    trained = train(kit.build, marked, Recipe(steps=3, warmup=1), (0,), device="cpu", loss=looking)
    assert trained.losses.right.isna().all()  # a loss without a share of right answers


def test_a_curriculum_changes_the_pool_at_its_steps():
    short, long = kit.pool(32, seed=1), kit.pool(64, seed=2)
    calls = []

    def stage(step):
        calls.append(step)
        return short if step < 4 else long

    sizes = []

    def looking(run, batch):
        known = {row.tobytes() for row in short.ids.numpy()}
        sizes.append(sum(row.numpy().tobytes() in known for row in batch["input_ids"].to(torch.int32)))
        return answer_loss()(run, batch)

    train(kit.build, stage, Recipe(steps=8, batch=8, warmup=1), (0,), device="cpu", loss=looking)
    assert sizes == [8] * 4 + [0] * 4
    assert set(calls) == set(range(8))


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    whole = train(kit.build_with_dropout, kit.pool(), kit.RECIPE, (0, 1), device="cpu")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*sys.path])), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "tiny_kit.py"), str(checkpoint)], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 15:  # checkpoints stand at 6 and 12
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    done = []

    def watched(steps, label):
        done.extend(steps)
        return done

    resumed = train(
        kit.build_with_dropout, kit.pool(), kit.RECIPE, (0, 1), device="cpu", checkpoint=checkpoint, progress=watched
    )
    assert done[0] == 12
    same(whole, resumed)
    assert whole.losses.equals(resumed.losses)
    finished = train(kit.build_with_dropout, kit.pool(), kit.RECIPE, (0, 1), device="cpu", checkpoint=checkpoint)
    same(whole, finished)


def test_a_used_up_budget_leaves_a_checkpoint_to_go_on_from(tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    part = train(kit.build, kit.pool(), kit.RECIPE, (0,), device="cpu", checkpoint=checkpoint, budget_seconds=1e-6)
    assert not part.complete
    assert part.record["steps_done"] == 1
    rest = train(kit.build, kit.pool(), kit.RECIPE, (0,), device="cpu", checkpoint=checkpoint)
    assert rest.complete
    same(rest, train(kit.build, kit.pool(), kit.RECIPE, (0,), device="cpu"))


def test_checkpoints_of_another_run_and_damaged_ones_are_refused(tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    train(kit.build, kit.pool(), kit.RECIPE, (0,), device="cpu", checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(ModelError, match="seeds differ"):
        train(kit.build, kit.pool(), kit.RECIPE, (1,), device="cpu", checkpoint=checkpoint)
    with pytest.raises(ModelError, match="data differ"):
        train(kit.build, kit.pool(seed=9), kit.RECIPE, (0,), device="cpu", checkpoint=checkpoint)
    with pytest.raises(ModelError, match="recipe differ"):
        train(kit.build, kit.pool(), Recipe(steps=30, warmup=4), (0,), device="cpu", checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before
    checkpoint.write_bytes(before[: len(before) // 2])
    with pytest.raises(BundleError, match="damaged"):
        train(kit.build, kit.pool(), kit.RECIPE, (0,), device="cpu", checkpoint=checkpoint)


def test_a_loss_that_is_not_finite_is_named_or_kept():
    def exploding(run, batch):
        loss, right = answer_loss()(run, batch)
        return loss * float("nan"), right

    recipe = Recipe(steps=4, warmup=1, log_every=2)
    with pytest.raises(ModelError, match="seed 0 is not finite before step 2"):
        train(kit.build, kit.pool(), recipe, (0,), device="cpu", loss=exploding)
    kept = train(kit.build, kit.pool(), recipe, (0,), device="cpu", loss=exploding, diverged="keep")
    assert kept.losses.loss.isna().all()


def test_one_diverging_seed_does_not_touch_the_others():
    def build(seed):
        model = kit.build_double(seed)
        if seed == 7:
            torch.nn.init.constant_(model.head.weight, float("inf"))
        return model

    recipe = Recipe(steps=5, warmup=1)
    for stack in (True, False):
        pair = train(build, kit.pool(), recipe, (0, 7), device="cpu", stack=stack, diverged="keep")
        alone = train(build, kit.pool(), recipe, (0,), device="cpu")
        assert pair.losses[pair.losses.seed == 7].loss.isna().all()
        for name, value in weights(alone)[0].items():
            torch.testing.assert_close(value, weights(pair)[0][name], rtol=1e-9, atol=1e-9)


def test_steps_are_fitted_to_a_budget_by_a_rule():
    recipe = Recipe(steps=1000, warmup=100)
    assert fitted(recipe, 0.01, 100) == recipe
    less = fitted(recipe, 0.1, 50)
    assert (less.steps, less.warmup) == (500, 50)
    with pytest.raises(BadInput, match="hold 20 steps"):
        fitted(recipe, 0.1, 2)


def test_the_rate_warms_up_and_falls_to_its_share():
    cosine = Recipe(steps=110, warmup=10, lr=1.0, final_share=0.1)
    assert [cosine.rate(s) for s in (0, 9)] == [0.1, 1.0]
    assert cosine.rate(10) == 1.0
    assert cosine.rate(60) == pytest.approx(0.55)
    assert cosine.rate(110) == pytest.approx(0.1)
    assert Recipe(steps=110, warmup=10, lr=1.0, final_share=0.1, schedule="linear").rate(60) == pytest.approx(0.55)
    assert Recipe(steps=110, warmup=10, lr=1.0, schedule="constant").rate(100) == 1.0


def test_numpys_numbers_become_plain_ones():
    made = Recipe(steps=np.int64(100), batch=np.int32(8), lr=np.float32(0.5), data_seed=np.uint8(3))
    assert json.dumps(asdict(made)) == json.dumps(asdict(Recipe(steps=100, batch=8, lr=0.5, data_seed=3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number .*, got 0"),
        ({"steps": 10.5}, "steps must be a whole number .*, got 10.5"),
        ({"batch": 0}, "batch must be a whole number .*, got 0"),
        ({"lr": 0}, "lr must be a finite number .*, got 0"),
        ({"lr": float("nan")}, "lr must be a finite number .*, got nan"),
        ({"lr": -1e-3}, "lr must be a finite number .*, got -0.001"),
        ({"clip": 0}, "clip must be a finite number .*, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number .*, got -0.1"),
        ({"next_token": -1}, "next_token must be a finite number .*, got -1"),
        ({"final_share": 1.5}, "final_share must be a finite number .*, got 1.5"),
        ({"betas": (0.9, 1.0)}, "betas="),
        ({"betas": (0.9,)}, "betas="),
        ({"betas": 0.9}, "betas="),
        ({"schedule": "step"}, "schedule='step'"),
        ({"warmup": 100}, "never be reached"),
        ({"data_seed": -1}, "data_seed must be a whole number .*, got -1"),
    ],
)
def test_bad_recipes_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        Recipe(**{"steps": 100, **settings})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Pool(np.zeros((2, 3)), np.zeros((2, 3), int)), "ids must be whole numbers"),
        (lambda: Pool(np.zeros((2, 3), int), np.zeros((2, 4), int)), "one target a token"),
        (lambda: Pool(np.zeros((0, 3), int), np.zeros((0, 3), int)), "ids must be"),
        (lambda: Pool(np.full((2, 3), -1), np.zeros((2, 3), int)), "ids hold -1"),
        (lambda: Pool(np.zeros((2, 3), int), np.full((2, 3), -5)), "targets must be"),
        (lambda: Pool(np.zeros((2, 3), int), np.zeros((2, 3), int), {"a": np.zeros(3)}), "expected 2 rows"),
        (lambda: Pool(np.zeros((2, 3), int), np.zeros((2, 3), int), {"a": 1}), "expected 2 rows"),
        (lambda: train(kit.build, None, kit.RECIPE, (0,)), "a pool has ids"),
        (
            lambda: train(mixer_of(31), kit.pool(), kit.RECIPE, (0,), device="cpu"),
            "holds token 31, the model knows 0 to 30",
        ),
        (lambda: train(kit.build, kit.pool(), kit.RECIPE, 3), "seeds=3"),
        (lambda: train(kit.build, kit.pool(), kit.RECIPE, (0,), device="gpu"), "device must be 'auto', .*, got 'gpu'"),
        (lambda: train(kit.build, "text", kit.RECIPE, (0,)), "a pool has ids"),
        (lambda: train(kit.build, kit.pool(), kit.RECIPE, ()), "seeds="),
        (lambda: train(kit.build, kit.pool(), kit.RECIPE, (1, 1)), "seeds="),
        (lambda: train(kit.build, kit.pool(), kit.RECIPE, (0,), device="cuda"), "no CUDA device"),
        (lambda: train(kit.build, kit.pool(), kit.RECIPE, (0,), device="cpu", graph=True), "needs a CUDA device"),
        (lambda: train(kit.build, kit.pool(), kit.RECIPE, (0,), diverged="hide"), "diverged='hide'"),
        (lambda: train(kit.build, kit.pool(), kit.RECIPE, (0,), budget_seconds=0), "budget_seconds=0"),
        (lambda: train(lambda s: kit.Tiny(8 + 2 * s), kit.pool(), kit.RECIPE, (0, 1), device="cpu"), "one shape"),
        (lambda: train(lambda s: torch.nn.ReLU(), kit.pool(), kit.RECIPE, (0,), device="cpu"), "nothing to train"),
    ],
)
def test_bad_calls_are_refused(call, message):
    if "no CUDA" in message and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(BadInput, match=message):
        call()


def test_a_step_can_be_timed_without_training_anything():
    took = seconds_a_step(kit.build, kit.pool(), kit.RECIPE, (0,), device="cpu", steps=3)
    assert 0 < took < 5
    stack, took = faster_way(kit.build, kit.pool(), kit.RECIPE, (0, 1), device="cpu", steps=2)
    assert stack is False
    assert 0 < took < 5


def mixer_of(vocabulary):
    from workbench.models.mixer import MixerConfig, MixerLM

    return lambda seed: MixerLM(MixerConfig(vocabulary, 8, [{"mixer": "linear-attention", "heads": 2}]))


def test_padding_does_not_cost_the_stack():
    from workbench.models.mixer import MixerConfig, MixerLM
    from workbench_datasets.set_disjointness import sizes_pool

    made = sizes_pool([(2, 4), (4, 2), (2, 2)], 20, vocabulary=24, side="left")
    padded = Pool(made.ids, made.targets, {"attention_mask": (made.ids > 0).astype("int64")})

    def build(seed):
        return MixerLM(MixerConfig(vocab_size=24, dim=8, mixers=[{"mixer": "linear-attention", "heads": 2, "conv": 2}]))

    recipe = Recipe(steps=3, batch=4, warmup=1)
    stacked = train(lambda seed: build(seed).double(), padded, recipe, (0, 1), device="cpu", stack=True)
    in_turn = train(lambda seed: build(seed).double(), padded, recipe, (0, 1), device="cpu", stack=False)
    same(stacked, in_turn, rtol=1e-9, atol=1e-9)


def test_a_model_that_vmap_cannot_take_is_trained_in_turn_and_says_so():
    class Looking(kit.Tiny):
        def forward(self, input_ids, scale=None):
            if float(self.head.weight.detach().sum()) > 1e9:
                input_ids = input_ids.flip(1)
            return super().forward(input_ids)

    from workbench.training._tiny_run import TinyRun

    made, cpu = kit.pool(), torch.device("cpu")
    run = TinyRun(lambda s: Looking(), lambda s: made, kit.RECIPE, (0, 1), cpu, answer_loss(), None, None)
    run.stacked = run.cuts = True  # what a GPU begins with
    run.advance()
    assert not run.stacked
    assert [reason.split(":")[0] for reason in run.why] == ["not stacked"]
    with pytest.raises(RuntimeError, match="vmap"):
        train(lambda s: Looking(), kit.pool(), kit.RECIPE, (0, 1), device="cpu", stack=True)
