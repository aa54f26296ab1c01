"""One file in, the same state out; anything else is told, and an older file is never lost."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
from model_families import TEXTS

from workbench.errors import BadInput, BundleError, StorageError
from workbench.models.bundle import load_bundle, model_state, put_state, save_bundle

STATE = {"text": "the key – schlüssel", "view": {"layer": 3, "heads": [1, 2], "zoom": None}, "score": 0.25}


@pytest.fixture
def tensors():
    return {
        "q": torch.randn(2, 3),
        "ids": torch.arange(4),
        "half": torch.randn(3).bfloat16(),
        "view": torch.randn(4, 4).T,
    }


def test_round_trip(tmp_path, tensors):
    path = save_bundle(tmp_path / "deep" / "state.wb", STATE, tensors)
    state, found = load_bundle(path)
    assert state == STATE
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert load_bundle(save_bundle(path, STATE))[1] == {}


def test_a_model_says_its_state_and_takes_it_back(tmp_path, llama):
    with llama.use(attention="flash-attention", memory="streaming"):
        state = model_state(llama)
        path = save_bundle(tmp_path / "s.wb", {**state, "text": TEXTS[0]})
        settings = llama.memory.settings()
    state, _ = load_bundle(path)
    name = llama.attention
    with llama.use():
        put_state(llama, state)
        assert (llama.attention, llama.memory.slug, llama.memory.settings()) == (
            "flash-attention",
            "streaming",
            settings,
        )
    assert (llama.attention, llama.memory) == (name, None)
    with pytest.raises(BundleError, match="belongs to the model 'other'"):
        put_state(llama, {**state, "model": "other"})
    with pytest.raises(BundleError, match="has no 'attention'"):
        put_state(llama, {"model": llama.name, "memory": "none"})


def rewrite(path, change):
    """Change the parts of a bundle and write it again as a valid zip."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def other_version(parts):
    parts["state.json"] = json.dumps({**json.loads(parts["state.json"]), "bundle_version": 99}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_version, r"version 99; this workbench reads version 1"),
        (lambda parts: parts.pop("state.json"), r"has no state\.json"),
        (lambda parts: parts.update({"state.json": b"{ half"}), r"state\.json .* damaged"),
        (lambda parts: parts.update({"state.json": b"[1]"}), r"state\.json .* damaged"),
        (
            lambda parts: parts.update({"tensors.safetensors": parts["tensors.safetensors"][:40]}),
            "safetensors .* damaged",
        ),
    ],
)
def test_damaged_bundles(tmp_path, tensors, change, message):
    path = save_bundle(tmp_path / "s.wb", STATE, tensors)
    rewrite(path, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_truncated_bundles(tmp_path, tensors, keep):
    path = save_bundle(tmp_path / "s.wb", STATE, tensors)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match="not a whole workbench bundle"):
        load_bundle(path)


def test_a_flipped_byte_is_found(tmp_path, tensors):
    path = save_bundle(tmp_path / "s.wb", STATE, tensors)
    data = bytearray(path.read_bytes())
    at = data.index(b"tensors.safetensors") + 200
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError):
        load_bundle(path)


def test_no_file_and_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="there is no bundle"):
        load_bundle(tmp_path / "none.wb")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BundleError, match="not a whole workbench bundle"):
        load_bundle(tmp_path / "text")
    with pytest.raises(BundleError):
        load_bundle(tmp_path)


def test_what_json_cannot_hold_is_named_and_nothing_is_lost(tmp_path):
    path = save_bundle(tmp_path / "s.wb", STATE)
    for value in (torch.ones(2), {1, 2}, float("nan")):
        with pytest.raises(BadInput, match=r"state\['bad'\]"):
            save_bundle(path, {**STATE, "bad": value})
    assert load_bundle(path)[0] == STATE


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save_bundle(tmp_path / "file" / "s.wb", STATE)
