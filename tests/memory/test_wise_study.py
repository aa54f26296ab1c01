"""WISE's study: edits with gold, claims on known rows, pictures, and the quick run as the card wants it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench.errors import BadInput
from workbench.memory.parametric.ft_l import FTL
from workbench.studies import STUDIES, Progress
from workbench.studies import _wise_claims as claims
from workbench.studies import wise as study_module
from workbench.tasks import edits as task
from workbench.views import wise as views
from workbench_datasets import recorded, reported
from workbench_datasets.small_world import world


@pytest.fixture(scope="module")
def edits(embedded):
    return task.edit_set(embedded, 10, seed=3)


@pytest.fixture(scope="module")
def quick():
    """The quick scale with one stream."""
    study = STUDIES.get("wise")
    scale = study.scale("quick")
    scale = replace(scale, settings={**scale.settings, "streams": 1, "device": "cpu"})
    return study.run(scale, 0, Progress(quiet=True))


# ---------------------------------------------------------------------- edits
def test_edits_are_of_known_facts_and_locality_of_people_left_alone(embedded, edits):
    truth = world().truth
    subjects = {case.subject for case in edits.cases}
    for i, case in enumerate(edits.cases):
        assert truth[case.subject, case.relation] == case.old != case.target
        assert case.target in world().objects(case.relation)
        assert case.subject in case.prompt
        assert len({case.prompt, case.paraphrase, case.statement}) == 3
        assert not any(name in case.other for name in subjects)
        assert task.says(embedded, [(case.prompt, case.old), (case.prompt, case.target)]) == [True, False], i
    assert {case.same_relation for case in edits.cases} == {True, False}
    assert task.edit_set(embedded, 10, seed=3).cases == edits.cases
    assert task.edit_set(embedded, 10, seed=4).cases != edits.cases


def test_settings_are_looked_for_on_other_people(embedded, edits):
    tune, test = (set(task.people_of(world(), part)) for part in ("tune", "test"))
    assert not tune & test
    assert len(tune | test) == len(world().people)
    assert {case.subject for case in edits.cases} <= test
    assert all(any(name in text for name in tune) for text in task.negatives(8, kind="question"))
    assert not any(name in text for name in world().people for text in task.negatives(8))


def test_scores_of_the_unedited_model(embedded, edits):
    memory = FTL().bind(embedded)
    found = task.scores(memory, edits).groupby("kind")["right"].mean()
    assert found["loc"] == 1
    assert found[["rel", "gen", "said"]].max() < 0.5  # a shared first piece of a word may be right by chance
    counts = []
    task.write_all(memory, edits.part(0, 2), counts.append)
    assert counts == [1, 2]
    memory.unbind()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: task.edit_set(m, 0), "at least 1"),
        (lambda m: task.edit_set(m, 4, part="all"), "part must be one of"),
        (lambda m: task.edit_set(m, 500), "500 edits were asked for"),
        (lambda m: task.edit_set(m, 2.5), "whole number"),
        (lambda m: task.negatives(2, kind="poem"), "kind must be"),
        (lambda m: task.negatives(-1), "whole number"),
        (lambda m: task.negatives(2, part="all"), "part must be one of"),
    ],
)
def test_wrong_edit_sets_are_refused(embedded, call, told):
    with pytest.raises(BadInput, match=told):
        call(embedded)


# ---------------------------------------------------------------------- claims
def rows(method: str, kind: str, values, *, edits: int = 20, metric: str = "right", experiment="main", setting=""):
    where = {"seed": 0, "experiment": experiment, "method": method, "setting": setting, "edits": edits, "after": edits}
    return [
        {**where, "unit": f"0.0.{i}", "kind": kind, "metric": metric, "value": float(v)} for i, v in enumerate(values)
    ]


def test_claims_compare_the_same_edits_at_the_largest_t():
    n, good, bad = 20, np.ones(20), np.zeros(20)
    lines = [*rows("WISE", "rel", bad, edits=5), *rows("FT-L", "rel", good, edits=5)]  # a smaller T is not judged
    for kind, first, second in (("rel", good, good), ("gen", good, bad), ("loc", good, bad), ("said", good, good)):
        lines += rows("WISE", kind, first) + rows("FT-L", kind, second)
    frame = pd.DataFrame(lines)
    found = claims.more(frame, "avg", "FT-L")
    assert (found.verdict, found.n) == ("holds", n)
    assert found.effect == pytest.approx(2 / 3)
    assert claims.more(frame, "rel", "FT-L").verdict == "inconclusive"
    swapped = frame.assign(method=frame["method"].map({"WISE": "FT-L", "FT-L": "WISE"}))
    assert claims.more(swapped, "avg", "FT-L").verdict == "not reproduced"
    assert claims.more(frame, "avg", "ROME").n == 0
    assert claims.stays(frame, 0.8).verdict == "holds"
    assert claims.stays(swapped).verdict == "not reproduced"


def test_the_auc_is_taken_within_a_block():
    assert claims.above(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    lines = rows("WISE", "rel", np.full(6, 5.0), metric="delta") + rows("WISE", "gen", np.full(6, 5.0), metric="delta")
    lines += rows("WISE", "loc", np.full(6, 4.0), metric="delta")
    far = [{**line, "unit": line["unit"].replace("0.0", "1.0"), "value": 100 * line["value"]} for line in lines]
    assert claims.separates(pd.DataFrame(lines + far)).effect == 1
    assert claims.separates(pd.DataFrame(lines), against="text").n == 0


def test_collapse_and_sweet_spot():
    lines = rows("ROME", "rel", np.ones(20), edits=1) + rows("ROME", "rel", np.r_[np.ones(4), np.zeros(16)])
    assert claims.collapses(pd.DataFrame(lines)).verdict == "holds"
    assert claims.collapses(pd.DataFrame(rows("ROME", "rel", np.ones(4), edits=1))).n == 0
    lines = []
    for setting, share in (("rho=0.2", 1.0), ("rho=0.05", 0.0), ("rho=1", 1.0)):
        for kind in ("rel", "gen", "loc"):
            lines += rows("WISE", kind, np.full(20, share), experiment="sweep", setting=setting)
    found = claims.sweet_spot(pd.DataFrame(lines), "rho=0.2", ("rho=0.05", "rho=1"))
    assert found.verdict == "inconclusive"  # one side falls, the other does not
    assert claims.sweet_spot(pd.DataFrame(lines), "rho=0.2", ("rho=0.05",)).verdict == "holds"


# ---------------------------------------------------------------------- the study
def test_the_quick_run_has_what_the_card_wants(quick):
    """Loc(WISE) against Loc(FT-L) and Gen(WISE) against Gen(GRACE), each with its interval."""
    found = STUDIES.get("wise").judge(quick, "quick")
    for claim in ("LOC-FTL", "GEN"):
        assert found[claim].n == 12
        assert found[claim].low <= found[claim].effect <= found[claim].high
    assert found["GEN"].verdict == "holds"
    assert found["LOC-FTL"].effect >= 0
    assert set(quick["kind"]) == {"rel", "gen", "said", "loc", "text", "eps", "followed", "writing"}
    assert (quick[quick["kind"] == "followed"].groupby("method").size() == 12 * 13 / 2).all()


def test_the_plan_begins_with_what_must_hold_and_shares_one_point():
    plan = study_module.plan(study_module._FULL)
    first = plan[: study_module._FULL["streams"] * len(study_module._FULL["methods"])]
    assert {(cell[0], cell[4]) for cell in first} == {("main", 200)}
    assert {cell[1] for cell in first} == set(study_module._FULL["methods"])
    points = [(cell[2], cell[3], cell[4]) for cell in plan if cell[0] == "sweep"]
    assert all(study_module.BASE.get(name) != value for name, value, _ in points)
    for name, value, length in points:  # every point is a memory that can be made
        study_module.make("WISE", study_module._FULL, 0, **study_module._changed(name, value, length, 0))
    shared = study_module._shared([{"setting": "base", "metric": "right"}], {"k": [1, 2], "rho": [0.2, 1.0]})
    assert [row["setting"] for row in shared] == ["k=2", "rho=0.2"]


def test_after_the_deadline_nothing_is_begun():
    cell = ("main", "WISE", "", 0, 12, 0, 0)
    assert study_module._measure({**study_module._QUICK, "device": "cpu"}, 0, 1.0, cell) == []


# ---------------------------------------------------------------------- pictures
def test_pictures_are_drawn(quick, tmp_path):
    deltas = quick[quick["metric"] == "delta"][["kind", "value"]].rename(columns={"value": "delta"})
    rng = np.random.default_rng(0)
    shards = {f"shard {i}": rng.normal(size=(40, 60)) * (rng.random((40, 60)) < 0.2) for i in range(2)}
    sweep = [
        row
        for (setting, kind) in itertools.product(("k=1", "k=2"), ("rel", "gen", "loc"))
        for row in rows("WISE", kind, rng.random(6), experiment="sweep", setting=setting)
    ]
    grown = pd.concat([quick, quick.assign(edits=6), pd.DataFrame(sweep)], ignore_index=True)
    made = {
        "triangle": views.impossible_triangle(views.aims(quick)),
        "routing": views.routing_histogram(deltas, 30.0),
        "forgetting": views.forgetting_triangle(quick),
        "map": views.shard_map(views.changes(shards)),
        "overlap": views.overlap_matrix(views.overlaps(shards)),
        "figure": views.paper_figure(quick, reported.load("wise"), grown),
    }
    for name, chart in made.items():
        chart.save(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").stat().st_size > 3_000
    text = (tmp_path / "figure.svg").read_text()
    assert all(word in text for word in ("WISE", "GRACE", "Rel", "Gen", "Loc", "edits T (log scale)"))


def test_pictures_refuse_what_they_cannot_draw(quick):
    with pytest.raises(BadInput, match="nothing to draw"):
        views.paper_figure(None, None, None)
    with pytest.raises(BadInput, match="'aim' is missing"):
        views.impossible_triangle(pd.DataFrame({"method": ["WISE"], "edits": [1], "value": [0.5]}))
    with pytest.raises(BadInput, match="must be a matrix"):
        views.changes({"shard 0": np.zeros(3)})
    with pytest.raises(BadInput, match="no rows"):
        views.forgetting_triangle(quick[quick["kind"] == "rel"])


def test_the_figure_is_drawn_of_several_seeds() -> None:
    run = recorded.load("wise", "full")
    run = run[(run["kind"] == "followed") | ((run["edits"] == 200) & (run["method"] == "WISE"))]
    opposite = run.assign(seed=1, value=np.where(run["metric"] == "right", 1 - run["value"], run["value"]))
    both = pd.concat([run, opposite], ignore_index=True)
    views.paper_figure(None, reported.load("wise"), both).to_dict()
    wise = both[both["method"] == "WISE"]
    cells = pd.DataFrame(views.forgetting_triangle(wise).data)
    assert len(cells) == 50 * 51 / 2  # one a cell, and the mean of the seeds in it
    assert (cells["value"] == 0.5).all()


def test_a_single_edit_has_no_interval_in_the_sweeps():
    drawn = views.sweeps(pd.DataFrame(rows("WISE", "rel", [1.0], experiment="sweep", setting="k=2"))).data
    assert drawn[["share", "low", "high"]].to_numpy().tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda: views.aims(pd.DataFrame({"a": [1]})), "'experiment' is missing"),
        (lambda: views.sweeps(pd.DataFrame({"a": [1]})), "'experiment' is missing"),
        (lambda: views.impossible_triangle(views.aims(pd.DataFrame(rows("WISE", "rel", [1, 0])))), "lacks one of"),
        (lambda: views.routing_histogram(pd.DataFrame({"kind": ["rel"], "delta": [1.0]}), np.inf), "eps must be"),
        (lambda: views.routing_histogram(pd.DataFrame({"kind": ["rel"], "delta": [1.0]}), "1"), "eps must be"),
        (lambda: views.overlaps({"a": np.ones((2, 3)), "b": np.ones((3, 3))}), "have one shape"),
    ],
)
def test_pictures_of_other_frames_are_refused(draw, told):
    with pytest.raises(BadInput, match=told):
        draw()


def test_the_recorded_run_answers_every_claim() -> None:
    run = recorded.load("wise", "full")
    assert {key for key, found in STUDIES.get("wise").judge(run, "full").items() if not found.n} == set()
