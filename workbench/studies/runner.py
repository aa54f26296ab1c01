"""Run studies: plan the cells, reuse the finished ones, compute the rest, judge the claims."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench import checks, storage
from workbench.errors import BadInput, StorageError, UnknownName
from workbench.studies import cells as cells_
from workbench.studies import needs
from workbench.studies import record as record_
from workbench.studies.base import STUDIES, Outcome, Scale, Study
from workbench.studies.cells import Cell, Finished
from workbench.studies.result import Result
from workbench_datasets.papers import papers

if TYPE_CHECKING:
    Backend = Callable[[Sequence[Cell], bool], Iterator[tuple[Cell, bytes]]]

BACKENDS = ("process", "ray")


def run(
    slug: str,
    *,
    scale: str = "quick",
    seeds: int | Sequence[int] = 1,
    on: str = "process",
    record: bool = False,
    resume: bool = True,
    device: str | None = None,
    quiet: bool = False,
) -> Result:
    """Run one study and judge its claims.

    ``seeds`` is a number (0, 1, ...) or the seeds themselves. Finished cells of the same configuration are reused
    unless ``resume=False``. ``on="ray"`` gives each seed to Ray as a task. ``record=True`` writes the rows to
    ``datasets/recorded``. Raises ``UnknownName``, ``BadInput`` (seeds, a device that is not there), ``NeedsUnmet``,
    ``StorageError``.
    """
    options: dict[str, Any] = {
        "scale": scale,
        "seeds": seeds,
        "on": on,
        "record": record,
        "resume": resume,
        "device": device,
    }
    return run_all([slug], quiet=quiet, **options)[0]


def run_all(
    slugs: Sequence[str],
    *,
    scale: str = "quick",
    seeds: int | Sequence[int] = 1,
    on: str = "process",
    record: bool = False,
    resume: bool = True,
    device: str | None = None,
    quiet: bool = False,
    done: Callable[[Result], Any] = lambda result: None,
) -> list[Result]:
    """Run several studies as one plan (on Ray: all their cells side by side); ``done`` hears of each result."""
    if on not in BACKENDS:
        raise UnknownName("back end", on, BACKENDS)
    if device is not None:
        device = checks.device(device, here=on == "process")
    plans = [_plan(study_of(slug), scale, _seeds(seeds), device) for slug in dict.fromkeys(slugs)]
    _check(plans, record)
    found = {cell: cells_.find(cell) if resume else None for plan in plans for cell in plan}
    reused = {cell for cell, finished in found.items() if finished is not None}
    backend = _backend(on)
    results = []
    for plan in _batches(plans, on):
        missing = [cell for study_plan in plan for cell in study_plan if found[cell] is None]
        for cell, data in backend(missing, quiet):
            _keep(cell, data)
            found[cell] = cells_.unpack(data)
        for study_plan in plan:
            results.append(_finish(study_plan, found, reused, record))
            done(results[-1])
    return results


def study_of(slug: str) -> Study:
    """The study of a paper; a paper without one says so, a misspelt slug suggests the nearest."""
    if slug in STUDIES:
        return STUDIES.get(slug)
    if slug in papers():
        raise BadInput(f"{slug!r} is in the catalogue but has no study yet; studies: {', '.join(STUDIES.names())}")
    raise UnknownName("study", slug, {*STUDIES.names(), *papers()})


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    given = range(seeds) if checks.is_whole(seeds) else seeds
    listed = list(dict.fromkeys(given)) if isinstance(given, Iterable) else []
    if not listed or not all(checks.is_whole(seed, 0) for seed in listed):
        raise BadInput(f"seeds={seeds!r} must be a number of seeds >= 1 or a list of whole numbers >= 0")
    return [int(seed) for seed in listed]


def _plan(study: Study, scale: str, seeds: Sequence[int], device: str | None) -> list[Cell]:
    chosen = study.scale(scale)
    placed: Scale = replace(chosen, settings={**chosen.settings, "device": device or _device(chosen)})
    return [Cell(study, placed, seed) for seed in seeds]


def _device(scale: Scale) -> str:
    return "cuda" if "cuda" in scale.needs else str(scale.settings.get("device", "cpu"))


def _check(plans: Sequence[Sequence[Cell]], recording: bool) -> None:
    for plan in plans:
        needs.check(plan[0].study, plan[0].scale)
        plan[0].key()
    cells_.check_writable(storage.cache_dir("studies"), "set WORKBENCH_CACHE to a folder you may write to")
    if recording:
        record_.check()


def _backend(on: str) -> Backend:
    if on == "ray":
        from workbench.studies.ray_backend import compute_all

        return compute_all
    return _in_process


def _in_process(missing: Sequence[Cell], quiet: bool) -> Iterator[tuple[Cell, bytes]]:
    for cell in missing:
        yield cell, cells_.compute(cell.study, cell.scale, cell.seed, quiet)


def _batches(plans: list[list[Cell]], on: str) -> list[list[list[Cell]]]:
    """In process one study after the other, each reported when it is done; Ray gets all cells at once."""
    return [plans] if on == "ray" else [[plan] for plan in plans]


def _keep(cell: Cell, data: bytes) -> None:
    """A cell that cannot be kept is still a result: warn, and go on with it in memory."""
    try:
        cells_.keep(cell, data)
    except StorageError as error:
        warnings.warn(f"{cell.label} is computed but cannot be kept for resuming: {error}", stacklevel=2)


def _finish(plan: Sequence[Cell], found: dict[Cell, Finished | None], reused: set[Cell], recording: bool) -> Result:
    import pandas as pd

    study, scale = plan[0].study, plan[0].scale
    finished = [cell for cell in (found[cell] for cell in plan) if cell is not None]
    frame = pd.concat([cell.frame for cell in finished], ignore_index=True)
    if recording:
        record_.write(study.slug, scale.name, finished, kept=storage.cache_dir("studies", study.slug))
    return Result(
        slug=study.slug,
        scale=scale.name,
        frame=frame,
        outcomes=_judge(study, frame, scale.name),
        seconds=sum(float(cell.provenance["wall_seconds"]) for cell in finished),
        provenance=_provenance(plan, finished, reused),
    )


def _judge(study: Study, frame: Any, scale: str) -> dict[str, Outcome]:
    outcomes = study.judge(frame, scale)
    wrong = [key for key, outcome in outcomes.items() if not isinstance(outcome, Outcome)]
    if wrong:
        raise BadInput(f"the tests of {study.slug}'s claims {', '.join(wrong)} must return an Outcome")
    return outcomes


def _provenance(plan: Sequence[Cell], finished: Sequence[Finished], reused: set[Cell]) -> dict[str, Any]:
    """What all cells share, the latest date, and how many were reused from an earlier run."""
    latest = max(finished, key=lambda cell: str(cell.provenance["date"])).provenance
    return {
        **{name: latest[name] for name in ("device", "libraries", "code", "date")},
        "seeds": [cell.seed for cell in plan],
        "reused": sum(cell in reused for cell in plan),
    }
