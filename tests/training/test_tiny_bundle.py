"""Bundles of trained models: what is saved is what is loaded, and what is damaged is refused by name."""

import pytest
import tiny_kit as kit
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workbench.errors import BadInput, BundleError, UnknownName
from workbench.models.mixer import MixerConfig, MixerLM
from workbench.training.tiny import (
    Recipe,
    bundle_path,
    bundle_record,
    bundle_target,
    load_bundle,
    save_bundle,
    ship,
    train,
)


def mixer(seed=0, tie=True, **settings):
    torch.manual_seed(seed)
    config = MixerConfig(
        vocab_size=32, dim=8, mixers=[{"mixer": "linear-attention", "heads": 2, **settings}, "based"], tie=tie
    )
    return MixerLM(config).eval()


@pytest.fixture
def made(tmp_path):
    models = {"linear/seed0": mixer(0), "linear/seed1": mixer(1), "untied": mixer(2, tie=False, conv=2)}
    return models, save_bundle(tmp_path / "models" / "x.safetensors", models, Recipe(steps=10, warmup=2))


def rewritten(path, change):
    """The file again, with ``change(tensors, metadata)`` applied."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = dict(file.metadata())
    change(tensors, about)
    save_file(tensors, path, about)


def test_models_come_back_with_their_config_and_weights(made):
    models, path = made
    loaded = load_bundle(path)
    assert list(loaded) == ["linear/seed0", "linear/seed1", "untied"]
    ids = torch.arange(12)[None]
    for variant, model in loaded.items():
        assert not model.training
        assert model.config.mixers == models[variant].config.mixers
        for (name, p), (_, q) in zip(model.named_parameters(), models[variant].named_parameters(), strict=True):
            assert p.dtype == torch.float32, name
            torch.testing.assert_close(p, q.half().float(), rtol=0, atol=0)
        torch.testing.assert_close(model(ids).logits, models[variant](ids).logits, rtol=2e-2, atol=2e-3)
    assert loaded["linear/seed0"].lm_head.weight is loaded["linear/seed0"].embed.weight
    assert list(load_bundle(path, ["untied"])) == ["untied"]


def test_float32_is_exact_and_the_header_says_how_the_models_were_made(tmp_path):
    model = mixer(3)
    made_by = {"recipe": {"steps": 3}, "seeds": [0]}
    path = save_bundle(tmp_path / "x.safetensors", {"a": model}, made_by, dtype="float32")
    again = load_bundle(path)["a"]
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)
    record = bundle_record(path)
    assert record["recipe"] == made_by
    assert record["stored"] == "float32"
    assert record["models"]["a"]["dim"] == 8
    assert record["code"]
    assert record["date"].endswith("Z")


def test_what_was_trained_can_be_shipped(tmp_path):
    trained = train(lambda seed: mixer(seed), kit.pool(), Recipe(steps=3, batch=4, warmup=1), (0, 1), device="cpu")
    path = save_bundle(tmp_path / "x.safetensors", dict(zip("ab", trained.models)), trained.record)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(load_bundle(path)["b"](ids).logits, trained.models[1](ids).logits, rtol=2e-2, atol=2e-3)
    assert bundle_record(path)["recipe"]["seeds"] == [0, 1]


def test_generator_state_is_left_alone(made):
    _, path = made
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_bundle(path)
    assert torch.equal(torch.rand(3), wanted)


def test_where_bundles_lie(monkeypatch, tmp_path):
    shipped = bundle_path("titans")
    assert shipped.parts[-3:] == ("models", "layers", "titans.safetensors")
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    own = bundle_target("titans")
    assert own == tmp_path / "models" / "layers" / "titans.safetensors"
    assert bundle_path("titans") == shipped
    save_bundle(own, {"a": mixer()}, {})
    assert bundle_path("titans") == own
    with pytest.raises(ValueError, match="did you mean 'titans'"):
        bundle_target("titan")


def test_damaged_bundles_are_refused(made, tmp_path):
    _, path = made
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(BundleError, match="damaged"):
            load_bundle(path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(path)
    with pytest.raises(BundleError, match="there is no file"):
        load_bundle(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(BundleError, match="not written by this workbench"):
        load_bundle(tmp_path / "other.safetensors")


def test_models_that_diverged_do_not_ship_and_cost_the_others_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    for value in (float("nan"), 1e6):
        bad = mixer(4)
        torch.nn.init.constant_(bad.norm.weight, value)
        assert not ship("mom", {"bad": bad}, {}).exists()
        assert list(load_bundle(ship("titans", {"bad": bad, "good": mixer()}, {}))) == ["good"]


def _without_a_weight(tensors, about):
    del tensors["untied/norm.weight"]


def _of_another_shape(tensors, about):
    tensors["untied/norm.weight"] = torch.zeros(9)


def _with_one_more(tensors, about):
    tensors["untied/blocks.7.weight"] = torch.zeros(9)


def _of_a_later_version(tensors, about):
    about["about"] = about["about"].replace('"version": 1', '"version": 2')


def _with_an_unknown_mixer(tensors, about):
    about["about"] = about["about"].replace('"based"', '"baased"')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_a_weight, "'untied' do not fit its config \\(norm.weight"),
        (_of_another_shape, "'untied' do not fit its config \\(norm.weight"),
        (_with_one_more, "blocks.7.weight"),
        (_of_a_later_version, "it says 2"),
        (_with_an_unknown_mixer, "did you mean 'based'"),
    ],
)
def test_bundles_whose_parts_do_not_fit_are_refused(made, change, message):
    rewritten(made[1], change)
    with pytest.raises(BundleError, match=message):
        load_bundle(made[1])


def test_bad_input_is_refused_and_the_older_file_stands(made):
    models, path = made
    before = path.read_bytes()
    bad = mixer(4)
    torch.nn.init.constant_(bad.norm.weight, float("nan"))
    large = mixer(5)
    torch.nn.init.constant_(large.norm.weight, 1e6)  # beyond float16
    for call, error, message in [
        (lambda: save_bundle(path, {}, {}), BadInput, "models is empty"),
        (lambda: save_bundle(path, {"a": bad}, {}), BadInput, "a/norm.weight has values that are not finite"),
        (lambda: save_bundle(path, {"a": large}, {}), BadInput, "a/norm.weight has values that are not finite"),
        (lambda: save_bundle(path, {"a": kit.Tiny()}, {}), BadInput, "has no transformers config"),
        (lambda: save_bundle(path, models, {}, most_bytes=100), BadInput, "at most 100 are shipped"),
        (lambda: save_bundle(path, models, {}, dtype="int8"), BadInput, "dtype='int8'"),
        (lambda: load_bundle(path, ["unteid"]), UnknownName, "did you mean 'untied'"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert path.read_bytes() == before
