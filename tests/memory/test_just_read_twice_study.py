"""The study of Just read twice: its parts at a tiny scale, its claims on frames of known content, its pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.errors import BadInput, BundleError
from workbench.memory.layers.just_read_twice import JustReadTwice
from workbench.statistics import HOLDS, INCONCLUSIVE, NOT_REPRODUCED
from workbench.studies import STUDIES, Progress
from workbench.studies import _jrt_claims as claims
from workbench.studies import _jrt_models as models
from workbench.studies import _jrt_parts as parts
from workbench.training.tiny import bundle_target, load_bundle
from workbench.views import just_read_twice as pictures
from workbench.views._jrt_figure import orders_of, prompt_table
from workbench_datasets import notes, recorded, reported
from workbench_datasets.set_disjointness import set_disjointness
from workbench_datasets.small_world import world

SLUG = "just-read-twice"
QUIET = Progress(quiet=True)
#: A full run that a CPU takes seconds for.
TINY: dict[str, Any] = {
    "device": "cpu", "hand_draws": 2, "hand_trials": 20, "hand_dims": [256], "states": [[16, 2], [16, 3]],
    "vocabulary": 160, "sequences": 30, "batch": 4, "steps": 4, "stage_steps": [2, 3], "timed_steps": 2, "train_s": 0,
    "train_seeds": [0, 1],
    "test_sequences": 8, "notes": 40, "notes_state": [16, 2], "notes_steps": 4, "notes_batch": 4,
    "notes_short_steps": 2,
    "items": 6, "embedded_items": 2, "loss_every": 2, "live_steps": 20, "live_batch": 4, "live_sequences": 10,
    "live_state": [16, 2],
}  # fmt: skip


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Recorded runs and trained models go to a folder of the test."""
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    parts._bundle.cache_clear()
    yield tmp_path
    parts._bundle.cache_clear()


def run(scale: str, seed: int = 0, **settings: Any) -> pd.DataFrame:
    study = STUDIES.get(SLUG)
    chosen = study.scale(scale)
    return study.run(replace(chosen, settings={**chosen.settings, **TINY, **settings}), seed, QUIET)


@pytest.mark.slow
def test_a_full_run_trains_asks_and_ships_and_a_quick_one_asks_what_was_shipped(own_folder):
    full = run("full")
    assert {"by hand", "state", "sets", "training", "prompt", "prefill"} == set(full["experiment"])
    accuracies = full[(full["experiment"] == "sets") & (full["metric"] == "accuracy")]
    assert len(accuracies) == 3 * 2 * 2 * 4, "modes, states, seeds, pairs of sizes"
    assert accuracies["value"].between(0, 1).all()
    steps = full[(full["experiment"] == "training") & (full["metric"] == "steps")]
    assert (steps["value"] == 4).all()
    failed = full[(full["experiment"] == "prefill")]
    assert (failed["metric"] == "no number").all(), "without a card the race is a row that says why"
    held = load_bundle(bundle_target(SLUG))
    assert set(held) == {f"sets-{mode}-16x{f}" for mode in models.MODES for f in (2, 3)} | set(models.NOTES.values())
    assert bundle_target(SLUG).stat().st_size < 4 << 20
    quick = run("quick")
    assert {"by hand", "sets", "live training", "prompt", "state"} == set(quick["experiment"])
    ours = quick[(quick["experiment"] == "sets") & (quick["item"] == "prefix")]
    assert sorted(ours["x"].unique()) == [models.state_bytes(16, 2), models.state_bytes(16, 3)]
    for scale, frame in (("full", full), ("quick", quick)):
        outcomes = STUDIES.get(SLUG).judge(frame, scale)
        assert outcomes["C6"].verdict == HOLDS
        assert outcomes["E1a"].verdict == HOLDS


@pytest.mark.slow
def test_another_study_seed_trains_other_models_and_ships_none(own_folder):
    few = {"states": [[16, 2]], "notes_steps": 2, "notes_short_steps": 1, "items": 2, "embedded_items": 0}
    first, second = (run("full", seed, **few) for seed in (0, 1))
    shipped = bundle_target(SLUG).read_bytes()
    asked = [frame[(frame["experiment"] == "sets")]["unit"] for frame in (first, second)]
    assert [sorted(set(units)) for units in asked] == [["0", "1"], ["1000", "1001"]]
    run("full", 1, **few)
    assert bundle_target(SLUG).read_bytes() == shipped
    both = pd.concat([first.assign(seed=0), second.assign(seed=1)])
    found = STUDIES.get(SLUG).judge(both, "full")
    assert found["C1a"].n == 4, "a model of every training seed counts for itself"


def test_models_that_the_time_cuts_are_told_and_not_judged():
    settings = {**STUDIES.get(SLUG).scale("full").settings, **TINY, "steps": 60, "stage_steps": [30, 40]}
    seconds = iter([1.0, 0.02, 0.0, 0.0, 0.0, 0.0, 0.0])  # asked before a variant is begun, and when it begins
    (cut,) = models.train_sets(settings, "cpu", QUIET, lambda: next(seconds))
    assert not cut.complete
    assert cut.record["steps_done"] < 60
    told = {row["metric"]: row["value"] for row in parts.curves(cut, 50)}
    assert told["complete"] == 0


def test_the_number_of_steps_fits_the_time_and_is_the_same_for_all():
    settings = {
        **STUDIES.get(SLUG).scale("full").settings,
        **TINY,
        "steps": 1_000,
        "timed_steps": 6,
        "train_s": 1e-6,
        "timed_for": 6,
    }
    made = [one.record["steps_done"] for one in models.train_sets(settings, "cpu", QUIET)]
    assert set(made) == {6}, "never fewer than were timed"


def test_without_weights_a_quick_run_says_where_they_belong(own_folder, monkeypatch):
    from workbench_datasets import files

    monkeypatch.setattr(files, "files_root", lambda: own_folder / "nowhere")
    with pytest.raises(BundleError, match=r"just-read-twice\.safetensors"):
        parts.shipped("sets-")


def test_modes_of_one_size_have_one_state_and_it_is_the_formula():
    for dim, key_dim in ((32, 4), (64, 16)):
        sizes = set()
        for mode in models.MODES:
            made: Any = models.build(mode, dim, key_dim, 64)
            attention = [block.mixer for block in made.blocks if isinstance(block.mixer, JustReadTwice)]
            sizes.add(sum(layer.start(1)["memory"].numel() * 4 for layer in attention))
        assert sizes == {models.state_bytes(dim, key_dim)}


def test_a_prompt_read_by_the_model_is_the_same_padded_or_not():
    torch.manual_seed(3)
    model: Any = models.build("prefix", 16, 3, len(notes.vocabulary())).eval()
    texts = [f"{note.context}\n{note.question}" for note in notes.notes(5, 4, seed=2) + notes.notes(5, 9, seed=2)]
    together = parts.reader(model, batch=10)(texts)
    assert together == [parts.reader(model)([text])[0] for text in texts]


def test_training_pools_grow_by_stages_and_mask_their_padding():
    settings = {**STUDIES.get(SLUG).scale("full").settings, **TINY}
    stage = models.sets_stages(settings)
    assert [stage(step).ids.shape[1] for step in range(4)] == [11, 11, 15, 23], "three more tokens than elements"
    assert stage(3) is stage(9), "the same object costs a training nothing"
    assert all((stage(step).ids > 0).all() for step in range(4)), "stages of one length need no padding"
    late = models.notes_stages(settings)(10)
    lengths = late.extras["attention_mask"].sum(1)
    assert lengths.max() > 1.8 * lengths.min(), "half of the notes are read twice"


# ---- what ships ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record() -> pd.DataFrame:
    return recorded.load(SLUG, "full")


def test_the_shipped_models_are_as_good_as_the_recorded_run_says(record):
    rows = record[(record["experiment"] == "sets") & (record["unit"].astype(str) == "0")]
    held = parts.shipped("sets-")
    assert len(held) == 9
    for name in ("sets-causal-24x3", "sets-prefix-32x4", "sets-non-causal-48x8"):
        mode, size = name.removeprefix("sets-").rsplit("-", 1)
        dim, key_dim = map(int, size.split("x"))
        for first, second in ((16, 64), (76, 4)):
            asked = set_disjointness(300, first, second, vocabulary=256, seed=99, split="test")
            found = parts.answers_right(held[name], asked, "cpu", 100)
            same = rows[(rows["item"] == mode) & (rows["x"] == models.state_bytes(dim, key_dim))]
            same = same[(same["first"] == first) & (same["second"] == second)]
            (known,) = same["value"]
            error = (known * (1 - known) * (1 / 300 + 1 / 1000)) ** 0.5
            assert abs(found - known) < 4 * error + 0.01, (name, first, second)


def test_the_shipped_language_models_know_the_kind_that_is_asked_for_and_not_the_name():
    """Why repeating the prompt is worth nothing to them: right where one fact is of the kind, else a draw."""
    small, asked = world(0), notes.notes(150, 8, seed=98)
    said = parts.reader(parts.shipped("notes-")["notes-causal"])([f"{n.context} {n.question}" for n in asked])
    frame = pd.DataFrame(
        {
            "rivals": [sum(w.strip(".") in small.objects(n.relation) for w in n.context.split()) for n in asked],
            "right": [word == n.answer for word, n in zip(said, asked)],
            "kind": [word in small.objects(n.relation) for word, n in zip(said, asked)],
        }
    )
    assert frame["kind"].mean() > 0.95
    assert frame.loc[frame["rivals"] == 1, "right"].mean() > 0.95
    assert frame.loc[frame["rivals"] > 1, "right"].mean() < 0.65


def test_the_recorded_run_says_what_the_notebook_says(record):
    verdicts = {key: found.verdict for key, found in STUDIES.get(SLUG).judge(record, "full").items()}
    holds = {"E1a", "E1b", "C5b", "C6"}
    assert {key for key, verdict in verdicts.items() if verdict == HOLDS} == holds
    failed = {"C1a", "C1b", "C2a", "C2c", "C2d", "C5a"}
    assert {key for key, verdict in verdicts.items() if verdict == NOT_REPRODUCED} == failed


def short(number: float) -> str:
    """Two decimals without the zero before the point, as the notebook writes shares."""
    return f"{number:.2f}".replace("0.", ".", 1) if abs(number) < 0.995 else f"{number:.2f}"


def test_the_notebook_s_numbers_are_those_of_the_record(record):
    notebook = Path(__file__).parents[2] / "notebooks" / "02-sequence-layers" / "just-read-twice.ipynb"
    texts = ["".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]]
    (text,) = (said for said in texts if "What the recorded run says" in said)
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if " kB |" in line}
    text = " ".join(text.split())

    sets = record[record["experiment"] == "sets"]
    order = (sets["first"] < sets["second"]).map({True: "small", False: "large"})
    shares = sets.groupby(["x", "item", order])["value"].mean()
    assert set(rows) == {f"{x / 1e3:.0f} kB" for x in sets["x"].unique()}
    for x in sets["x"].unique():
        own = [" / ".join(short(shares[x, mode, name]) for name in ("small", "large")) for mode in models.MODES]
        assert [cell.strip() for cell in rows[f"{x / 1e3:.0f} kB"]] == own
    by_state = (shares[:, "causal", "small"] - shares[:, "causal", "large"]).sort_index()
    assert f"({short(by_state.iloc[0])} at 3 kB, {short(by_state.iloc[-1])} at 29 kB)" in text
    pairs = sets[(sets["item"] == "causal") & (sets["x"] == sets["x"].min())].groupby("first")["value"].mean()
    assert f"at 3 kB {short(pairs[76])} are right with 76 and then 4 elements, {short(pairs[4])} the other" in text

    def told(found: Any) -> str:
        return f"{short(found.effect)} [{short(found.low)}, {short(found.high)}]"

    judged = STUDIES.get(SLUG).judge(record, "full")
    assert f"small set first minus large set first is {told(judged['C1a'])}" in text
    assert f"(C2b, {told(judged['C2b'])} over all states)" in text
    for mode in ("non-causal", "prefix"):
        gaps = claims.order_matters(sets[sets["item"] == mode].assign(item="causal"))
        assert f"{told(gaps)} for the {mode} model" in text
    assert f"takes {judged['C5a'].effect:.2f} times as long" in text
    assert f"costs {judged['C5b'].effect:.2f} times as much" in text
    right = record[record["metric"] == "correct"].groupby(["item", "x"])["value"].mean().map("{:.3f}".format)
    once, twice, prefix = (right[key][1:] for key in ((claims.RECURRENT, 1), (claims.RECURRENT, 2), (claims.PREFIX, 1)))
    assert f"repeating the prompt helps our language models ({once} and {twice} right, C3a)" in text
    assert f"or the prefix does ({prefix}, C4)" in text
    assert {judged[name].verdict for name in ("C2b", "C3a", "C3b", "C4")} == {INCONCLUSIVE}
    steps = record[(record["metric"] == "steps") & record["item"].str.startswith("sets-")]["value"]
    assert "9,900 to 10,000 steps" in text
    assert steps.between(9_900, 10_000).all()


# ---- claims -------------------------------------------------------------------------------------------------------


def sets_frame(gaps: dict[str, list[float]], seeds: int = 3, base: float = 0.5) -> pd.DataFrame:
    """Accuracies whose gap is given for each mode and state; large set first at ``base``."""
    rng, rows = np.random.default_rng(0), []
    for mode, own in gaps.items():
        for size, gap in zip((1e4, 1e5), own):
            for seed in range(seeds):
                noise = rng.normal(0, 0.005)
                for first, second in ((16, 64), (64, 16), (4, 16), (16, 4)):
                    small_first = first < second and max(first, second) >= 64
                    value = base + noise + (gap if small_first else 0) + 0.1 * (mode != "causal")
                    rows.append(("sets", mode, first, second, size, str(seed), "accuracy", value, 1000))
    return pd.DataFrame(rows, columns=["experiment", "item", "first", "second", "x", "unit", "metric", "value", "n"])


@pytest.mark.parametrize("seeds", [1, 3])
def test_claims_about_order_are_judged_as_they_read(seeds):
    frame = sets_frame({"causal": [0.3, 0.1], "prefix": [0.02, 0.0], "non-causal": [0.2, 0.2]}, seeds)
    assert claims.order_matters(frame).verdict == HOLDS
    assert claims.order_matters(frame).effect == pytest.approx(0.2)
    assert claims.less_with_more_state(frame).effect == pytest.approx(0.2, abs=0.02)
    assert claims._half_the_gap("prefix")(frame).verdict == HOLDS
    assert claims._half_the_gap("non-causal")(frame).verdict == NOT_REPRODUCED
    assert claims._better_with_large_first("prefix")(frame).verdict == HOLDS
    flat = sets_frame({"causal": [0.0, 0.0]}, seeds)
    assert claims.order_matters(flat).verdict == NOT_REPRODUCED
    assert claims._half_the_gap("prefix")(flat).verdict == INCONCLUSIVE
    assert claims._half_the_gap("prefix")(flat).n == 0


def test_an_inverted_gap_counts_as_a_gap():
    frame = sets_frame({"causal": [0.2, 0.2], "prefix": [-0.3, -0.3]})
    assert claims._half_the_gap("prefix")(frame).verdict == NOT_REPRODUCED


def prompt_frame(shares: dict[tuple[str, int], float], n: int = 200) -> pd.DataFrame:
    rows = [
        ("prompt", item, times, str(i), "correct", float(i < share * n))
        for (item, times), share in shares.items()
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=["experiment", "item", "x", "unit", "metric", "value"])


def test_claims_about_prompts_are_paired():
    frame = prompt_frame({(claims.RECURRENT, 1): 0.5, (claims.RECURRENT, 2): 0.7, (claims.PREFIX, 1): 0.4})
    assert claims.repeating_helps(frame).verdict == HOLDS
    assert claims.repeating_helps(frame).effect == pytest.approx(0.2)
    assert claims.prefix_beats_causal(frame).verdict == NOT_REPRODUCED
    assert claims.repeating_helps_attention(frame).verdict == INCONCLUSIVE
    ceiling = prompt_frame({(claims.EMBEDDED, 1): 1.0, (claims.EMBEDDED, 2): 1.0})
    assert claims.repeating_helps_attention(ceiling).verdict == INCONCLUSIVE


def times_frame(quadratic: float, twice: float, prefix: float) -> pd.DataFrame:
    rows = []
    for item, at_longest in (
        (claims.QUADRATIC, quadratic), (claims.LINEAR_TWICE, twice), (claims.PREFIX_TIME, prefix), (claims.LINEAR, 1.0),
    ):  # fmt: skip
        for n, value in ((1024, 1.0), (32768, at_longest)):
            spread = {"ms": value, "q25": 0.95 * value, "q75": 1.05 * value, "launches": 10.0}
            rows += [("prefill", item, n, metric, number) for metric, number in spread.items()]
    return pd.DataFrame(rows, columns=["experiment", "item", "x", "metric", "value"])


def test_claims_about_speed_look_at_the_longest_prompt():
    frame = times_frame(10.0, 2.0, 1.2)
    assert claims.twice_is_faster(frame).verdict == HOLDS
    assert claims.twice_is_faster(frame).effect == pytest.approx(0.2)
    assert claims.prefix_costs_little(frame).verdict == HOLDS
    slow = times_frame(1.0, 2.0, 3.0)
    assert claims.twice_is_faster(slow).verdict == NOT_REPRODUCED
    assert claims.prefix_costs_little(slow).verdict == NOT_REPRODUCED
    assert "32768: 2.00" in claims.twice_is_faster(slow).note


def test_a_state_that_grows_or_differs_is_found_out():
    rows = [("state", mode, x, "a", 100.0) for mode in ("causal", "prefix") for x in (4, 64)]
    frame = pd.DataFrame(rows, columns=["experiment", "item", "x", "unit", "value"])
    assert claims.same_state(frame).verdict == HOLDS
    assert claims.same_state(frame.assign(value=[100.0, 100, 120, 120])).verdict == NOT_REPRODUCED
    assert claims.same_state(frame.assign(value=[100.0, 120, 100, 120])).verdict == NOT_REPRODUCED


# ---- pictures -----------------------------------------------------------------------------------------------------


def test_figures_are_drawn_from_any_source(tmp_path):
    study, paper = STUDIES.get(SLUG), reported.load(SLUG)
    gaps = {"causal": [0.3, 0.1], "prefix": [0.02, 0.0]}
    asked = prompt_frame({(claims.RECURRENT, 1): 0.5, (claims.RECURRENT, 2): 0.7})
    recorded = pd.concat([sets_frame(gaps), asked, times_frame(10.0, 2.0, 1.2)])
    live = pd.concat([sets_frame(gaps, 1), asked])
    for name, given in (("all", (live, paper, recorded)), ("paper", (None, paper, None)), ("live", (live, None, None))):
        study.figure(*given).save(tmp_path / f"{name}.svg")
    drawn = (tmp_path / "all.svg").read_text()
    for word in ("recorded", "live", "paper", "Mamba 130M", "small set first", "Prefill"):
        assert word in drawn
    assert ">recorded</text>" in drawn
    assert ">recorded</text>" not in (tmp_path / "paper.svg").read_text(), "a legend names what is drawn"


def test_orders_average_pairs_and_seeds():
    frame = sets_frame({"causal": [0.3, 0.1]})
    orders = orders_of(frame)
    assert orders is not None
    gap = orders[(orders["panel"] == pictures.PANELS[2]) & (orders["bytes"] == 1e4)].iloc[0]
    assert gap["value"] == pytest.approx(0.3)
    assert gap["runs"] == 3
    large = orders[orders["panel"] == pictures.PANELS[1]]
    assert large["chance"].to_list() == pytest.approx([1 / 16, 1 / 16])
    assert orders_of(frame[frame["experiment"] == "none"]) is None
    assert prompt_table(frame) is None
    with pytest.raises(BadInput, match="no accuracies"):
        pictures.figure_2(frame[frame["experiment"] == "none"])


def test_masks_and_traces_are_drawn_and_bad_ones_refused(tmp_path):
    from workbench.tasks import disjointness

    rng = np.random.default_rng(0)
    codes, sets = disjointness.unit_codes(100, 16, rng), disjointness.draw_sets(8, 3, rng, 100)
    pictures.memory_trace(disjointness.trace(sets, 2, codes)).save(tmp_path / "trace.svg")
    assert "in both sets" in (tmp_path / "trace.svg").read_text()
    chart = pictures.prefix_mask(6, 3)
    cells = chart.data.set_index(["reads", "token"])["through"]
    assert cells[0, 2] == "encoder"
    assert cells[2, 0] == "both"
    assert cells[5, 4] == "causal"
    assert cells[3, 4] == "unseen"
    assert set(pictures.prefix_mask(4, 2, "causal").data["through"]) == {"causal", "unseen"}
    assert set(pictures.prefix_mask(4, 2, "non-causal").data["through"]) == {"one sum"}, "there is no encoder"
    wrong: tuple[Any, ...] = ((0, 0), (65, 1), (6, 7), (4.5, 2), ("4", 2), (4, 2.5))
    for length, prefix in wrong:
        with pytest.raises(BadInput, match="prefix_mask"):
            pictures.prefix_mask(length, prefix)
    with pytest.raises(BadInput, match="mode"):
        pictures.prefix_mask(4, 2, "both")
    orders = orders_of(sets_frame({"causal": [0.3, 0.1]}))
    assert orders is not None
    with pytest.raises(BadInput, match="modes are"):
        pictures.order_curves(orders.assign(mode="backwards"))
    nothing: Any = None
    for draw, name in ((pictures.figure_2, "figure_2"), (pictures.prefill_curves, "prefill_curves")):
        for frame in (nothing, pd.DataFrame({"a": [1]})):
            with pytest.raises(BadInput, match=name):
                draw(frame)
