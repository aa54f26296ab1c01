"""Sparsey (Rinkus and Leveille 2017): similar inputs to similar codes, on one exposure, in fixed time.

Four experiments: the controlled similarity curve (a probe that shares k of 12 active inputs with a stored item),
recall after a single exposure, skeletonised digits (classes, similarity of codes, distinct codes; random codes with the
same Hebbian learning as the control, raw-pixel 1-NN as the yardstick), and capacity of one mac. All constants stand in
the paper's card and were set before these runs. The 91 % of the author's page is for MNIST with an unpublished layout
of macs: it is drawn beside the digits but nothing is claimed about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.studies._fan_out import fan_out
from workbench.studies._sparsey_claims import CLAIMS
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from workbench.memory.associative.sparsey import Sparsey

VECTOR = {"shape": 144, "q": 24, "k": 8, "pi": (1, None), "freeze": None}
ON, SHARED = 12, (0, 2, 4, 6, 8, 10, 12)
#: One mac over the whole skeleton image, never frozen.
BIG = {"shape": 384, "q": 49, "k": 100, "pi": (1, None), "freeze": None}
_QUICK: dict[str, Any] = {
    "trials": 60,
    "stored": [1, 21],
    "digit_seeds": 4,
    "train": [700],
    "test": 397,
    "sweeps": {},
    "sweep_seeds": 0,
    "counts": [10, 30, 100, 300],
    "capacity_seeds": 1,
    "timed": 600,
    "processes": 1,
}
_FULL: dict[str, Any] = {
    **_QUICK,
    "stored": [1, 21, 60],
    "digit_seeds": 10,
    "train": [700, 1400],
    "sweeps": {"freeze": [0.1, 0.2, 0.3, 0.5], "gamma": [1.0, 10.0, 100.0], "k": [8, 16, 32]},
    "sweep_seeds": 10,
    "counts": [10, 20, 30, 50, 100, 150, 200, 300],
    "capacity_seeds": 5,
    "timed": 1400,
    "processes": 16,
}


class SparseyStudy(Study):
    slug, title = "sparsey", "Sparsey: superposed episodic and semantic memory"
    scales = {"quick": Scale("quick", _QUICK, seconds=25), "full": Scale("full", _FULL, seconds=480)}
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        import pandas as pd

        settings = scale.settings
        work = partial(_measure, settings, seed)
        parts = fan_out(work, _plan(settings), settings["processes"], progress, "experiments")
        columns = ["experiment", "selection", "setting", "x", "unit", "metric", "value"]
        return pd.concat(list(parts), ignore_index=True)[columns]

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.sparsey import paper_figure

        return paper_figure(live, reported, recorded)


Cell = tuple[str, str, str, float, int]  # experiment, selection, what is varied, its value, repetition


def _plan(settings: Mapping[str, Any]) -> list[Cell]:
    cells: list[Cell] = []
    for select in ("csa", "random"):
        cells += [("similarity", select, "stored", stored, 0) for stored in settings["stored"]]
        cells += [("digits", select, "", n, i) for n in settings["train"] for i in range(settings["digit_seeds"])]
        cells += [("capacity", select, "", 0, i) for i in range(settings["capacity_seeds"])]
        cells += [
            ("sweep", select, name, value, i)
            for name, values in settings["sweeps"].items()
            for value in values
            for i in range(settings["sweep_seeds"])
        ]
    return [*cells, ("single trial", "csa", "", 5, 0), ("time", "csa", "", 0, 0)]


def _measure(settings: Mapping[str, Any], seed: int, cell: Cell) -> pd.DataFrame:
    experiment, select, setting, value, i = cell
    run = {"similarity": _similarity, "single trial": _single, "capacity": _capacity, "time": _time}.get(
        experiment, _digits
    )
    frame = run(settings, seed * 1_000 + i, cell)
    named = f"{setting}={value:g}" if setting else ""
    if experiment in ("digits", "sweep"):
        frame["unit"] = str(i)
    elif experiment == "capacity":
        frame["unit"] = f"{i}." + frame["unit"]
    return frame.assign(experiment=experiment, selection=select, setting=named)


def _memory(options: Mapping[str, Any], select: str, seed: int) -> Sparsey:
    from workbench.memory import MEMORIES

    return MEMORIES.get("sparsey")(**options, select=select, seed=seed)


def _similarity(settings: Mapping[str, Any], seed: int, cell: Cell) -> pd.DataFrame:
    from workbench.tasks.codes import similarity_curve

    make = partial(_memory, VECTOR, cell[1])
    return similarity_curve(make, stored=int(cell[3]), shared=SHARED, on=ON, trials=settings["trials"], seed=seed)


def _single(settings: Mapping[str, Any], seed: int, cell: Cell) -> pd.DataFrame:
    from workbench.tasks.codes import single_trial

    return single_trial(partial(_memory, VECTOR, "csa"), stored=int(cell[3]), on=ON, trials=40, seed=seed)


def _digits(settings: Mapping[str, Any], seed: int, cell: Cell) -> pd.DataFrame:
    """Images of repetition i are split by the seed; a sweep changes one constant of the recommended set."""
    from dataclasses import replace

    from workbench.memory.associative.sparsey import IMAGES
    from workbench.tasks.codes import classify
    from workbench_datasets.digits import skeleton_digits

    experiment, select, setting, value, _ = cell
    options: dict[str, Any] = {}
    if experiment == "sweep":
        options = {"csa": replace(IMAGES, gamma=value)} if setting == "gamma" else {setting: type_of(setting)(value)}
    train = int(value) if experiment == "digits" else 700
    first, second = skeleton_digits().split(train, settings["test"], seed)
    return classify(_memory(options, select, seed), first, second)


def type_of(setting: str) -> type:
    return int if setting == "k" else float


def _capacity(settings: Mapping[str, Any], seed: int, cell: Cell) -> pd.DataFrame:
    from workbench.tasks.codes import capacity

    images, _ = _some_digits(max(settings["counts"]), seed)
    return capacity(_memory(BIG, cell[1], seed), images, settings["counts"])


def _time(settings: Mapping[str, Any], seed: int, cell: Cell) -> pd.DataFrame:
    """Never frozen, so that the last item is learnt as the first was."""
    from workbench.tasks.codes import store_time

    images, _ = _some_digits(settings["timed"], seed)
    memory = _memory({"freeze": None}, "csa", seed)
    store_time(_memory({"freeze": None}, "csa", seed), images[:20])  # the first calls load libraries
    return store_time(memory, images)


def _some_digits(count: int, seed: int) -> Any:
    from workbench_datasets.digits import skeleton_digits

    first, _ = skeleton_digits().split(count, 1, seed)
    return first.flat(), first.labels


STUDIES.register("sparsey")(SparseyStudy())
