"""A small foreign study, installed as a package of its own would be: a module and an entry point.

``DRIFT_LOG`` names a file to which every computed seed is appended; ``DRIFT_HANG_AT`` (or a file beside the log,
``<log>.hang``) makes that seed wait to be killed; ``DRIFT_FAIL_AT`` makes that seed raise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

MODULE = '''
"""A random walk with drift."""
import os, time
import numpy as np
import pandas as pd
from workbench import statistics
from workbench.errors import BadInput
from workbench.studies import STUDIES, Claim, Outcome, Scale, Study


def _drift(threshold):
    def test(frame):
        return Outcome.of(statistics.bootstrap(frame["step"], seed=1), threshold, ">")
    return test


def _hang_file():
    path = os.environ.get("DRIFT_LOG", "") + ".hang"
    return open(path).read() if os.path.exists(path) else None


class Drift(Study):
    slug, title = "SLUG", "A walk that drifts"
    scales = {
        "quick": Scale("quick", {"steps": 40}, 1),
        "full": Scale("full", {"steps": 60}, 1),
        "gpu": Scale("gpu", {"steps": 60}, 1, ("cuda",)),
        "online": Scale("online", {"steps": 60}, 1, ("hub:nobody/nothing",)),
        "books": Scale("books", {"steps": 60}, 1, ("data:books",)),
        "odd": Scale("odd", {"steps": 60}, 1, ("moon",)),
        "unserial": Scale("unserial", {"steps": {1, 2}}, 1),
    }
    claims = (
        Claim("C1", "the mean step is above 0", "by construction", _drift(0.0), ("quick", "full")),
        Claim("C2", "the mean step is above 9", "false by construction", _drift(9.0), ("full",)),
    )

    def run(self, scale, seed, progress):
        if os.environ.get("DRIFT_LOG"):
            with open(os.environ["DRIFT_LOG"], "a") as log:
                log.write(f"{seed}\\n")
        if str(seed) in (os.environ.get("DRIFT_HANG_AT"), _hang_file()):
            time.sleep(120)
        if os.environ.get("DRIFT_FAIL_AT") == str(seed):
            raise BadInput(f"seed {seed} fails on purpose")
        rng = np.random.default_rng(seed)
        import torch
        steps = rng.normal(1.0, 1.0, scale.settings["steps"])
        noise = torch.rand(len(steps)).double().numpy() * 1e-3 + np.random.random() * 1e-3
        return pd.DataFrame({
            "t": np.arange(len(steps)), "step": steps + noise, "place": np.cumsum(steps),
            "sign": np.where(steps > 0, "up", "down"), "kept": steps > 0,
            "maybe": np.where(np.arange(len(steps)) % 7 == 0, np.nan, steps),
        })

    def figure(self, live, reported, recorded):
        import altair as alt
        place = alt.Y("place:Q", title="place (steps)")
        return alt.Chart(live).mark_line().encode(x=alt.X("t:Q", title="step"), y=place)


STUDIES.register("SLUG")(Drift())
study = STUDIES.get("SLUG")
'''


def install(folder: Path, slug: str = "drift") -> Path:
    """Write the package that offers the study ``slug`` through the entry point group of studies."""
    name = f"{slug}_study"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(MODULE.replace("SLUG", slug))
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[memory_workbench.studies]\n{slug} = {name}:study\n")
    return folder


def environment(folder: Path, work: Path, **extra: str) -> dict[str, str]:
    """A child process that sees the installed study and has a cache, a record and a log of its own."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": path, "WORKBENCH_CACHE": str(work / "cache"), "WORKBENCH_RECORDED": str(work / "recorded")}
    return {**os.environ, **own, "DRIFT_LOG": str(work / "log"), "OMP_NUM_THREADS": "1", **extra}


def workbench(*arguments: str, env: dict[str, str], **options: object) -> subprocess.CompletedProcess[str]:
    """``workbench ARGUMENTS`` to its end."""
    command = [sys.executable, "-m", "workbench.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def start(*arguments: str, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workbench.cli", *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def computed(work: Path) -> list[int]:
    """The seeds that were really computed, in order."""
    log = work / "log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def wait_for(condition: object, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError("the process never got there")
        time.sleep(0.05)
