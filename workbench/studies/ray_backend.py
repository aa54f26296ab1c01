"""Cells as Ray tasks. Ray is imported here and nowhere else; ``RAY_ADDRESS`` names a running cluster.

The driver keeps each cell as soon as it is done, so a kill or Ctrl-C loses only the cells in flight.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.studies import cells
from workbench.studies.base import Scale
from workbench.studies.cells import Cell

#: Frames travel through Ray's object store; they are small, so a local Ray need not claim a third of the memory.
_OBJECT_STORE_BYTES = 128 * 2**20


def compute_all(missing: Sequence[Cell], quiet: bool) -> Iterator[tuple[Cell, bytes]]:
    """Each cell with its packed frame, in the order in which they finish."""
    if not missing:
        return
    ray = _ray()
    own = not ray.is_initialized()
    if own:
        start(ray)
    try:
        yield from _gather(ray, missing, quiet)
    finally:
        if own:
            ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise WorkbenchError("--on ray needs Ray: pip install 'memory-workbench[ray]'") from error
    return ray


def start(ray: Any, **options: Any) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, else start a small local one.

    A local Ray gives itself 30 s to come up, which a busy machine can exceed: it is tried three times.
    """
    own = {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    local = {} if os.environ.get("RAY_ADDRESS") else own
    for attempts_left in (2, 1, 0):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **local, **options)
            return
        except Exception as error:  # Ray raises bare Exceptions here
            ray.shutdown()
            if not attempts_left:
                raise WorkbenchError(f"Ray did not start: {error}") from error


def _gather(ray: Any, missing: Sequence[Cell], quiet: bool) -> Iterator[tuple[Cell, bytes]]:
    from tqdm.auto import tqdm

    task, path = ray.remote(cells.compute), import_path()
    cores = int(ray.cluster_resources().get("CPU", 1))
    running = {
        task.options(runtime_env=path, **resources(cell.scale, cores)).remote(
            cell.study, cell.scale, cell.seed, True
        ): cell
        for cell in missing
    }
    with tqdm(total=len(running), desc="cells on ray", unit="cell", disable=quiet, leave=False) as bar:
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done), _result(ray, done)
            bar.update()


def resources(scale: Scale, cores: int) -> dict[str, Any]:
    """A cell takes as many cores as torch threads (what there is, if fewer), and a GPU when it computes on one."""
    on_gpu = str(scale.settings["device"]).startswith("cuda")
    return {"num_cpus": min(int(scale.settings.get("threads", 1)), cores), "num_gpus": int(on_gpu), "max_retries": 0}


def import_path() -> dict[str, Any]:
    """A worker finds the modules that the driver finds: a study of another package, or one beside the script."""
    own = [str(Path(entry).resolve()) for entry in sys.path if not entry.startswith((sys.prefix, sys.base_prefix))]
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(dict.fromkeys([*own, *filter(None, known)]))}}


def _result(ray: Any, reference: Any) -> bytes:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # the study's own error, as the in-process run would raise it
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except ray.exceptions.RayError as error:
        raise WorkbenchError(
            f"a Ray worker was lost ({type(error).__name__}); finished cells are kept: run again"
        ) from error
