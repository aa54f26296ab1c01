"""The study end to end (small), claims on made-up rows, the pictures, the reported numbers, the real users."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.errors import BadInput
from workbench.llm import Scripted
from workbench.memory.stores.base import count_tokens
from workbench.memory.stores.memorybank import MemoryBank
from workbench.studies import STUDIES
from workbench.studies import _memorybank_claims as claims
from workbench.studies._memorybank_chat import chat_rows, overlap
from workbench.studies._memorybank_talk import is_right
from workbench.studies._memorybank_world import acquaintances
from workbench.studies.base import Progress
from workbench.tasks.life import Life, Policy, draw, live
from workbench.views import forgetting
from workbench.views import memorybank as views
from workbench_datasets import companions, recorded, reported
from workbench_datasets.companions import Probe

SMALL = {"lives": 6, "capacities": [16, 64], "users": 1, "encoder": "tfidf", "readers": ["extractive rules"],
         "forgetting": ["nothing forgotten", "hazard"], "device": "cpu", "first_life": 300,
         "first_world": 300}  # fmt: skip
QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def study():
    return STUDIES.get("memorybank")


@pytest.fixture(scope="module")
def measured(study) -> pd.DataFrame:
    grid = {"time_scales": [5.0, math.inf], "increments": [0.0, 1.0], "capacities": [64]}
    scale = study.scale("quick")
    scale = replace(scale, settings={**scale.settings, **SMALL, "grid": grid})
    return study.run(scale, 0, QUIET).assign(seed=0)


def test_the_run_is_tidy_and_repeatable(study, measured):
    assert list(measured) == ["experiment", "policy", "capacity", "time_scale", "increment", "metric", "unit", "step",
                              "value", "seed"]  # fmt: skip
    assert set(measured["experiment"]) == {"life", "life with drift", "grid", claims.TALK, claims.WORLD}
    assert measured["value"].notna().all()
    scale = study.scale("quick")
    scale = replace(scale, settings={**scale.settings, **SMALL, "worlds": [claims.TALK]})
    again = study.run(scale, 0, QUIET)
    mine = measured[~measured["experiment"].isin(["grid", claims.WORLD])].drop(columns="seed").reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, again)


def test_every_claim_is_judged(study, measured):
    outcomes = study.judge(measured, "full")
    assert list(outcomes) == [claim.id for claim in study.claims]
    assert set(study.judge(measured, "quick")) == set(outcomes) - {"C1u", "D1"}
    assert outcomes["C1u"].verdict == outcomes["M1"].verdict == "inconclusive"  # neither was measured here
    assert all(math.isnan(outcome.effect) for outcome in study.judge(measured.iloc[:0], "full").values())


def test_the_inequalities_of_the_life_simulation_hold_on_twenty_new_lives(study):
    """Done means 5, on lives that no setting was chosen on and no recorded run uses."""
    scale = study.scale("quick")
    only = {"worlds": [], "capacities": [], "first_life": 52_000, "device": "cpu"}
    frame = study.run(replace(scale, settings={**scale.settings, **only}), 0, QUIET)
    for name in ("C3a", "C3b", "C3c", "C3d", "L1"):
        outcome = study.judge(frame, "quick")[name]
        assert outcome.verdict == "holds", (name, outcome)


# ---------------------------------------------------------------------- claims on rows whose verdict is known
def rows(experiment, metric, by_policy, capacity=math.nan) -> pd.DataFrame:
    return pd.concat([
        pd.DataFrame({"experiment": experiment, "policy": policy, "capacity": capacity, "metric": metric,
                      "unit": [str(at) for at in range(len(values))], "value": values, "seed": 0})
        for policy, values in by_policy.items()
    ], ignore_index=True)  # fmt: skip


def around(mean: float) -> list[float]:
    return (mean + np.linspace(-0.02, 0.02, 20)).tolist()


MIXED = (around(0.5)[::-1], around(0.5))
KNOWN = [
    ("C3a", rows("life", "hit rate", {claims.EBB: around(0.6), claims.FIFO: around(0.2)}, 64.0), "holds"),
    ("C3a", rows("life", "hit rate", {claims.EBB: around(0.3), claims.FIFO: around(0.2)}, 64.0), "not reproduced"),
    ("C3a", rows("life", "hit rate", {claims.EBB: around(0.6), claims.FIFO: around(0.2)}, 32.0), "inconclusive"),
    ("C3b", rows("life", "hit rate", {claims.EBB: around(0.6), claims.RANDOM: around(0.1)}, 64.0), "holds"),
    ("C3c", rows("life", "hit rate", {claims.HAZARD: around(0.4), claims.BARE: around(0.1)}), "holds"),
    ("C3d", rows("life", "hit rate", {claims.BARE: around(0.1), claims.BUG: around(0.2)}), "not reproduced"),
    ("D1", rows("life with drift", "hit rate", {claims.EBB: MIXED[0], claims.LFU: MIXED[1]}, 64.0), "inconclusive"),
    ("D1", rows("life with drift", "hit rate", {claims.EBB: around(0.3), claims.LFU: around(0.2)}, 64.0), "holds"),
    ("C1", rows(claims.WORLD, "retrieved", {claims.OFF: [1.0] * 48}), "holds"),
    ("C1", rows(claims.WORLD, "retrieved", {claims.OFF: [1.0, 0.0] * 24}), "not reproduced"),
    ("C1", rows(claims.WORLD, "retrieved", {claims.OFF: [1.0] * 8 + [0.0] * 2}), "inconclusive"),
    ("C1u", rows(claims.USERS, "day@6", {"MiniLM, pieces": [1.0] * 35}), "holds"),
    ("M1", rows(claims.TALK, "correct (embedded model)", {claims.OFF: [1.0] * 40, claims.NONE: [0.0] * 40}), "holds"),
    ("M2", rows(claims.TALK, "correct (extractive rules)", {claims.OFF: [1.0] * 20, claims.NONE: [1.0] * 20}),
     "inconclusive"),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "frame", "verdict"), KNOWN)
def test_claims_on_known_rows(study, claim, frame, verdict):
    assert study.judge(frame, "full")[claim].verdict == verdict


def test_what_counts_as_a_right_answer():
    told, never = Probe("A", "Which?", None, "plum pancakes", ("A_1",)), Probe("A", "Which?", None, "not mentioned")
    assert is_right("I made Plum pancakes!", told)
    assert not is_right("pancakes", told)
    assert not is_right("", told)
    assert is_right("Unknown.", never)
    assert not is_right("plum pancakes", never)


def test_the_world_of_acquaintances_is_seeded_and_its_answers_stand_in_its_talk():
    one, two = acquaintances(7, users=2), acquaintances(7, users=2)
    assert one == two != acquaintances(8, users=2)
    for user in one:
        told = {exchange.key: exchange.query for exchange in user.exchanges}
        assert len(told) == 40
        assert sum(not probe.evidence for probe in user.probes) == 2
        for probe in user.probes:
            if probe.evidence:
                assert probe.answer in told[probe.evidence[0]]
                assert sum(probe.answer in text and _name(probe, text) for text in told.values()) == 1


def _name(probe: Probe, text: str) -> bool:
    return any(f"{a} {b}" in text for a, b in zip(probe.text.split(), probe.text.rstrip("?").split()[1:]))


def test_a_chat_model_is_asked_every_question_with_and_without_the_memory():
    users = companions.companions_world(3, users=2)
    asked: list[str] = []

    def answer(request):
        asked.append("\n".join(message.content for message in request.messages))
        found = [line for line in asked[-1].splitlines() if line.startswith("[2023")]
        return found[0] if found else "I do not know."

    settings = {"encoder": "tfidf", "k": 6, "chat_budget": 400, "chat_tokens": 50}
    frame = pd.DataFrame(list(chat_rows(settings, QUIET, users, Scripted(answer))))
    assert len(asked) == 2 * len(users.probes) == 40
    assert all(count_tokens(text) <= 400 for text in asked)
    day = frame[frame["metric"] == "overlap with the named day"].groupby("policy")["value"].agg(["mean", "count"])
    assert day["count"].tolist() == [len(users.dated)] * 2
    assert day.loc[claims.OFF, "mean"] > day.loc[claims.NONE, "mean"]
    exchange = users.exchanges[0]
    assert overlap(exchange.text, [exchange]) == 1
    assert overlap("", [exchange]) == overlap(exchange.text, []) == 0


# ---------------------------------------------------------------------- pictures
def test_figures_of_the_study(study, measured, tmp_path):
    paper = reported.load("memorybank")
    charts = {
        "paper": study.figure(measured, paper, measured),
        "alone": study.figure(None, paper, None),
        "bars": views.equal_budget_bars(measured),
        "capacity": views.hit_rate_by_capacity(measured),
        "size": views.size_and_hits(measured),
        "grid": views.grid_map(measured),
    }
    for name, chart in charts.items():
        chart.save(str(tmp_path / f"{name}.png"))
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    assert "∞" in json.dumps(charts["grid"].to_dict(), ensure_ascii=False)
    calls = (lambda: study.figure(None, None, None), lambda: views.grid_map(measured, 17),
             lambda: views.equal_budget_bars(None), lambda: study.figure(measured.drop(columns="policy"), paper, None),
             lambda: views.equal_budget_bars(measured, 17), lambda: views.size_and_hits(measured.iloc[:0]))  # fmt: skip
    for wrong in calls:
        with pytest.raises(BadInput):
            wrong()


def test_curves_with_memories_on_them(tmp_path):
    items = pd.DataFrame({"t": [0.5, 6.0], "S": [1.0, 3.0], "text": ["first", "second " * 40]})
    for number, formula in enumerate(forgetting.FORMULAS):
        chart = forgetting.forgetting_curves(items, time_scale=5.0, formula=formula, ahead=2.0)
        assert chart.to_dict(validate=True)["params"]
        chart.save(str(tmp_path / f"{number}.svg"))
    assert (tmp_path / "0.svg").read_text() != (tmp_path / "1.svg").read_text() != (tmp_path / "2.svg").read_text()
    assert forgetting.forgetting_curves().to_dict(validate=True)
    wrong = ({"time_scale": 0}, {"threshold": 0}, {"formula": "mine"}, {"strengths": ()}, {"strengths": (0, 1)},
             {"days": 0}, {"ahead": -1})  # fmt: skip
    for options in wrong:
        with pytest.raises(BadInput):
            forgetting.forgetting_curves(items, **options)
    with pytest.raises(BadInput, match="'S'"):
        forgetting.forgetting_curves(items.drop(columns="S"))


def test_life_chart_of_a_simulation_and_of_a_store(tmp_path):
    lives = live(draw(Life(days=20, score_from=5), [3]), Policy("EBB", "capacity", capacity=20)).items(3)
    lives = lives.rename(columns={"item": "id", "died": "ended"}).assign(text="fact")
    chart = forgetting.life_chart(lives, top=30)
    chart.save(str(tmp_path / "life.png"))
    drawn = chart.to_dict(validate=True)
    sizes = [len(data) for data in drawn["datasets"].values()]
    assert 30 in sizes
    memory = MemoryBank(encoder="tfidf")
    memory.write("I like tea.", time=0.0)
    assert forgetting.life_chart(memory.lives(), colour="S").to_dict(validate=True)
    with pytest.raises(BadInput, match="top"):
        forgetting.life_chart(lives, top=0)
    with pytest.raises(BadInput, match="importance"):
        forgetting.life_chart(lives.drop(columns="importance"))


def test_prompt_blocks_and_retrieval_by_question(tmp_path):
    memory = MemoryBank(encoder="tfidf", rule="none")
    for day in range(3):
        memory.exchange(f"Day {day}: I like tea number {day}.", "Good.", time=day * 86_400.0)
    prompt = memory.prompt("Which tea?", budget_tokens=60)
    assert prompt.dropped
    chart = forgetting.prompt_blocks(prompt.frame(), budget=60, subtitle=prompt.report())
    chart.save(str(tmp_path / "prompt.png"))
    assert (tmp_path / "prompt.png").stat().st_size > 5_000
    table = pd.DataFrame({"question": "Which tea?", "similarity": [i.score for i in memory.read("Which tea?").items]})
    table = table.assign(day="1970-01-01", hit=table.index == 0, text="tea")
    assert views.retrieval_by_question(table).to_dict(validate=True)
    with pytest.raises(BadInput, match="tokens"):
        forgetting.prompt_blocks(prompt.frame().drop(columns="tokens"))


# ---------------------------------------------------------------------- published numbers and the authors' users
def test_reported_numbers_are_those_of_table_two():
    table = reported.load("memorybank")
    rows = table[table["table"].str.startswith("Table 2")]
    assert len(rows) == 24
    chatgpt = rows[(rows["item"] == "ChatGPT") & (rows["metric"] == "retrieval accuracy")].set_index("table")["value"]
    assert chatgpt.to_dict() == {"Table 2 English": 0.763, "Table 2 Chinese": 0.711}


def test_the_recorded_run_holds_what_the_study_measures(study):
    frame = recorded.load("memorybank")
    assert len(frame[frame["experiment"] == "life"]["unit"].unique()) == 200
    assert {"C1u", "D1", "M1"} <= set(study.judge(frame, "full"))
    data = frame[frame["policy"] == "data"].set_index("metric")["value"].to_dict()
    assert data == {"users": 15, "exchanges": 566, "probes": 100, "dated probes": 35}
    assert views.grid_map(frame).to_dict(validate=True)
    assert study.figure(None, reported.load("memorybank"), frame).to_dict(validate=True)


def test_the_authors_users_count_once_and_a_cell_of_the_grid_is_drawn_once_for_several_seeds(study):
    one = recorded.load("memorybank")
    rest = one[~one["experiment"].isin(["life", "life with drift"])]
    three = pd.concat([rest.assign(seed=seed) for seed in range(3)], ignore_index=True)
    assert study.judge(three, "full")["C1u"] == study.judge(one, "full")["C1u"]
    told = [views.summary(frame).set_index("item").loc["authors' users, named day, top 6"] for frame in (rest, three)]
    assert told[0].equals(told[1])
    cells = [row for rows in views.grid_map(three).to_dict()["datasets"].values() for row in rows]
    assert len(cells) == 30


def test_the_authors_users_are_read_and_their_file_is_left_alone(real_data):
    files = [real_data / "memorybank" / name for name in ("memory_bank_en.json", "probing_questions_en.jsonl")]
    if not all(file.is_file() for file in files):
        pytest.skip("the authors' users are not on this machine")
    before = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    users = companions.load(real_data / "memorybank")
    assert (len(users), len(users.exchanges), len(users.probes), len(users.dated)) == (15, 566, 100, 35)
    assert all(user.name == user.name.strip() for user in users)
    memory = MemoryBank(encoder="tfidf", rule="as_published_bug", time_scale=5.0)
    for user in users.users[:3]:
        memory.remember(user.exchanges)
        memory.read(user.probes[0].text, user=user.name)
    assert memory.users() == sorted(user.name for user in users.users[:3])
    assert len(memory.forgotten()) > 20
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == before
