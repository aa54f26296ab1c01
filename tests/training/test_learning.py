"""Training works end to end: a two-layer gated DeltaNet learns to recall four pairs within seconds on one thread."""

import time

from workbench.models.mixer import MixerConfig, MixerLM
from workbench.tasks.recall import recall
from workbench.training.tiny import Recipe, load_bundle, save_bundle, train
from workbench_datasets.mqar import mqar


def test_a_gated_delta_net_learns_to_recall_four_pairs(tmp_path):
    def build(seed):
        # without the output gate: it multiplies the read by a random sign at first, which costs some 300 steps more
        mixer = {"mixer": "gated-delta-net", "heads": 2, "conv": 4, "gate": False}
        return MixerLM(MixerConfig(vocab_size=64, dim=64, mixers=[mixer, mixer]))

    given = {"pairs": 4, "length": 24, "vocabulary": 64}
    recipe = Recipe(steps=350, batch=32, lr=5e-3, warmup=30, next_token=0.0)
    begun = time.process_time()
    made = train(build, mqar(20_000, **given), recipe, (1,), device="cpu")
    assert time.process_time() - begun < 60
    fresh = mqar(500, **given, split="test")
    score = recall(made.models[0], fresh)
    assert score.low[0] > 0.9
    assert score.chance[0] == 0.25
    path = save_bundle(tmp_path / "learned.safetensors", {"a": made.models[0]}, made.record)
    assert path.stat().st_size < 1 << 18
    assert abs(recall(load_bundle(path)["a"], fresh).accuracy[0] - score.accuracy[0]) < 0.01
