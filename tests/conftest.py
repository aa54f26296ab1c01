"""One thread a process (tiny models are slower with two), no hub, a cache of the run's own, the same chance every run.

Hypothesis draws the same examples in every run and looks at no clock; ``--hypothesis-profile=default`` explores.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
if "WORKBENCH_CACHE" not in os.environ:  # the workers of a run share the one that the run has made
    os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(prefix="workbench-cache-")
    atexit.register(shutil.rmtree, os.environ["WORKBENCH_CACHE"], ignore_errors=True)

import hypothesis
import pytest

# A busy machine draws slowly, too; what is slow is seen in the durations that every run prints.
hypothesis.settings.register_profile(
    "repeated", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeated")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data (WORKBENCH_DATA, else ../shared/data); skips where there is none."""
    for folder in filter(None, [os.environ.get("WORKBENCH_DATA"), ROOT.parent / "shared" / "data"]):
        if Path(folder).is_dir():
            return Path(folder)
    pytest.skip("no real data: set WORKBENCH_DATA to a folder laid out as in datasets/workbench_datasets/registry.py")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """One thread, and global generators that do not depend on the tests before."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
        sys.modules["torch"].manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
