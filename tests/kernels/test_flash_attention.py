"""The FlashAttention study on a small scale, its claims, pictures and tile walker."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from workbench.errors import BadInput
from workbench.studies import STUDIES, Progress
from workbench.studies import _flash_model as in_model
from workbench.systems.flash_walk import partial_softmax, walk
from workbench.systems.io_counts import Tiling
from workbench.views import flash_attention as views
from workbench_datasets import reported

SMALL = {
    "lengths": [64, 128, 256],
    "dims": [64],
    "sram": [2048, 4096, 8192],
    "exact_length": 64,
    "draws": 2,
    "memory_lengths": [512, 1024, 1536, 2048],
    "sparse_length": 512,
    "repeats": 3,
    "tokens": 256,
    "prompts": 3,
}


@pytest.fixture(scope="module")
def study():
    return STUDIES.get("flash-attention")


@pytest.fixture(scope="module")
def frame(study):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_model, "WINDOW", 128)
        scale = study.scale("quick")
        return study.run(replace(scale, settings={**scale.settings, **SMALL}), 0, Progress(quiet=True))


def test_counted_claims_hold_and_every_outcome_has_an_interval(study, frame):
    outcomes = study.judge(frame, "quick")
    assert set(outcomes) == {"C1", "C1b", "C2", "C2b", "C2c", "C3", "C5", "C6"}
    for key in ("C1", "C2", "C2b", "C3", "C6"):
        assert outcomes[key].verdict == "holds", (key, outcomes[key])
    for key, outcome in outcomes.items():
        assert outcome.low <= outcome.effect <= outcome.high or outcome.n == 0, (key, outcome)


def test_claims_fail_when_the_evidence_does(study, frame):
    """No claim is true by construction: falsified rows give 'not reproduced'."""
    tests = {claim.id: claim.test for claim in study.claims}
    flash = frame["item"] == "flash"

    def bent(where, factor):
        return frame.assign(value=frame.value.where(~where, frame.value * factor))

    assert tests["C1"](bent(flash & (frame.experiment == "E2"), 50)).verdict == "not reproduced"
    assert tests["C2"](bent(flash & (frame.metric == "counted"), 2)).verdict == "not reproduced"
    assert tests["C2b"](bent(flash & (frame.experiment == "Fig2"), 9)).verdict == "not reproduced"
    assert tests["C6"](bent(flash & (frame.metric == "counted flops"), 0.5)).verdict == "not reproduced"
    growing = frame.assign(value=frame.value.where(~(flash & (frame.metric == "peak")), frame.value * frame.n))
    assert tests["C3"](growing).verdict == "not reproduced"
    reversed_time = frame.assign(value=frame.value.where(frame.metric != "time", 1 / frame.value))
    assert tests["C5"](reversed_time).verdict == "not reproduced"
    assert tests["C2"](frame[frame.experiment != "Fig2"]).verdict == "inconclusive"
    nothing = frame.iloc[:0]
    assert {test(nothing).verdict for test in tests.values()} == {"inconclusive"}


def test_speed_claim_on_made_up_gpu_rows(study):
    """C4's arithmetic, without a GPU: standard 3 times slower at every length."""
    rows = [
        {"experiment": "GPU", "metric": "time", "stage": "forward+backward", "item": item, "n": n, "seed": 0}
        | {"dtype": "bfloat16", "d": 64, "input": mask, "value": n * factor}
        for n in (512, 2048, 4096)
        for mask in ("full", "causal")
        for item, factor in (("standard", 3.0), ("triton", 1.0), ("triton-v1", 5.0))
    ]
    claim = next(claim for claim in study.claims if claim.id == "C4")
    assert claim.scales == ("full",)
    assert claim.test(pd.DataFrame(rows)).verdict == "holds"
    slow = pd.DataFrame(rows).assign(value=lambda t: t.value.where(t["item"] != "standard", 0.5 * t.n))
    assert claim.test(slow).verdict == "not reproduced"


def test_full_scale_needs_cuda(study):
    assert study.scale("full").needs == ("cuda",)


def test_the_same_seed_gives_the_same_counts(study, frame):
    again = study.scale("quick")
    settings = {**again.settings, **SMALL, "model": "no-such-model", "memory_lengths": [512]}
    rows = study.run(replace(again, settings=settings), 0, Progress(quiet=True))
    for experiment in ("E1", "E2"):
        first, second = (x[x.experiment == experiment].value.to_numpy() for x in (frame, rows))
        assert (first == second).all()
    assert not (rows.experiment == "E5").any()


def test_figure_from_any_of_the_three_sources(study, frame):
    paper = reported.load("flash-attention")
    for live, recorded in ((frame, None), (None, frame), (frame, frame), (None, None)):
        chart = study.figure(live, paper, recorded).to_dict()
        assert chart["$schema"]
    with pytest.raises(BadInput, match="nothing to draw"):
        study.figure(None, None, None)


def test_reported_numbers():
    paper = reported.load("flash-attention")
    fig2 = paper[(paper.table == "Fig. 2 left") & (paper.metric == "hbm")].set_index("item").value
    assert fig2.to_dict() == {"standard": 40.3, "FlashAttention": 4.4}
    assert not paper[paper.table.str.startswith("Appendix")].verified.any()
    assert paper.unit.notna().all()


@pytest.mark.parametrize("order", ["v1", "v2"])
def test_walk_visits_every_live_tile_once(order):
    found = walk(n=64, d=8, sram=512, order=order, causal=True)
    live = found.tiles[found.tiles.step >= 0]
    assert sorted(live.step) == list(range(found.steps))
    assert (live.j <= live.i).all()
    assert found.counters.reads.is_monotonic_increasing
    outer = live.sort_values("step")["j" if order == "v1" else "i"]
    assert outer.is_monotonic_increasing


def test_walk_totals_are_the_counted_ones():
    from workbench.systems import io_counts

    for order, formula in (("v1", io_counts.flash_forward), ("v2", io_counts.flash2_forward)):
        last = walk(n=50, d=8, sram=512, order=order).counters.iloc[-1]
        assert last.reads + last.writes == formula(50, 8, Tiling.of_sram(512, 8))


def test_walk_refuses_a_grid_nobody_can_follow():
    with pytest.raises(BadInput, match="256 are shown"):
        walk(n=1024, d=8, sram=64)


def test_partial_softmax_is_exact_at_every_moment():
    trace = partial_softmax(n=50, block=7)
    assert trace["keys"].tolist() == [7, 14, 21, 28, 35, 42, 49, 50]
    assert trace.gap.max() < 1e-12
    assert trace.m.is_monotonic_increasing


def test_views_draw(frame):
    for chart in (
        views.tile_walker(walk(n=64, d=8, sram=512)),
        views.tile_walker(walk(n=64, d=8, sram=512, order="v2"), step=3),
        views.partial_softmax(partial_softmax(n=20, block=5)),
        views.errors(frame),
        views.scaling(frame[frame.experiment == "E3"]),
    ):
        assert chart.to_dict()["$schema"]
    with pytest.raises(BadInput, match="step"):
        views.tile_walker(walk(n=64, d=8, sram=512), step=999)


@pytest.mark.parametrize("view", [views.errors, views.losses, views.time_by_block, views.sparse_model])
@pytest.mark.parametrize("bad", [None, [1], pd.DataFrame()], ids=["None", "list", "bare"])
def test_views_refuse_what_is_no_study_frame(view, bad):
    with pytest.raises(BadInput, match=rf"^{view.__name__}: "):
        view(bad)


def test_losses_of_several_seeds_are_lines_of_their_own():
    """Opposite gaps of two seeds do not cancel, and no line runs to and fro between them."""
    rows = [
        {"experiment": "training", "metric": "loss", "item": item, "repeat": float(step), "seed": seed}
        | {"value": 3.0 + (item == "hopper") * gap}
        for seed, gap in ((0, 0.2), (1, -0.2))
        for item in ("standard", "hopper")
        for step in range(3)
    ]
    spec = views.losses(pd.DataFrame(rows)).to_dict()
    assert "largest difference of two losses: 0.200" in str(spec["title"])
    assert spec["encoding"]["detail"]["field"] == "seed"
    tests = {claim.id: claim.test for claim in STUDIES.get("flash-attention").claims}
    judged = tests["C7"](pd.DataFrame(rows))
    assert judged.effect == pytest.approx(0.2)
    assert judged.note.startswith("steps compared: hopper 6;")


def test_a_claim_about_times_on_a_card_is_about_every_shape():
    """A shape at which it fails is not outweighed by others: they were chosen, not drawn."""
    tests = {claim.id: claim.test for claim in STUDIES.get("flash-attention").claims}

    def timed(*shapes: tuple[float, int, float]) -> pd.DataFrame:
        where = {"experiment": "GPU", "metric": "time", "stage": "forward+backward", "input": "full", "seed": 0}
        rows = [{**where, "d": d, "n": n, "item": item, "value": value}
                for d, n, ratio in shapes for item, value in (("standard", ratio), ("triton-v1", 1.0))]  # fmt: skip
        return pd.DataFrame(rows)

    good, bad = ((64, 1024, 3.0), (64, 2048, 4.0)), (128, 2048, 0.6)
    assert tests["C6b"](timed(*good)).verdict == "holds"
    found = tests["C6b"](timed(*good, bad))
    assert found.verdict == "inconclusive"
    assert found.note == "d = 64: 3.00 to 4.00, d = 128: 0.60 to 0.60"
    assert tests["C4"](timed(*good, (64, 4096, 3.0))).verdict == "holds"
    assert tests["C4"](timed(*good, (64, 4096, 1.5))).verdict == "inconclusive"
    assert tests["C4"](timed(*good, bad)).verdict == "not reproduced"


def test_scaling_marks_what_ran_out_of_memory():
    rows = [{"item": "standard", "n": n, "metric": "time", "stage": "forward", "value": float(n)} for n in (512, 1024)]
    rows.append({"item": "standard", "n": 2048, "metric": "out of memory", "stage": "forward", "value": 1.0})
    spec = views.scaling(pd.DataFrame(rows), metric="time", stage="forward").to_dict()
    assert any(layer["mark"].get("shape") == "cross" for layer in spec["layer"])
    with pytest.raises(BadInput, match="no rows"):
        views.scaling(pd.DataFrame(rows), metric="watts")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"srm": 512}, "no setting 'srm'; it has .*sram"),
        ({"sram": 16}, r"sram must hold at least four rows, 4 \* d = 64"),
        ({"d": 0}, "d must be a head dimension >= 1"),
        ({"n": 0}, r"n must be a whole number of at least 1 \(tokens\), got 0"),
        ({"n": 1.5}, r"n must be a whole number of at least 1 \(tokens\), got 1.5"),
        ({"n": 10_000}, "256 are shown"),
        ({"n": 8, "sram": 1024, "toggled": ((0, 0),)}, "every tile is switched off"),
    ],
)
def test_tile_walker_says_what_it_cannot_start_with(words, told):
    from workbench.widgets.tile_walker import TileWalker

    with pytest.raises(BadInput, match=told):
        TileWalker(**words)


def test_tile_walker_starts_from_any_chip():
    from workbench.widgets.tile_walker import TileWalker

    walker = TileWalker(n=64, d=64, sram=6000)
    assert (walker.walk.tiling, walker.walk.steps) == (Tiling(24, 24), 9)


def test_tile_walker_widget_follows_its_controls():
    from workbench.widgets.tile_walker import TileWalker

    walker = TileWalker(n=64, d=8, sram=512)
    dense = walker.walk.steps
    walker.causal = True
    causal = walker.walk.steps
    assert causal < dense
    walker.toggle(3, 0)
    assert walker.walk.steps == causal - 1
    walker.toggle(3, 0)
    assert walker.walk.steps == causal
    walker.step = causal - 1
    walker.sram = 4096
    assert walker.step <= walker.walk.steps - 1
    assert "tile_walker(walk(" in walker._line.value
    bundle = walker._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["text/html"].startswith("<svg")
    for control in walker._controls():
        assert control.description
        assert getattr(control, "tooltip", None) or getattr(control, "tooltips", None)
