"""PH3: a toy whose two heads are known, the conflicts of the small world, decoding baselines, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.errors import BadInput
from workbench.models import load
from workbench.probes import knowledge_conflict_heads as ph3
from workbench.tasks import conflicts as asking

SUBJECTS, OBJECTS = range(4), range(4, 8)


@pytest.fixture(scope="module")
def toy() -> LlamaForCausalLM:
    """One layer, uniform attention. Head 0 looks up: subject s gives object s + 4. Head 1 copies objects."""
    d = 12
    config = LlamaConfig(
        vocab_size=d, hidden_size=d, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=d, tie_word_embeddings=False, bos_token_id=10, eos_token_id=11,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_() if parameter.ndim == 2 else parameter.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(d))
        model.lm_head.weight.copy_(torch.eye(d))
        layer = model.model.layers[0].self_attn
        for s in SUBJECTS:
            layer.v_proj.weight[s + 4, s] = 1.0
        for o in OBJECTS:
            layer.v_proj.weight[d + o, o] = 3.0
        layer.o_proj.weight.copy_(torch.cat([torch.eye(d), torch.eye(d)], 1))
    return model


class Toy:
    """Subject 0 (object 4) is said to have object 6."""

    ids, corrupted, answers, context_at = [0, 6, 0], [[1, 7, 1], [3, 5, 3]], (4, 6), 1


def answer(model, ids) -> int:
    with torch.no_grad():
        return int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())


def test_the_toys_heads_are_told_apart_and_pruning_flips_the_answer(toy):
    found = ph3.find_heads(toy, [Toy()])
    assert found.ranked("memory", upper=False)[0] == (0, 0)
    assert found.ranked("context", upper=False)[0] == (0, 1)
    assert answer(toy, Toy.ids) == 6
    with ph3.prune(toy, [(0, 1)]):
        assert answer(toy, Toy.ids) == 4
    with ph3.prune(toy, [(0, 0)]):
        assert answer(toy, Toy.ids) == 6
    assert answer(toy, [0]) == 4, "closed book"


def test_pruning_is_zeroed_weights_and_leaves_no_trace(toy):
    with torch.no_grad():
        before = toy(input_ids=torch.tensor([Toy.ids])).logits
        with ph3.prune(toy, [(0, 1)]):
            pruned = toy(input_ids=torch.tensor([Toy.ids])).logits
        kept = toy.model.layers[0].self_attn.o_proj.weight.clone()
        toy.model.layers[0].self_attn.o_proj.weight[:, 12:] = 0
        edited = toy(input_ids=torch.tensor([Toy.ids])).logits
        toy.model.layers[0].self_attn.o_proj.weight.copy_(kept)
        assert torch.equal(pruned, edited)
        with pytest.raises(RuntimeError, match="on purpose"), ph3.prune(toy, [(0, 1)]):
            raise RuntimeError("on purpose")
        assert torch.equal(before, toy(input_ids=torch.tensor([Toy.ids])).logits)


# ---- the shipped model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded():
    return load("embedded")


@pytest.fixture(scope="module")
def asked(embedded):
    return asking.conflicts(embedded, 24, seed=501, relations=("town", "pet"))


def test_conflicts_are_known_facts_with_twins_of_equal_length(embedded, asked):
    assert asking.knows_closed_book(embedded, asked) == [True] * 24
    for conflict in asked:
        assert {len(twin) for twin in conflict.corrupted} == {len(conflict.ids)}
        assert len(set(conflict.corrupted)) == 3
        assert conflict.memory_id != conflict.context_id
        assert conflict.ids[conflict.context_at] == conflict.context_id
        assert conflict.relation in ("town", "pet")
        assert conflict.subject not in embedded.tokenizer.decode(conflict.corrupted[0])
    places = asking.spans(embedded, asked[0])
    assert places["stated subject"][-1] < places["asked subject"][0]
    again = asking.conflicts(embedded, 24, seed=501, relations=("town", "pet"))
    assert again == asked


def test_both_sides_win_sometimes_and_decoding_can_lean_either_way(embedded, asked):
    table = asking.rates(embedded, asked)
    won = table["winner"].value_counts(normalize=True)
    assert won["memory"] >= 0.15
    assert won["context"] >= 0.15
    assert table[["p_memory", "p_context"]].sum(axis=1).between(0, 1.001).all()
    plain = table["winner"].to_list()
    assert asking.contrasted(embedded, asked, 0.0) == plain
    closed = asking.winners(asking.greedy(embedded, [c.plain_ids for c in asked]), asked)
    assert asking.contrasted(embedded, asked, -1.0) == closed == ["memory"] * 24
    assert asking.contrasted(embedded, asked, 1.0).count("context") > plain.count("context")


@pytest.mark.slow
def test_heads_found_on_two_relations_flip_others(embedded, asked):
    heads = ph3.find_heads(embedded, asked)
    used = frozenset(c.subject for c in asked)
    test = asking.conflicts(embedded, 30, seed=502, relations=("colour", "food"), without=used)
    assert not {c.subject for c in test} & used

    def won(pruned, side):
        with ph3.prune(embedded, pruned):
            return asking.winners(asking.greedy(embedded, [c.ids for c in test]), test).count(side) / len(test)

    plain = won([], "memory")
    assert won(heads.ranked("context", 1), "memory") > plain + 0.2
    assert won(heads.ranked("memory", 1), "context") > 1 - plain + 0.2
    drawn = ph3.random_heads(embedded, 1, 5, seed=0, without=heads.named())
    assert not {head for draw in drawn for head in draw} & set(heads.named())
    table = ph3.head_table(embedded, asked[:3], heads, pruned=heads.ranked("context", 1))
    assert len(table) == 64
    assert table["pruned"].sum() == 1
    assert table["attention_on_context"].between(0, 1).all()
    top = heads.ranked("context", 1)[0]
    row = table[(table["layer"] == top[0]) & (table["head"] == top[1])].iloc[0]
    assert row["type"] == "context"
    assert row["attention_on_context"] > 0.3, "a context head looks at the stated answer"


def test_every_relation_of_people_can_be_asked_about(embedded):
    from workbench.studies.knowledge_conflict_heads import FOUND_ON, TESTED_ON
    from workbench_datasets.small_world import world

    assert set(asking.RELATIONS) == {fact.relation for fact in world().person_facts}
    assert set(FOUND_ON) | set(TESTED_ON) == set(asking.RELATIONS)
    for relation in asking.RELATIONS:
        assert len(asking.conflicts(embedded, 2, seed=503, relations=[relation])) == 2


def test_the_size_is_chosen_on_what_it_is_given(asked):
    effects = ph3.Effects(*[np.zeros((3, 16, 1)) for _ in range(4)])
    effects.first[2, :5, 0] = [-5, -4, -3, -2, -1]
    heads = ph3.ConflictHeads(effects, "logit_diff", 1)
    tried = []

    def rate(pruned):
        tried.append(len(pruned))
        return {1: 0.2, 2: 0.7, 3: 0.7, 5: 0.1}[len(pruned)]

    assert ph3.choose_size("memory", heads, rate) == 2
    assert tried == [1, 2, 3, 5]
    assert heads.ranked("memory", 2) == [(2, 0), (2, 1)]
    assert heads.ranked("context") == []
    with pytest.raises(BadInput, match="is there a conflict"):
        ph3.choose_size("context", heads, rate)


def test_bad_input(embedded, asked):
    heads = ph3.ConflictHeads(ph3.Effects(*[np.zeros((2, 4, 1)) for _ in range(4)]), "logit_diff", 1)
    for kind, k, said in (("memory", 9, "1 .. 2"), ("memory", 0, "1 .. 2"), ("both", 1, "memory, context")):
        with pytest.raises(BadInput, match=said):
            heads.ranked(kind, k)
    with pytest.raises(BadInput, match="effect"):
        ph3.find_heads(embedded, asked[:1], effect="odds")
    with pytest.raises(BadInput, match="relations"):
        asking.conflicts(embedded, 3, relations=("capital",))
    with pytest.raises(BadInput, match="ask for fewer"):
        asking.conflicts(embedded, 5, relations=("town",), without=frozenset(_everybody()))
    with pytest.raises(BadInput, match="k must lie"):
        ph3.random_heads(embedded, 0, 1)
    with pytest.raises(BadInput, match="layer 30"), ph3.prune(embedded, [(30, 0)]):
        pass


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (lambda m, c: asking.conflicts(m, 2, form="poem"), "form must be one of statement, question"),
        (lambda m, c: asking.conflicts(m, 0), "n must be"),
        (lambda m, c: asking.conflicts(m, 2, corruptions=0), "corruptions must be"),
        (lambda m, c: asking.copying(m, 0), "n must be"),
        (lambda m, c: asking.divided([]), "one or more"),
        (lambda m, c: asking.divided((1, 0)), "every share must be a whole number"),
        (lambda m, c: asking.conflicts(m, 2, people=["Nobody Here"]), "known people.*Nobody Here"),
        (lambda m, c: asking.conflicts(m, 2, people=[]), "of 0 people; ask for fewer"),
        (lambda m, c: asking.rates(m, []), "one or more lists"),
        (lambda m, c: asking.greedy(m, [[5], []]), "at least one token"),
        (lambda m, c: asking.contrasted(m, c[:1], float("nan")), "alpha"),
        (lambda m, c: ph3.random_heads(m, 2, 0), "draws"),
        (lambda m, c: ph3.random_heads(m, 2, 1, seed=-1), "seed"),
        (lambda m, c: ph3.head_table(m, [], ph3.find_heads(m, c[:1])), "no prompts"),
        (lambda m, c: ph3.find_heads(m, c[:1]).ranked("memory", 1.5), "k must lie"),
    ],
)
def test_questions_that_cannot_be_asked_are_named(embedded, asked, refused, said):
    with pytest.raises(BadInput, match=said):
        refused(embedded, asked)


def _everybody() -> list[str]:
    from workbench_datasets.small_world import world

    return list(world().people)
