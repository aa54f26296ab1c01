"""One thread a process (tiny models are slower with two), no hub, a cache of the test run's own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
os.environ.setdefault("WORKBENCH_CACHE", tempfile.mkdtemp(prefix="workbench-cache-"))

import pytest

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
def _one_torch_thread() -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
