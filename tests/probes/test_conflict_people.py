"""Conflicts are asked of many people, nobody stands in two sets, and every interval of the study is over people."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.models import load
from workbench.statistics import of_differences
from workbench.studies import STUDIES, Progress
from workbench.studies import _conflict_claims as claims
from workbench.studies import knowledge_conflict_heads as module
from workbench.tasks.conflicts import conflicts, copying, divided
from workbench.views.conflicts import gains, knockout_curves, transfer_map
from workbench_datasets import recorded
from workbench_datasets.small_world import world

SLUG = "knowledge-conflict-heads"
SETS = ("scored", "validation", "test")
#: Every part of the study on few prompts; eight of 32 people are tested twice.
SMALL = {
    "models": ["embedded"], "people": [1, 1, 1], "scored": 12, "validation": 8, "test": 40, "copying": 8, "draws": 2,
    "transfer_scored": 4, "transfer_prompts": 4, "knockout_prompts": 2, "joint_prompts": 6, "processes": 1,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def embedded():
    torch.set_num_threads(1)
    return load("embedded")


@pytest.fixture(scope="module")
def study():
    return STUDIES.get(SLUG)


@pytest.fixture(scope="module")
def live(study) -> pd.DataFrame:
    torch.set_num_threads(1)
    scale = study.scale("full")
    return study.run(replace(scale, settings={**scale.settings, **SMALL}), 3, Progress(quiet=True))


# ---- sets of people -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_sets_of_people_share_nobody_and_have_popular_and_rare_ones_alike(seed):
    sets, people = divided((1, 1, 4), seed=seed), world().people
    assert sorted(person for part in sets for person in part) == sorted(people)
    assert [len(part) for part in sets] == [16, 16, 64]
    for part in sets:
        terciles = [sum(world().tercile(person) == name for person in part) for name in ("high", "mid", "low")]
        assert max(terciles) - min(terciles) <= 2
    assert sets == divided((1, 1, 4), seed=seed)
    assert sets != divided((1, 1, 4), seed=seed + 10)


def test_prompts_are_spread_over_people_and_none_is_asked_the_same_twice(embedded):
    people = divided((1, 1, 4), seed=9)[0]
    asked = conflicts(embedded, 40, seed=601, relations=module.FOUND_ON, people=people)
    assert {c.subject for c in asked} == set(people)
    assert [world().people[c.person] for c in asked] == [c.subject for c in asked]
    assert len({(c.subject, c.relation, c.form) for c in asked}) == 40
    assert len({c.person for c in asked[:16]}) == 16, "everybody once before anybody twice"
    others = set(world().people) - set(people)
    twins = [embedded.tokenizer.decode(ids) for c in asked for ids in c.corrupted]
    assert not [text for text in twins if any(other in text for other in others)]


def test_strangers_are_asked_about_once_each(embedded):
    prompts, answers = copying(embedded, 30, seed=602)
    assert len(prompts) == len(answers) == 30
    assert len({embedded.tokenizer.decode(ids) for ids in prompts}) == 30


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_at_least_half_of_the_people_are_tested_and_nobody_is_in_two_sets(study, embedded, scale):
    for seed in (0, 5):
        material = module._Material(embedded, study.scale(scale).settings, seed)
        sets = {name: {c.person for c in getattr(material, name)} for name in SETS}
        assert len(sets["test"]) >= len(world().people) / 2
        assert sum(len(part) for part in sets.values()) == len(set().union(*sets.values()))
        assert not set(material.strangers) & set(range(len(world().people)))


def test_the_recorded_run_asked_at_least_half_of_the_people_and_nobody_for_two_ends():
    rows = recorded.load(SLUG, "full")
    asked = rows[rows["metric"] == "prompts"]
    assert set(asked["model"]) == {"embedded", "embedded-relu"}
    for _, own in asked.groupby(["seed", "model"]):
        assert set(own["unit"]) == set(SETS)
        assert not own["person"].duplicated().any()
        assert (own["unit"] == "test").sum() >= len(world().people) / 2
    tested = rows[(rows["metric"] == "memory") & (rows["pruned"] == "nothing")]
    for (seed, model), own in tested.groupby(["seed", "model"]):
        test = asked[(asked["seed"] == seed) & (asked["model"] == model) & (asked["unit"] == "test")]
        assert set(own["person"]) == set(test["person"])


# ---- intervals ------------------------------------------------------------------------------------------------------


def made_up(prompts: int, people: int = 6) -> pd.DataFrame:
    """Half of the people always change sides, half never; random heads change nothing."""
    rows = []
    for person in range(people):
        for prompt in range(prompts):
            where = {"person": person, "unit": str(person * prompts + prompt), "metric": "memory"}
            changed = {"nothing": 0.0, "context heads": float(person % 2 == 0)}
            rows += [{**where, "pruned": label, "value": value} for label, value in changed.items()]
        where = {"person": person, "pruned": "random heads", "metric": "memory rate", "value": 0.0}
        rows += [{**where, "unit": str(draw)} for draw in range(3)]
    return pd.DataFrame(rows).assign(model="made up", experiment="control", k=1)


def test_more_prompts_about_the_same_people_do_not_narrow_an_interval():
    few, many = (claims.memory_wins(made_up(prompts)) for prompts in (2, 60))
    assert many.n == few.n == 6
    assert (many.low, many.high) == (few.low, few.high)
    assert many.effect == 0.5
    assert many.high - many.low > 0.5
    for prompts in (2, 60):
        line = gains(made_up(prompts)).iloc[0]
        assert (line["low"], line["high"]) == (few.low, few.high)
    over_prompts = of_differences([1.0, 0.0] * 180)
    assert over_prompts.high - over_prompts.low < 0.2, "what an interval over prompts would have claimed"


def test_a_random_draw_that_does_as_much_takes_the_claim_away():
    frame = made_up(4)
    assert claims.memory_wins(frame).verdict == "holds"
    strong = (frame["pruned"] == "random heads") & (frame["unit"] == "2") & (frame["person"] % 2 == 0)
    frame.loc[strong, "value"] = 1.0
    found = claims.memory_wins(frame)
    assert (found.verdict, found.effect) == ("inconclusive", 0.0)
    assert "strongest of 3 random draws reaches 0.500" in found.note


def test_the_model_where_a_claim_is_weakest_decides():
    frame = made_up(4)
    other = made_up(4).assign(model="unmoved")
    other.loc[(other["pruned"] == "context heads") & (other["metric"] == "memory"), "value"] = 0.0
    found = claims.memory_wins(pd.concat([frame, other]))
    assert (found.verdict, found.effect) == ("inconclusive", 0.0)
    assert "made up: memory 0.500" in found.note
    assert "unmoved: memory 0.000" in found.note


def test_every_claim_of_a_run_counts_people(study, live):
    control = live[live["experiment"] == "control"]
    tested = control[control["metric"] == "memory"]["person"].nunique()
    strangers = control[control["metric"] == "copying"]["person"].nunique()
    assert (tested, strangers) == (32, 8)
    outcomes = study.judge(live, "full")
    found = {key: outcome.n for key, outcome in outcomes.items()}
    assert {found[key] for key in ("C1", "C2", "C4a", "C4b", "C5a")} == {tested}
    assert found["C5b"] == tested + strangers
    assert 10 < found["C3"] < tested, "each form asks some of them"
    assert all(f"({found[key]} people)" in outcomes[key].note for key in ("C1", "C2", "C4a", "C4b", "C5a"))


def test_every_row_about_a_prompt_names_its_person(live):
    about = ~live["metric"].isin(["head", "s_memory", "s_context"])
    assert live.loc[about, "person"].notna().all()
    assert live.loc[~about, "person"].isna().all()
    assert set(live["experiment"]) == {"control", "baselines", "transfer", "knockout", "joint"}
    found_with, chosen_with, _ = divided(SMALL["people"], seed=module.FIRST_SEED + 3)
    used = {world().people.index(person) for person in [*found_with, *chosen_with]}
    tested = live[about & ~live["unit"].isin(SETS)]
    assert not used & set(tested["person"])


def test_several_seeds_do_not_make_more_people_of_the_same(live):
    both = pd.concat([live.assign(seed=0), live.assign(seed=1)])
    once, twice = claims.memory_wins(live), claims.memory_wins(both)
    assert (twice.effect, twice.low, twice.high, twice.n) == (once.effect, once.low, once.high, once.n)


def test_pictures_draw_people(live):
    curves = knockout_curves(live).to_dict()
    assert curves["datasets"]
    drawn = next(rows for rows in transfer_map(live).to_dict()["datasets"].values() if rows and "people" in rows[0])
    assert {row["people"] for row in drawn} == {4}
    assert np.isfinite([row["value"] for row in drawn]).all()
