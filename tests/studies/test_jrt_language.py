"""Just read twice as language models on the embedded corpus: what is learnt, read and asked where; claims; pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.errors import BadInput
from workbench.memory.layers.just_read_twice import reading
from workbench.studies import STUDIES, Progress
from workbench.studies import _corpus_lm as lm
from workbench.studies import _jrt_language as jrt
from workbench.studies._jrt_claims import BASED, FILLED, JRT, again, shared_names
from workbench.tasks.jrt_prompt import repeated
from workbench.training.corpus import Asked
from workbench.training.read_twice import hidden_places
from workbench.views import just_read_twice as pictures
from workbench_datasets import reported
from workbench_datasets.small_world import world

SLUG, PREFIX, TOKENS = "just-read-twice", 128, 256
TINY: dict[str, Any] = {
    "device": "cpu", "tokens": TOKENS, "prefix": PREFIX, "positions": [192], "windows": 32, "books": False, "gap": 0,
    "test_windows": 4, "groups": 2, "questions": 6, "dim": 16, "heads": 2, "blocks": 1, "batch": 2, "eval_batch": 4,
    "steps": 4, "least_steps": 4, "timed_steps": 1, "seeds": 2, "train_seconds": 1e6, "deadline_seconds": 600,
    "warmup": 1, "key_dim": 2, "window": 8, "expand": 1, "new_tokens": 2,
}  # fmt: skip
SETTINGS = {**STUDIES.get(SLUG).scale("lm").settings, **TINY}
WORDS = 4096


@pytest.fixture(scope="module")
def data():
    return jrt.corpus(SETTINGS, 0)


def model(variant: str, seed: int = 0, **more: Any):
    torch.manual_seed(seed)
    settings = {**SETTINGS, **more}
    return lm.build(jrt.models(settings, WORDS)[variant], settings, WORDS + 1).eval()


def logits(made: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return made(input_ids=ids, use_cache=False).logits


# ---- end to end ---------------------------------------------------------------------------------------------------


def test_the_whole_scale_runs_small():
    study = STUDIES.get(SLUG)
    frame = study.run(replace(study.scale("lm"), settings=SETTINGS), 0, Progress(quiet=True))
    assert set(frame["experiment"]) == {"LM corpus", "LM size", "LM training", "LM world", "LM recall"}
    assert np.isfinite(frame["value"]).all()
    asked = frame[(frame["experiment"] == "LM recall") & (frame["metric"] == "contains")]
    told = asked.groupby("item")["x"].agg(["size", "max"])
    assert told["size"].to_dict() == dict.fromkeys((BASED, again(BASED), JRT, FILLED, again(JRT)), 4)
    assert told["max"].to_dict() == {BASED: 1, again(BASED): 2, JRT: 1, FILLED: 1, again(JRT): 2}
    text = frame[frame["experiment"] == "LM world"]
    assert set(text["x"]) == {0, 192, 256}, "nothing is told of the prefix"
    assert text["value"].between(5, 10).all()
    sizes = frame[frame["experiment"] == "LM size"].pivot_table(index="item", columns="metric", values="value")
    assert sizes["state bytes"].nunique() == 1
    assert set(study.judge(frame, "lm")) == {"LM-C3", "LM-C4", "LM-FILL", "LM-PPL"}


# ---- nothing is peeped at -----------------------------------------------------------------------------------------


def test_tokens_behind_the_prefix_change_nothing_before_them(data):
    made, ids = model(JRT), data.pool.ids[:2].long()
    for place in (PREFIX, PREFIX + 17):
        other = ids.clone()
        other[:, place:] = (other[:, place:] + 7) % WORDS
        assert torch.equal(logits(made, ids)[:, :place], logits(made, other)[:, :place])
    other = ids.clone()
    other[:, PREFIX - 1] = (other[:, PREFIX - 1] + 7) % WORDS
    early = (logits(made, ids) - logits(made, other))[:, : PREFIX // 2]
    assert early.abs().max() > 1e-6, "the prefix is read without order"
    causal = model(BASED)
    assert torch.equal(logits(causal, ids)[:, : PREFIX - 1], logits(causal, other)[:, : PREFIX - 1])


def gradient_of(variant: str, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(where the loss asks anything of the logits (B, T), the ids that the model was shown)."""
    told = torch.zeros(*batch["input_ids"].shape, WORDS + 1, requires_grad=True)
    shown = []

    def run(input_ids: torch.Tensor) -> Any:
        shown.append(input_ids)
        return type("Out", (), {"logits": told})

    value, _ = lm._loss(jrt.models(SETTINGS, WORDS)[variant])(run, batch)
    value.backward()
    assert told.grad is not None
    return told.grad.abs().sum(-1) > 0, shown[0]


def test_no_next_token_is_asked_for_inside_the_prefix(data):
    names = {"input_ids": data.pool.ids.long(), "targets": data.pool.targets.long(), **data.pool.extras}
    batch = {name: table[:8] for name, table in names.items()}
    taught, shown = gradient_of(JRT, batch)
    hidden = batch["hidden"]
    assert torch.equal(taught[:, : PREFIX - 1], hidden[:, : PREFIX - 1]), "there, masked tokens alone"
    assert taught[:, PREFIX - 1 : -1].float().mean() > 0.9
    assert not taught[:, -1].any()
    assert (shown[hidden] == WORDS).all()
    assert (shown[~hidden] == batch["input_ids"][~hidden]).all()
    taught, shown = gradient_of(BASED, batch)
    assert taught[:, : PREFIX - 1].float().mean() > 0.9
    assert torch.equal(shown, batch["input_ids"])


def test_masks_are_few_inside_and_the_same_everywhere(data):
    hidden = data.pool.extras["hidden"].numpy()
    assert hidden[:, :PREFIX].mean() == pytest.approx(0.15, abs=0.02)
    assert not hidden[:, PREFIX:].any()
    assert not hidden[data.pool.ids.numpy() == 0].any(), "the mark that begins a document is no word"
    assert (hidden_places(data.pool.ids, PREFIX) == hidden).all()
    assert (hidden_places(data.pool.ids, PREFIX, seed=1) != hidden).any()
    assert data.vocabulary == WORDS + 1
    assert int(data.pool.ids.max()) < WORDS, "the mask stands for nothing else"
    for wrong in ({"prefix": TOKENS}, {"prefix": 0}):
        with pytest.raises(BadInput, match="0 < prefix < T"):
            hidden_places(data.pool.ids, **wrong)


def test_both_are_held_to_the_tokens_behind_the_prefix():
    table, counted = torch.arange(1.0, 512.0).repeat(2, 1), torch.ones(2, 511, dtype=torch.bool)
    rows = {row["x"]: row["value"] for row in lm._surprise("a", "LM books", 0, 0, table, counted, 256, (320, 384))}
    assert rows == pytest.approx({0: 383.5, 320: 287.5, 384: 351.5, 512: 447.5})


# ---- asking -------------------------------------------------------------------------------------------------------


def test_prompts_lie_in_the_prefix(data):
    asked = data.asked[1]
    for how in ("left", "read-twice"):
        filled = jrt.in_prefix(asked, PREFIX, how)
        assert filled.keep is not None
        begins = filled.answers.argmax(1)
        assert (begins == np.maximum(PREFIX, asked.answers.argmax(1))).all()
        for row, (ids, answer) in enumerate(zip(asked.ids, asked.answers)):
            prompt = ids[: answer.argmax()]
            end = begins[row]
            assert (filled.ids[row, end - len(prompt) : end] == prompt).all()
            assert (filled.ids[row][filled.answers[row]] == ids[answer]).all()
            assert filled.keep[row].sum() == filled.ids.shape[1] - (how == "left") * (PREFIX - len(prompt))
    long = jrt.in_prefix(asked, 4, "left")
    assert np.all(long.keep)
    assert (long.ids[:, : asked.ids.shape[1]] == asked.ids).all()


def test_every_model_is_asked_as_its_name_says(data):
    put = [line for variant in (BASED, JRT) for line in jrt._put(variant, SETTINGS, data)]
    asked = {name: (copies, one) for name, copies, one in put}
    assert set(asked) == {BASED, again(BASED), JRT, again(JRT), FILLED}
    short = data.asked[1].answers.argmax(1) < PREFIX
    assert short.any()
    assert asked[BASED] == (1, data.asked[1])
    assert asked[again(BASED)] == (2, data.asked[2])
    (_, padded), (copies, filled) = asked[JRT], asked[FILLED]
    assert copies == 1
    assert (np.all(padded.keep, 1) == ~short).all(), "padding, and left out"
    assert np.all(filled.keep), "no padding: the prompt stands there again"
    for row in short.nonzero()[0]:
        prompt = data.asked[1].ids[row, : data.asked[1].answers[row].argmax()]
        missing = PREFIX - len(prompt)
        assert (filled.ids[row, :missing] == np.tile(prompt, PREFIX)[-PREFIX:][:missing]).all()
    copies, twice = asked[again(JRT)]
    assert copies == 2
    assert (twice.ids == jrt.in_prefix(data.asked[2], PREFIX, "left").ids).all()


def test_padding_in_the_prefix_changes_no_answer(data):
    """A padded prompt is answered as the bare one whose own length is M."""
    made, asked = model(JRT), data.asked[1]
    _, padded = lm.answered(made, jrt.in_prefix(asked, PREFIX, "left"), 4)
    for row in range(3):
        begin = int(asked.answers[row].argmax())
        bare = Asked(asked.ids[row : row + 1], asked.answers[row : row + 1], 0.0)
        with reading(made, begin):
            _, surprise = lm.answered(made, bare, 1)
        assert float(surprise) == pytest.approx(float(padded[row]), abs=1e-4)


def test_repeated_prompts_are_context_and_question_twice(data):
    tokenizer = jrt._tokenizer()
    settings = {"split": "unseen", "people": 3, "distance": 0, "form": "question"}
    questions = world(0).questions("open-book", SETTINGS["questions"], 50_000, **settings)
    for copies in (1, 2):
        asked = data.asked[copies]
        for row, question in enumerate(questions):
            prompt = tokenizer.decode(asked.ids[row, 1 : asked.answers[row].argmax()].tolist())
            context, rest = question.prompt.split("\n")
            assert prompt == repeated(context, rest, copies)
            assert prompt.count("QUESTION:") == copies
    assert repeated(context, rest, 1) == question.prompt


@pytest.mark.parametrize("variant", [BASED, JRT])
def test_what_is_generated_is_the_likeliest_each_time(variant, data):
    made, asked = model(variant, seed=3), data.asked[1]
    asked = jrt.in_prefix(asked, PREFIX, "read-twice") if variant == JRT else asked
    said = jrt.generated(made, asked, 4, 3)
    for row in range(2):
        prompt = torch.as_tensor(asked.ids[row, : asked.answers[row].argmax()])[None]
        for step in range(3):
            likeliest = logits(made, prompt)[0, -1].argmax()
            assert int(said[row, step]) == int(likeliest)
            prompt = torch.cat([prompt, likeliest.view(1, 1)], 1)


def test_answers_that_contain_the_gold():
    tokenizer = jrt._tokenizer()
    ids = tokenizer.encode(" violin", add_special_tokens=False).ids
    asked = Asked(np.array([[0, 5, *ids]]), np.array([[False, False, *[True] * len(ids)]]), 0.5)

    def right(text: str, *more: int) -> bool:
        said = [*tokenizer.encode(text, add_special_tokens=False).ids, *more]
        return bool(jrt.contained(asked, torch.tensor([said]), tokenizer))

    assert right(" the VIOLIN.")
    assert right(" violin", WORDS), "the mask's id is no text"
    assert not right(" viol")
    assert not right(" flute\n violin"), "what follows a line break does not count"


# ---- claims and pictures ------------------------------------------------------------------------------------------


def frame_of(books: dict[str, float], shares: dict[str, float], models: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    kinds = (("LM books", "nats", books), ("LM recall", "contains", shares))
    rows = [
        lm.line(part, name, 0, metric, value + 0.01 * number + 0.003 * rng.normal(), number, unit)
        for part, metric, values in kinds for name, value in values.items()
        for number in range(models) for unit in range(8)
    ]  # fmt: skip
    chance = lm.line("LM recall", "chance", 1, "chance", 0.05)
    return pd.DataFrame([*rows, chance]).rename(columns=jrt.COLUMNS)


GOOD = {BASED: 0.3, again(BASED): 0.5, JRT: 0.4, FILLED: 0.6, again(JRT): 0.5}


def verdicts(frame: pd.DataFrame) -> dict[str, str]:
    return {name: found.verdict for name, found in STUDIES.get(SLUG).judge(frame, "lm").items()}


@pytest.mark.parametrize("models", [1, 3])
def test_claims_hold_and_fail(models):
    names = ("LM-C3", "LM-C4", "LM-FILL", "LM-PPL")
    assert verdicts(frame_of({JRT: 3.3, BASED: 3.4}, GOOD, models)) == dict.fromkeys(names, "holds")
    turned = {name: 0.9 - share for name, share in GOOD.items()}
    assert verdicts(frame_of({JRT: 3.5, BASED: 3.4}, turned, models)) == dict.fromkeys(names, "not reproduced")
    silent = verdicts(frame_of({JRT: 3.5}, dict.fromkeys(GOOD, 0.02), models))
    assert silent == dict.fromkeys(names, "inconclusive")


def test_other_scales_have_no_such_claims():
    claims = {claim.id: claim.scales for claim in STUDIES.get(SLUG).claims}
    assert {name for name, scales in claims.items() if "lm" in scales} == {"LM-C3", "LM-C4", "LM-FILL", "LM-PPL"}
    assert all(scales == ("lm",) for name, scales in claims.items() if name.startswith("LM"))


def test_the_figure_shows_the_language_models_where_there_are_some(tmp_path):
    study, frame = STUDIES.get(SLUG), frame_of({JRT: 3.3, BASED: 3.4}, GOOD)
    for name, given in (("recorded", (None, reported.load(SLUG), frame)), ("live", (frame, None, None))):
        study.figure(*given).save(tmp_path / f"{name}.svg")
        drawn = (tmp_path / f"{name}.svg").read_text()
        for word in ("perplexity", "prefix filled", "share of questions answered"):
            assert word in drawn
    chart = pictures.language_models(shared_names(frame), title="named").to_dict()
    assert chart["title"]["text"] == "named"
