"""The loss of Just read twice: what is predicted where, and that nothing can be peeped at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from workbench.errors import BadInput
from workbench.training.read_twice import hidden_places, read_twice_loss
from workbench.training.tiny import Pool, Recipe, train

PREFIX, MASK, WORDS = 5, 9, 10


def ids(rows: int = 40) -> torch.Tensor:
    return torch.randint(1, 9, (rows, 9), generator=torch.Generator().manual_seed(0))


class Seer:
    """Gives fixed logits, and remembers what it was shown."""

    def __init__(self, logits: torch.Tensor):
        self.logits, self.shown = logits, torch.zeros(0)

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        self.shown = input_ids
        return SimpleNamespace(logits=self.logits)


def certain(targets: torch.Tensor) -> torch.Tensor:
    return 30.0 * torch.nn.functional.one_hot(targets, WORDS).float()


def test_both_parts_are_means_over_their_own_positions():
    tokens = ids()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(*tokens.shape, WORDS, generator=generator)
    torch.manual_seed(5)
    seer = Seer(logits)
    value, right = read_twice_loss(PREFIX, MASK)(seer, {"input_ids": tokens, "targets": tokens})
    hidden = seer.shown == MASK
    nats = -logits.log_softmax(-1)
    masked = nats[hidden].gather(1, tokens[hidden][:, None]).mean()
    ahead = nats[:, PREFIX - 1 : -1].gather(2, tokens[:, PREFIX:, None]).mean()
    assert value == pytest.approx(float((ahead + 0.25 * masked) / 1.25), rel=1e-5)
    assert right == pytest.approx(float((logits[:, PREFIX - 1 : -1].argmax(-1) == tokens[:, PREFIX:]).float().mean()))
    assert not hidden[:, PREFIX:].any()
    assert hidden[:, :PREFIX].float().mean() == pytest.approx(0.15, abs=0.06)
    assert (seer.shown[~hidden] == tokens[~hidden]).all()


def test_knowing_the_prefix_ahead_is_worth_nothing():
    """A model that names the next token only inside the prefix, where it can see it, has learned nothing."""
    tokens = ids()
    peeping = torch.zeros(*tokens.shape, WORDS)
    peeping[:, : PREFIX - 1] = certain(tokens[:, 1:PREFIX])
    value, right = read_twice_loss(PREFIX, MASK, weight=0.0)(Seer(peeping), {"input_ids": tokens, "targets": tokens})
    assert value == pytest.approx(float(torch.tensor(float(WORDS)).log()), rel=1e-5)
    assert right < 0.3
    knowing = torch.zeros(*tokens.shape, WORDS)
    knowing[:, PREFIX - 1 : -1] = certain(tokens[:, PREFIX:])
    value, right = read_twice_loss(PREFIX, MASK, weight=0.0)(Seer(knowing), {"input_ids": tokens, "targets": tokens})
    assert value < 1e-6
    assert right == 1


def test_weights_and_masks_that_a_pool_brings():
    """Next tokens by their weights, answers (above 1) as right ones, masks as they are given."""
    tokens, generator = ids(), torch.Generator().manual_seed(1)
    logits = torch.randn(*tokens.shape, WORDS, generator=generator)
    logits[:, 6] = certain(tokens[:, 7])
    weights = torch.rand(tokens.shape, generator=generator)
    weights[:, 7], weights[:, 8] = 4.0, 0.0
    hidden = torch.from_numpy(hidden_places(tokens, PREFIX, share=0.3, seed=2))
    batch = {"input_ids": tokens, "targets": tokens, "weights": weights.half(), "hidden": hidden}
    seer = Seer(logits)
    value, right = read_twice_loss(PREFIX, MASK)(seer, batch)
    assert (seer.shown == torch.where(hidden, MASK, tokens)).all()
    nats = -logits.log_softmax(-1)
    ahead = nats[:, PREFIX - 1 : -1].gather(2, tokens[:, PREFIX:, None])[..., 0]
    behind = weights.half().float()[:, PREFIX:]
    masked = nats[hidden].gather(1, tokens[hidden][:, None]).mean()
    assert value == pytest.approx(float(((ahead * behind).sum() / behind.sum() + 0.25 * masked) / 1.25), rel=1e-5)
    assert right == 1, "the answers are known, the rest is not"
    assert read_twice_loss(PREFIX, MASK)(Seer(logits), batch)[0] == value


def test_padding_is_neither_masked_nor_predicted():
    tokens = ids()
    tokens[:, :2], tokens[:, -1] = 0, 0
    seer = Seer(torch.zeros(*tokens.shape, WORDS))
    read_twice_loss(PREFIX, MASK, share=0.9)(seer, {"input_ids": tokens, "targets": tokens})
    assert (seer.shown[:, :2] == 0).all()
    assert (seer.shown[:, -1] == 0).all()


def test_a_prefix_model_trains_with_it():
    from workbench.models.mixer import MixerConfig, MixerLM

    def build(seed: int) -> MixerLM:
        mixers = [{"mixer": "just-read-twice", "heads": 1, "key_dim": 2, "prefix": PREFIX}]
        return MixerLM(MixerConfig(WORDS, 8, mixers, mlp_ratio=1))

    tokens = ids(200)
    tokens[:, PREFIX:] = tokens[:, :4]  # the rest repeats the prefix
    recipe = Recipe(steps=60, batch=32, lr=2e-2, warmup=5)
    made = train(build, Pool(tokens, tokens), recipe, (0,), device="cpu", loss=read_twice_loss(PREFIX, MASK))
    assert made.losses["loss"].tail(10).mean() < made.losses["loss"].head(10).mean() - 0.05


def test_what_cannot_be_is_refused():
    cases: tuple[dict[str, Any], ...] = (
        {"prefix": 0},
        {"mask_id": -1},
        {"share": 0.0},
        {"share": 1.0},
        {"weight": -1.0},
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"prefix": 2.5},
        {"prefix": None},
        {"mask_id": "9"},
        {"share": "a"},
    )
    for wrong in cases:
        with pytest.raises(BadInput, match="expected prefix"):
            read_twice_loss(**({"prefix": 4, "mask_id": 9} | wrong))
    words: Any = [["a", "b", "c"]]
    for given, prefix in (([1, 2, 3], 2), ([[1, 2, 3]], 1.5), ([[1, 2, 3]], "2"), ([[1, 2, 3]], 3), (words, 2)):
        with pytest.raises(BadInput, match="0 < prefix < T"):
            hidden_places(given, prefix)  # type: ignore[arg-type]
    for share in (0.0, 1.0, "a", float("nan")):
        with pytest.raises(BadInput, match=r"share=.*between 0 and 1"):
            hidden_places([[1, 2, 3]], 2, share=share)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="end in the prefix of 9"):
        read_twice_loss(9, MASK)(Seer(torch.zeros(1)), {"input_ids": ids(), "targets": ids()})
