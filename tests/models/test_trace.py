"""A trace under any kernel says what eager attention says: regions, pooled maps, statistics, surprise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from model_families import FAMILIES, TEXTS
from test_kernels import PAIRS

from workbench.errors import BadInput, ModelError, UnknownName
from workbench.models import heads

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


def eager_pass(model, batch):
    mask = batch["attention_mask"]
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        more = {} if mask[:, 0].all() else {"position_ids": positions}
        return model(**batch, **more, output_attentions=True, output_hidden_states=True)


def pool(matrix, size, how):
    """Brute force: bins as the kernels define them, floor(b N / R) .. floor((b + 1) N / R)."""

    def edges(n):
        bins = min(n, size)
        return [b * n // bins for b in range(bins + 1)]

    rows, cols = edges(matrix.shape[0]), edges(matrix.shape[1])
    return torch.tensor([[getattr(matrix[a:b, c:d], how)() for c, d in pairwise(cols)] for a, b in pairwise(rows)])


@pytest.mark.parametrize(("kernel", "family"), PAIRS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_regions_are_eager_probabilities(kernel, family, side, loaded, eager):
    model = loaded(family)
    batch = model.encode(TEXTS, side=side)
    with model.use(attention=kernel):
        trace = model.trace(batch)
    expected = eager_pass(eager(family), batch)
    assert [layer.index for layer in trace.layers] == [0, 1]
    for row in range(len(TEXTS)):
        real = trace.real(row)
        for layer in range(2):
            got = trace.region(layer, None, real, real, batch=row)
            torch.testing.assert_close(got, expected.attentions[layer][row, :, real, real], **TOLERANCE)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(trace.logits[real], expected.logits[real], **TOLERANCE)
    for got, wanted in zip(trace.hidden, expected.hidden_states, strict=True):
        torch.testing.assert_close(got[real], wanted[real], **TOLERANCE)


@pytest.mark.parametrize("kernel", ["sdpa", "flash-attention"])
@pytest.mark.parametrize("family", ["llama", "mistral", "bert", "gemma3"])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_pooled_maps_are_pooled_eager_probabilities(kernel, family, reduce, loaded, eager):
    model = loaded(family)
    batch = model.encode(TEXTS)
    with model.use(attention=kernel):
        trace = model.trace(batch)
    expected = eager_pass(eager(family), batch)
    for row in (0, 1):
        real = trace.real(row)
        got = trace.map(1, size=7, reduce=reduce, batch=row)
        for head in range(4):
            whole = expected.attentions[1][row, head, real, real]
            how = {"mean": "mean", "sum": "sum", "max": "amax"}[reduce]
            torch.testing.assert_close(got[head], pool(whole, 7, how), **TOLERANCE)
        torch.testing.assert_close(trace.map(1, 2, size=7, reduce=reduce, batch=row), got[2])


@pytest.mark.parametrize("family", ["llama", "gpt-oss", "gemma2"])
def test_statistics_and_mass(family, loaded, eager):
    model = loaded(family)
    batch = model.encode(TEXTS)
    with model.use(attention="flash-attention"):
        trace = model.trace(batch)
    probs = eager_pass(eager(family), batch).attentions[0][1]
    real = trace.real(1)
    found = trace.statistics(0, batch=1, topk=3)
    entropy = -(probs * probs.clamp(min=1e-30).log()).sum(-1)
    torch.testing.assert_close(found["entropy"][:, real], entropy[:, real], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["mass"][:, real], probs.sum(-1)[:, real], **TOLERANCE)
    torch.testing.assert_close(found["top_probs"][:, real], probs.topk(3).values[:, real], **TOLERANCE)
    assert found["entropy"][:, real.stop :].isnan().all()
    mass = trace.mass(0, [0, 2], batch=1)
    torch.testing.assert_close(mass[:, real], probs[:, real, [0, 2]].sum(-1), **TOLERANCE)


def test_surprise_and_entropy(llama):
    batch = llama.encode(TEXTS)
    trace = llama.trace(batch)
    for row in range(len(TEXTS)):
        real = trace.real(row)
        ids, logp = batch["input_ids"][row, real], trace.logits[row, real].log_softmax(-1)
        expected = torch.nn.functional.cross_entropy(logp[:-1], ids[1:], reduction="none")
        torch.testing.assert_close(trace.surprise[row, real][1:], expected, **TOLERANCE)
        torch.testing.assert_close(trace.entropy[row, real], -(logp.exp() * logp).sum(-1), **TOLERANCE)
        assert math.isnan(trace.surprise[row, 0])
        assert trace.surprise[row, real.stop :].isnan().all()
        assert set(trace.tokens[row][real.stop :]) <= {""}
        assert "".join(trace.tokens[row]) == TEXTS[row]
        assert len(trace.tokens[row]) == batch["input_ids"].shape[1]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
def test_long_logits_come_in_chunks(family, loaded, monkeypatch):
    """The model's own head (soft-capping included) on pieces of the trunk's output gives the same numbers."""
    model = loaded(family)
    whole = model.trace(TEXTS[0])
    monkeypatch.setattr(heads, "KEEP_LOGITS_BYTES", 0)
    monkeypatch.setattr(heads, "CHUNK_BYTES", 4 * model.vocab_size * 3)
    pieces = model.trace(TEXTS[0])
    assert pieces.logits is None
    assert any("logits are not kept" in note for note in pieces.notes)
    torch.testing.assert_close(pieces.surprise, whole.surprise, equal_nan=True, **TOLERANCE)
    torch.testing.assert_close(pieces.entropy, whole.entropy, **TOLERANCE)
    assert torch.equal(model.trace(TEXTS[0]).hidden[-1], whole.hidden[-1])
    assert "forward" not in vars(heads._trunk(model.model))


def test_layers_values_and_hidden_on_request(llama):
    trace = llama.trace(TEXTS[0], hidden=False, values=True, layers=[1])
    assert trace.hidden == ()
    assert [layer.index for layer in trace.layers] == [1]
    layer = trace.layers[0]
    n = trace.input_ids.shape[1]
    assert (layer.q.shape, layer.k.shape, layer.v.shape) == ((1, n, 4, 8), (1, n, 2, 8), (1, n, 2, 8))
    assert layer.lse.shape == (1, n, 4)
    with pytest.raises(BadInput, match="holds layers 1"):
        trace.map(0)
    assert llama.trace(TEXTS[0]).layers[0].v is None
    assert trace.nbytes() < llama.trace(TEXTS[0]).nbytes()


def test_an_encoder_has_no_surprise(loaded):
    trace = loaded("bert").trace(TEXTS)
    assert trace.surprise.isnan().all()
    assert not trace.layers[0].causal
    assert trace.logits.shape[-1] == loaded("bert").vocab_size


def test_a_model_without_a_head(tmp_path):
    from transformers import BertConfig, BertModel

    from workbench.models import load

    config = BertConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertModel(config).save_pretrained(tmp_path)
    trace = load(tmp_path).trace([5, 6, 7, 8])
    assert trace.logits is None
    assert trace.region(0, 1, slice(0, 4), slice(0, 4)).sum() == pytest.approx(4, abs=1e-4)
    assert trace.tokens == [["5", "6", "7", "8"]]


@pytest.mark.parametrize(("kernel", "family"), PAIRS)
def test_recording_does_not_change_the_pass(kernel, family, loaded):
    """The recorder looks at the fast kernel as it runs; logits are bit for bit those of an unrecorded pass."""
    model = loaded(family)
    ids = model.encode(TEXTS[0])["input_ids"]
    with model.use(attention=kernel), torch.no_grad():
        assert torch.equal(model.trace(ids).logits, model.model(ids, use_cache=False).logits)


@pytest.mark.parametrize("kernel", ["eager", "sdpa", "flash-attention", "flash-attention-2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions(kernel, dtype, family_folder):
    from workbench.models import load

    model = load(family_folder("llama"), dtype=dtype, attention=kernel)
    trace = model.trace(TEXTS)
    real = trace.real(1)
    rows = trace.region(1, None, real, real, batch=1).sum(-1)
    torch.testing.assert_close(
        rows.double(), torch.ones_like(rows).double(), atol=2e-2 if dtype == "bfloat16" else 1e-9, rtol=0
    )
    assert trace.surprise[1, real][1:].isfinite().all()
    assert trace.layers[0].q.dtype == model.dtype


def test_the_kernel_in_force_stays_in_force(llama):
    with llama.use(attention="eager"):
        assert llama.config._attn_implementation == "eager"
        assert llama.trace(TEXTS[0]).attention == "eager"
        assert llama.config._attn_implementation == "eager"


def test_a_trace_continues_a_memory_and_leaves_it_alone(llama, eager):
    text, more = TEXTS[0], " and Ben"
    with llama.use(memory="full", attention="flash-attention"):
        fed = llama.feed(text)
        before = llama.memory.contents()
        trace = llama.trace(llama.encode(more))
        assert llama.memory.contents().equals(before)
    new, old = trace.input_ids.shape[1], len(fed.ids)
    ids = torch.tensor([fed.ids + trace.input_ids[0].tolist()])
    expected = eager_pass(eager("llama"), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    got = trace.region(1, None, slice(0, new), slice(0, old + new))
    torch.testing.assert_close(got, expected.attentions[1][0, :, old:], **TOLERANCE)
    torch.testing.assert_close(trace.logits, expected.logits[:, old:], **TOLERANCE)
    assert trace.layers[0].key_positions[0].tolist() == list(range(old + new))
    assert trace.memory == "full"
    torch.testing.assert_close(trace.mass(1, slice(0, old)), got[..., :old].sum(-1), **TOLERANCE)


def test_evicted_positions_are_missing_from_the_keys(llama):
    from workbench.memory.base import MEMORIES

    memory = MEMORIES.get("streaming")(n_sink=2, budget=8)
    with llama.use(memory=memory):
        llama.feed([3, 4, 5, 6, 7, 8])
        llama.feed([9, 10, 11, 12])
        trace = llama.trace([13, 14])
    positions = trace.layers[0].key_positions[0].tolist()
    assert len(positions) <= 8
    assert positions[:2] == [0, 1]
    assert positions[-2:] == [10, 11]
    assert 2 not in positions


@pytest.mark.parametrize("kernel", ["sdpa", "flash-attention"])
def test_memory_is_linear_in_the_sequence(kernel):
    """Trace, whole map and statistics of twice the tokens take about twice the memory, far from N x N."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from workbench.models import LoadedModel
    from workbench.models.meter import peak_bytes

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=16, num_key_value_heads=1, max_position_embeddings=4096, **sizes)
    model = LoadedModel("long", LlamaForCausalLM(config).eval())
    model.start_with(kernel)

    def look(length):
        trace = model.trace([3, 5, 7, 11] * (length // 4), progress=False)
        return trace.map(0, size=32), trace.statistics(0)

    short, long = (peak_bytes(lambda n=n: look(n), torch.device("cpu")) for n in (2048, 4096))
    assert long < 2.4 * short
    assert long < 4 * 4096 * 4096  # less than the N x N matrix of one head in float32


def test_cost_is_predicted(llama):
    trace = llama.trace(TEXTS[0])
    cost = trace.cost("map", layer=0, size=64)
    assert cost.bytes > 0
    assert cost.seconds > 0
    assert llama.trace_cost(4000).seconds > 4 * llama.trace_cost(1000).seconds
    held = llama.trace(TEXTS[0], values=True).nbytes() - trace.logits.numel() * 4
    assert llama.trace_cost(trace.input_ids.shape[1], values=True).bytes >= 0.9 * held


def test_eager_is_predicted_to_hold_n_by_n(llama):
    with llama.use(attention="eager"):
        eager = llama.trace_cost(8192).bytes
    with llama.use(attention="flash-attention"):
        assert eager - llama.trace_cost(8192).bytes >= 4 * llama.n_heads * 8192**2


def test_progress_is_reported(llama):
    seen = []
    llama.trace(TEXTS[0], progress=seen.append)
    assert seen == [0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", BadInput, "the text is empty"),
        ([], BadInput, "the input is empty"),
        (["a cat", ""], BadInput, "the text is empty"),
        ([[1, 2], []], BadInput, "no ids in it"),
        ([3, 10**6], BadInput, r"ids must lie in 0 \.\. 319"),
        ([-1, 3], BadInput, "ids must lie in"),
        (["a cat", 3], BadInput, "mixture"),
        (3.5, BadInput, "got float"),
        ({"mask": 1}, BadInput, "must have 'input_ids'"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, BadInput, "must have the shape"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, BadInput, "all zero"),
    ],
)
def test_bad_input_is_told(llama, text, error, message):
    with pytest.raises(error, match=message):
        llama.trace(text)


def test_beyond_the_positions(llama, loaded):
    long = [5] * 70
    with pytest.raises(ModelError, match=r"70 tokens are more than the 64 positions .*beyond_positions=True"):
        llama.trace(long)
    trace = llama.trace(long, beyond_positions=True)
    assert trace.input_ids.shape == (1, 70)
    assert "extrapolation" in trace.notes[0]
    for family in ("gpt2", "bert", "opt"):
        with pytest.raises(ModelError, match="at most 64 tokens"):
            loaded(family).trace(long, beyond_positions=True)


def test_a_position_table_with_a_padding_row(tmp_path):
    """RoBERTa's positions start behind the padding id: of 20 rows 18 are left."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    from workbench.models import load

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=40, max_position_embeddings=20, pad_token_id=1, **sizes)
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.max_positions == 18
    assert model.trace([5] * 18).input_ids.shape == (1, 18)
    with pytest.raises(ModelError, match="at most 18 tokens"):
        model.trace([5] * 19)


def test_wrong_layers_heads_rows(llama):
    with pytest.raises(BadInput, match=r"layers must lie in 0 \.\. 1"):
        llama.trace(TEXTS[0], layers=[2])
    trace = llama.trace(TEXTS[0])
    with pytest.raises(BadInput, match=r"head must lie in 0 \.\. 3, got 4"):
        trace.map(0, 4)
    with pytest.raises(BadInput, match=r"batch must lie in 0 \.\. 0, got 1"):
        trace.region(0, 0, slice(0, 2), slice(0, 2), batch=1)
    with pytest.raises(ValueError, match="reduce"):
        trace.map(0, 0, reduce="median")
    with pytest.raises(UnknownName):
        llama.use(attention="no")


def test_a_row_lse_that_the_kernel_did_not_leave_is_computed_when_its_layer_is_looked_at(llama):
    with llama.use(attention="flash-attention"):
        expected = llama.trace(TEXTS[0]).layers[1].lse
    with llama.use(attention="eager"):
        trace = llama.trace(TEXTS[0])
    before = trace.nbytes()
    assert all(layer.kernel_lse is None for layer in trace.layers)
    trace.map(1, size=4)
    assert trace.layers[0].kernel_lse is None
    torch.testing.assert_close(trace.layers[1].kernel_lse, expected, **TOLERANCE)
    assert trace.nbytes() == before + expected.numel() * 4


def test_layers_of_a_hybrid_keep_their_own_numbers():
    from transformers import Lfm2Config, Lfm2ForCausalLM

    from workbench.models.loaded import LoadedModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    config = Lfm2Config(vocab_size=40, num_hidden_layers=4, layer_types=kinds, **sizes)
    model = LoadedModel("hybrid", Lfm2ForCausalLM(config).eval())
    model.start_with("eager")
    ids = torch.arange(1, 9)[None]
    done: list[float] = []
    whole = model.trace(ids, progress=done.append)
    assert [layer.index for layer in whole.layers] == [1, 3]
    assert done == [0.5, 1.0]
    assert torch.equal(model.trace(ids, layers=[3]).layer(3).q, whole.layer(3).q)
    wanted = model.model(ids, output_attentions=True).attentions[-1]
    seen = whole.region(3, None, slice(None), slice(None)).float()
    torch.testing.assert_close(seen, wanted[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="holds layers 1, 3"):
        whole.layer(0)
